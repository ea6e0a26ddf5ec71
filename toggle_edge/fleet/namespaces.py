"""Gives a command a machine of its own: host name, file systems, processes, and if need be another architecture.

Runs by path under any Python 3.11 without this package, so that a device is up in milliseconds:
`python -I -S namespaces.py ENCLOSURE.json COMMAND...`. What runs inside ends with it. Linux and root only.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import NoReturn

EMULATOR = "qemu-aarch64-static"
PROCESSOR = "cortex-a76"
"""What it emulates: what the cores of a Jetson Orin can do. Left to itself it has all that ARM ever defined, and an
engine that finds SVE there takes ten times as long, in vectors that no such board has."""
BIND = "bind"

_NEW_MOUNTS, _NEW_HOST_NAME, _NEW_USERS, _NEW_PROCESSES = 0x20000, 0x4000000, 0x10000000, 0x20000000
_READ_ONLY, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 1, 32, 4096, 16384, 1 << 18
_LOCKED = 2 | 4 | 8  # nosuid, nodev, noexec: what a user namespace may not take off again
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 24, 36, 38
_LAST_CAPABILITY = 63

_MAGIC = rb"\x7f\x45\x4c\x46\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
_MASK = rb"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"


@dataclass(frozen=True, slots=True)
class Mount:
    """One file system at `target` (a path inside the enclosure): `kind` is `bind` of the host's `source`, or a type
    such as `proc` or `tmpfs`, then with `options`."""

    target: str
    kind: str = BIND
    source: str = "none"
    options: str = ""
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Enclosure:
    """A machine of its own. `root`: the host's folder that is `/` there, None for the host's own root; `mounts` in
    order; `uid`: who runs the command, without any privilege, None for root; `foreign`: its programs are aarch64."""

    hostname: str
    mounts: Sequence[Mount] = ()
    root: str | None = None
    uid: int | None = None
    foreign: bool = False
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def written(self, path: Path) -> Path:
        """The file that `main` reads."""
        path.write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")
        return path


def enclosed(enclosure: Path) -> list[str]:
    """What a command begins with to run in a written enclosure."""
    return [sys.executable, "-I", "-S", str(Path(__file__).absolute()), str(enclosure)]


def why_unavailable() -> str | None:
    """Why this process cannot make enclosures; None where it can."""
    if not sys.platform.startswith("linux"):
        return "namespaces are Linux's"
    if os.getuid() != 0:
        return "only root may make the namespaces of a device"
    return _refusal(foreign=False)


def why_not_foreign() -> str | None:
    """Why this process cannot make enclosures with aarch64 programs; None where it can."""
    if shutil.which(EMULATOR) is None:
        return f"no {EMULATOR}: install qemu-user-static"
    known = subprocess.run([EMULATOR, "-cpu", "help"], capture_output=True, text=True, check=False).stdout
    if PROCESSOR not in known.split():
        return f"{EMULATOR} knows no {PROCESSOR}: install qemu-user-static 7.1 or later"
    return why_unavailable() or _refusal(foreign=True)


@cache
def _refusal(*, foreign: bool) -> str | None:
    with tempfile.TemporaryDirectory() as folder:
        trial = Enclosure("trial", [Mount("/proc", "proc")], foreign=foreign).written(Path(folder, "trial"))
        done = subprocess.run(
            [*enclosed(trial), "/bin/sh", "-c", ":"], capture_output=True, text=True, check=False
        )
    if done.returncode == 0:
        return None
    last = done.stderr.strip().splitlines()[-1:] or ["no message"]
    return f"this kernel or container refuses namespaces{' for aarch64' if foreign else ''}: {last[0]}"


def main(arguments: Sequence[str]) -> int:
    """Run `arguments[1:]` in the enclosure of the file `arguments[0]`; return its exit code."""
    data = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    mounts = [Mount(**each) for each in data.pop("mounts")]
    return run(Enclosure(mounts=mounts, **data), arguments[1:])


def run(enclosure: Enclosure, command: Sequence[str]) -> int:
    """Run it; when it ends, or this process does, so does all that it started. Returns its exit code.

    What a namespace is refused for goes to stderr, with exit code 1.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # so that the last process inside is waited for, whoever started it
    ready, go = os.pipe(), os.pipe()
    opener = os.fork()
    if opener == 0:
        _exit_with(lambda: _open(enclosure, command, ready[1], go[0]))

    def end(number: int, frame: FrameType | None) -> None:
        os.kill(opener, signal.SIGKILL)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    os.close(ready[1])
    if os.read(ready[0], 1) and enclosure.foreign:
        # Identity: files belong inside to whom they belong outside. Only root outside may say so.
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{opener}/{name}").write_text("0 0 65536", encoding="ascii")
    os.write(go[1], b"x")
    status = 0
    with suppress(ChildProcessError):
        while True:
            pid, ended = os.wait()
            status = ended if pid == opener else status
    return _code(status)


