"""Devices of other kinds on loopback, made of this machine's own programs: see `sshd` for how they are started.

One has a home, a host name and users of its own. The other is like a phone under Termux: an app's user without any
privilege, its own prefix, no `/tmp`, few tools. What a phone has besides, bionic and a system that kills, is not there.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from toggle_edge.errors import FleetError
from toggle_edge.fleet.namespaces import Enclosure, Mount
from toggle_edge.fleet.sshd import Surroundings, sshd_path

USER = "edge"

TERMUX = "/data/data/com.termux/files"
TERMUX_PORT = 8022
_APP, _APP_UID = "u0_a123", 10123
_TOOLS = ("bash", "sh", "cat", "ls", "mkdir", "mv", "rm", "uname", "id", "env", "sleep")


def apart(folder: Path, name: str, shell: str = "/bin/sh") -> Surroundings:
    """This machine's programs, but a host name, a home in `folder`, users and processes of its own. The only login is
    USER, with this process's rights and `shell`."""
    folder = folder.absolute()
    # Not below /home, which may be where this machine's Python is.
    home, uid = f"/run/home/{USER}", os.getuid()
    (folder / "home").mkdir(parents=True, exist_ok=True)
    files = {
        "passwd": f"{USER}:x:{uid}:{uid}::{home}:{shell}\nsshd:x:100:65534::/run/sshd:/bin/false\n",
        "shadow": f"{USER}:*:1::::::\nsshd:*:1::::::\n",
        "group": f"{USER}:x:{uid}:\nnogroup:x:65534:\n",
    }
    for file, text in files.items():
        (folder / file).write_text(text, encoding="utf-8")
    mounts = [
        *(Mount(f"/etc/{file}", source=str(folder / file), read_only=True) for file in files),
        Mount("/proc", "proc"),
        Mount("/run", "tmpfs", options="mode=755"),
        Mount("/run/sshd", "tmpfs", options="mode=755"),
        Mount("/run/keys", source=str(folder / "ssh"), read_only=True),
        Mount(home, source=str(folder / "home")),
    ]
    return Surroundings(
        user=USER,
        root="toggle-edge",
        python=sys.executable,
        keys="/run/keys",
        server=_server(),
        enclosure=Enclosure(name, mounts),
    )


def phone(folder: Path, port: int | None = TERMUX_PORT) -> Surroundings:
    """A phone under Termux, as its template has it. Its Python is the one that runs here."""
    folder = folder.absolute()
    root, prefix = folder / "phone", f"{TERMUX}/usr"
    temporary = f"{prefix}/tmp"  # noqa: S108 - the phone's own
    inside = (f"{TERMUX}/home", f"{prefix}/bin", temporary, f"{prefix}/etc/ssh")
    for path in ("usr", "proc", "dev", "sys", "etc", "system/bin", *(each[1:] for each in inside)):
        (root / path).mkdir(parents=True, exist_ok=True)
    python = Path(sys.executable).resolve()
    libraries = {name: f"usr/{name}" for name in ("lib", "lib64") if Path("/", name).exists()}
    tools = {tool: shutil.which(tool) for tool in _TOOLS}
    tools["python3"] = str(python)
    placed = {f"{prefix}/bin/{name}"[1:]: path for name, path in tools.items() if path is not None}
    for place, target in {"bin": "system/bin", **libraries, **placed}.items():
        (root / place).unlink(missing_ok=True)
        (root / place).symlink_to(target)
    (root / "etc/passwd").write_text(f"{_APP}:*:{_APP_UID}:{_APP_UID}::{TERMUX}/home:{prefix}/bin/bash\n")
    (root / "etc/group").write_text(f"{_APP}:x:{_APP_UID}:\n")
    for path in inside:
        os.chown(root / path[1:], _APP_UID, _APP_UID)
    mounts = [
        Mount("/usr", source="/usr", read_only=True),
        Mount("/proc", "proc", options="hidepid=2"),
        # An app sees few devices, and no /dev/shm.
        Mount("/dev", "tmpfs", options="mode=755"),
        *(
            Mount(f"/dev/{each}", source=f"/dev/{each}")
            for each in ("null", "zero", "full", "urandom", "tty")
        ),
        Mount("/sys", source="/sys", read_only=True),
        Mount(f"{prefix}/etc/ssh", source=str(folder / "ssh"), read_only=True),
    ]
    if not python.is_relative_to("/usr"):
        mounts.append(Mount(sys.base_prefix, source=sys.base_prefix, read_only=True))
    environment = {
        "PATH": f"{prefix}/bin",
        "PREFIX": prefix,
        "TMPDIR": temporary,
        "ANDROID_ROOT": "/system",
        "TERMUX_VERSION": "0.118",
    }
    return Surroundings(
        user=_APP,
        root=f"{TERMUX}/home/toggle-edge",
        python=f"{prefix}/bin/python3",
        keys=f"{prefix}/etc/ssh",
        server=_server(),
        enclosure=Enclosure("localhost", mounts, str(root), _APP_UID),
        port=port,
        variables=environment,
    )


def _server() -> str:
    server = sshd_path()
    if server is None:
        raise FleetError("sshd: expected OpenSSH's server on PATH or in /usr/sbin; install openssh-server")
    return str(server)
