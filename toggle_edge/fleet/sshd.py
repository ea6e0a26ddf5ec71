"""A real sshd on loopback beside the system's own: a device to try things on, this machine or one that is enclosed."""

from __future__ import annotations

import base64
import ctypes
import hashlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from toggle_edge.errors import FleetError
from toggle_edge.fleet.device import Device
from toggle_edge.fleet.namespaces import Enclosure, enclosed

START_TIMEOUT_S = 60.0
"""One that fails ends at once; one that is emulated, on a busy machine, takes its time."""
_ATTEMPTS = 5
_PR_SET_PDEATHSIG = 1


def sshd_path() -> Path | None:
    """Where OpenSSH's server is; None where it is not installed. Its folder is often not on a user's PATH."""
    found = shutil.which(
        "sshd", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    )
    return Path(found) if found else None


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a device on loopback has around its sshd; paths as the device sees them. `keys` is where it finds the
    folder of its keys and its configuration, `variables` what a login sets there, `port` None any free one."""

    user: str
    root: str
    python: str
    keys: str
    server: str
    enclosure: Enclosure
    port: int | None = None
    variables: Mapping[str, str] = field(default_factory=dict)


class LoopbackSshd:
    """Context manager: an sshd of our own with fresh keys, gone when the block or this process ends.

    `folder` keeps keys, configuration, log and the device's root. Without `surroundings` the device is this machine as
    it is; with them it is what they enclose, and all that runs there ends with it. Raises FleetError when it does not
    start.
    """

    def __init__(
        self, folder: Path, name: str = "this-machine", surroundings: Surroundings | None = None
    ) -> None:
        self.folder = folder.absolute()
        self._name = name
        self._around = surroundings
        self._keys = self.folder / "ssh" if surroundings else self.folder
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._host_key = ""

    @property
    def device(self) -> Device:
        """This sshd as a device file would describe it, host key pinned."""
        around = self._around
        return Device(
            name=self._name,
            host="127.0.0.1",
            port=self._port,
            user=around.user if around else pwd.getpwuid(os.getuid()).pw_name,
            host_key=self._host_key,
            identity=str(self.folder / "client_key"),
            root=around.root if around else str(self.folder / "device"),
            python=around.python if around else sys.executable,
        )

    @property
    def log(self) -> str:
        return (self.folder / "sshd.log").read_text(encoding="utf-8", errors="replace")

    def __enter__(self) -> Self:
        self._keys.mkdir(parents=True, exist_ok=True)
        self._keys.chmod(0o755)
        self._host_key = _fingerprint(write_key(self._keys / "host_key"))
        (self._keys / "authorized_keys").write_bytes(write_key(self.folder / "client_key") + b"\n")
        if self._around is not None and self._around.enclosure.uid is not None:
            os.chown(self._keys / "host_key", self._around.enclosure.uid, self._around.enclosure.uid)
        command = self._command()
        for _ in range(_ATTEMPTS):
            # Somebody may take the port between our look and sshd's bind: then try another.
            self._port = (self._around and self._around.port) or _free_port()
            if self._start(command):
                return self
        raise FleetError(f"sshd did not start on loopback; its log ends: {self.log[-1000:]}")

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _command(self) -> list[str]:
        around = self._around
        if around is None:
            sshd = sshd_path()
            if sshd is None:
                raise FleetError(
                    "sshd: expected OpenSSH's server on PATH or in /usr/sbin; install openssh-server"
                )
            if os.getuid() == 0:
                Path("/run/sshd").mkdir(exist_ok=True)  # where sshd, as root, locks up its unprivileged half
            return [str(sshd), "-D", "-e", "-f", str(self._keys / "sshd_config")]
        enclosure = around.enclosure.written(self.folder / "enclosure.json")
        return [*enclosed(enclosure), around.server, "-D", "-e", "-f", f"{around.keys}/sshd_config"]

    def _start(self, command: list[str]) -> bool:
        seen = self._around.keys if self._around else str(self._keys)
        config = _CONFIG.format(port=self._port, folder=seen)
        if self._around and self._around.variables:
            config += "SetEnv " + " ".join(
                f'"{key}={value}"' for key, value in self._around.variables.items()
            )
        (self._keys / "sshd_config").write_text(config + "\n", encoding="utf-8")
        libc = ctypes.CDLL(None)  # loaded before the fork, where little is safe
        with (self.folder / "sshd.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                preexec_fn=lambda: getattr(libc, "prctl", lambda *_: 0)(_PR_SET_PDEATHSIG, signal.SIGTERM),
            )
        self._process = process
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and process.poll() is None:
            if _answers(self._port, deadline - time.monotonic()):
                return True
            time.sleep(0.01)
        self._stop()
        return False

    def _stop(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


_CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey "{folder}/host_key"
PidFile none
AuthorizedKeysFile "{folder}/authorized_keys"
StrictModes no
UsePAM no
UseDNS no
PasswordAuthentication no
KbdInteractiveAuthentication no
PubkeyAuthentication yes
PermitRootLogin prohibit-password
PermitUserRC no
PrintMotd no
MaxStartups 100:30:200
Subsystem sftp internal-sftp
"""


def write_key(path: Path) -> bytes:
    """Make an Ed25519 key pair; return the public half as `authorized_keys` has it."""
    key = Ed25519PrivateKey.generate()
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
    )
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


def _fingerprint(public: bytes) -> str:
    digest = hashlib.sha256(base64.b64decode(public.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(port: int, timeout_s: float) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout_s) as probe:
            return probe.recv(8).startswith(b"SSH-2.0")
    except OSError:
        return False