def _open(enclosure: Enclosure, command: Sequence[str], ready: int, go: int) -> int:
    """Make the namespaces, and wait for their first process."""
    users = _NEW_USERS if enclosure.foreign else 0
    _require(_libc().unshare(_NEW_MOUNTS | _NEW_HOST_NAME | _NEW_PROCESSES | users), "unshare")
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.write(ready, b"x")
    os.read(go, 1)
    if enclosure.foreign:
        os.setgid(0)
        os.setuid(0)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # a change of user forgets it
    first = os.fork()
    if first == 0:
        _exit_with(lambda: _be_first(enclosure, command))
    return _code(os.waitpid(first, 0)[1])


def _be_first(enclosure: Enclosure, command: Sequence[str]) -> int:
    """Process 1: what it leaves behind when it ends, the kernel ends. It takes in orphans until the command ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _furnish(enclosure)
    child = os.fork()
    if child == 0:
        _exit_with(lambda: _become(enclosure, command))
    while True:
        pid, status = os.wait()
        if pid == child:
            return _code(status)


def _furnish(enclosure: Enclosure) -> None:
    _mount("none", "/", None, _RECURSIVE | _PRIVATE)
    name = enclosure.hostname.encode()
    _require(_libc().sethostname(name, len(name)), f"sethostname {enclosure.hostname}")
    if enclosure.foreign:
        _mount("proc", "/proc", "proc", 0)
        _mount("binfmt_misc", "/proc/sys/fs/binfmt_misc", "binfmt_misc", 0)
        emulator = (shutil.which(EMULATOR) or EMULATOR).encode()
        # Opened now and kept (F): there is no emulator below the new root.
        rule = b":toggle-edge-aarch64:M::" + _MAGIC + b":" + _MASK + b":" + emulator + b":POCF"
        Path("/proc/sys/fs/binfmt_misc/register").write_bytes(rule)
    root = enclosure.root or ""
    # Opened before anything is mounted, which may hide them.
    sources = {each.source: os.open(each.source, os.O_PATH) for each in enclosure.mounts if each.kind == BIND}
    for mount in enclosure.mounts:
        target = Path(root + mount.target)
        if mount.kind != BIND:
            target.mkdir(parents=True, exist_ok=True)
            _mount(mount.kind, str(target), mount.kind, 0, mount.options)
            continue
        source = f"/proc/self/fd/{sources[mount.source]}"
        if Path(source).is_dir():
            target.mkdir(parents=True, exist_ok=True)
        elif not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
        _mount(source, str(target), None, _BIND | _RECURSIVE)
        if mount.read_only:
            locked = os.statvfs(target).f_flag & _LOCKED
            _mount("none", str(target), None, _REMOUNT | _BIND | _READ_ONLY | locked)
    for descriptor in sources.values():
        os.close(descriptor)
    if root:
        os.chroot(root)
    os.chdir("/")


def _become(enclosure: Enclosure, command: Sequence[str]) -> int:
    if enclosure.uid is not None:
        for capability in range(_LAST_CAPABILITY + 1):
            _libc().prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # refuses those that this kernel has not
        os.setgroups([])
        os.setresgid(enclosure.uid, enclosure.uid, enclosure.uid)
        os.setresuid(enclosure.uid, enclosure.uid, enclosure.uid)
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    os.execve(command[0], list(command), dict(enclosure.environment))  # noqa: S606 - there may be no shell inside


def _mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    given = [None if text is None else text.encode() for text in (source, target, kind)]
    done = _libc().mount(*given, ctypes.c_ulong(flags), options.encode() or None)
    _require(done, f"mount {source} at {target}")


def _prctl(option: int, value: int) -> None:
    _require(_libc().prctl(option, value, 0, 0, 0), f"prctl {option}")


def _require(returned: int, what: str) -> None:
    if returned != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _exit_with(work: Callable[[], int]) -> NoReturn:
    # Never into the caller's code again: this is a copy of its process.
    try:
        os._exit(work())
    except BaseException as exc:
        os.write(2, f"{type(exc).__name__}: {exc}\n".encode())
        os._exit(1)


def _code(status: int) -> int:
    return os.waitstatus_to_exitcode(status) & 255


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
