"""The device of the fault suite: a real sshd and the real agent, on a disk, with a boot id and a clock of its own.

What needs no privileges always works. As root, in a mount namespace of our own, the disk is a small tmpfs that can run
full and turn read-only, and sshd's processes see a boot id that we change. The clock that jumps is the agent's
interpreter: `python` in the device file is a script that shifts `time.time` by what a file says, and runs the agent.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from aftermath import processes_of

from toggle_edge.fleet.device_files import device_text
from toggle_edge.fleet.sshd import LoopbackSshd, sshd_path

OWN_MOUNTS = "TOGGLE_EDGE_FAULTS_OWN_MOUNTS"
"""Set where this process has a mount namespace of its own."""

_DISK_BYTES = 2 << 30
_BOOT_ID = "/proc/sys/kernel/random/boot_id"

_SHIFTED = """\
import os, runpy, sys, time

real_time, real_utime = time.time, os.utime

def shifted():
    with open({clock!r}) as stream:
        return real_time() + float(stream.read() or 0)

def utime(path, times=None, **more):
    return real_utime(path, (shifted(), shifted()) if times is None and not more else times, **more)

arguments = [each for each in sys.argv[1:] if each not in ("-I", "-S")]
if not arguments[0].endswith(".pyz"):
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
time.time, os.utime = shifted, utime
sys.argv = arguments
runpy.run_path(arguments[0], run_name="__main__")
"""


class FaultyDevice:
    """Context manager: the device, in `folder`. What is under `root` may be thrown away and laid out anew."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.disk = self.folder / "disk"
        self.root = self.disk / "device"
        self.has_disk = os.environ.get(OWN_MOUNTS) == "1"
        self._bin = self.folder / "bin"
        self._clock = self.folder / "clock"
        self._boot_id = self.folder / "boot_id"
        self._sshd = LoopbackSshd(self.folder / "sshd", "faulty")

    def __enter__(self) -> Self:
        self.disk.mkdir(parents=True)
        self._bin.mkdir()
        self.set_clock(0.0)
        self._boot_id.write_text(f"{uuid.uuid4()}\n")
        self._script("python", f'exec {sys.executable} -I -S {self._bin / "shifted.py"} "$@"')
        (self._bin / "shifted.py").write_text(_SHIFTED.format(clock=str(self._clock)))
        if self.has_disk:
            self._mount("-t", "tmpfs", "-o", f"size={_DISK_BYTES},mode=755", "tmpfs", self.disk)
            inner = f'mount --bind {self._boot_id} {_BOOT_ID} && exec {sshd_path()} "$@"'
            self._script("sshd", f"exec unshare -m --propagation slave sh -c '{inner}' sshd \"$@\"")
            os.environ["PATH"] = f"{self._bin}{os.pathsep}{os.environ['PATH']}"
        self._sshd.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self._sshd.__exit__(kind, value, trace)
        if self.has_disk:
            subprocess.run(["umount", "-l", self.disk], check=True)  # noqa: S607

    @property
    def port(self) -> int:
        return self._sshd.device.port

    def write_file(self, path: Path, port: int, *, shifted: bool) -> None:
        """The device file, as the host is to read it: through the link at `port`; `shifted`: with our clock."""
        python = str(self._bin / "python") if shifted else sys.executable
        device = dataclasses.replace(self._sshd.device, port=port, root=str(self.root), python=python)
        path.write_text(device_text(device), encoding="utf-8")

    def keep(self, name: str) -> None:
        """Remember what is on the device now as `name`."""
        shutil.rmtree(self.disk / name, ignore_errors=True)
        self._copy(self.root, self.disk / name)

    def lay_out(self, name: str) -> None:
        """Put on the device what was kept as `name`; nothing, where nothing was."""
        shutil.rmtree(self.root, ignore_errors=True)
        if (self.disk / name).is_dir():
            self._copy(self.disk / name, self.root)

    def used_bytes(self) -> int:
        found = os.statvfs(self.disk)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def leave(self, free_bytes: int) -> None:
        """Make the disk so small that `free_bytes` are free."""
        self._mount("-o", f"remount,size={self.used_bytes() + free_bytes}", self.disk)

    def make_room(self) -> None:
        self._mount("-o", f"remount,rw,size={_DISK_BYTES}", self.disk)

    def make_read_only(self) -> bool:
        """Whether the disk could be made read-only: not while somebody writes there."""
        done = subprocess.run(["mount", "-o", "remount,ro", self.disk], capture_output=True, check=False)  # noqa: S607
        return done.returncode == 0

    def set_clock(self, ahead_s: float) -> None:
        partial = self._clock.with_suffix(".new")
        partial.write_text(str(ahead_s))
        partial.replace(self._clock)  # the agent reads it at every moment

    def processes(self, word: str = "") -> dict[int, str]:
        """Agents and workers on the device, those with `word` in their command."""
        found = processes_of(self.root)
        return {pid: command for pid, command in found.items() if not word or word in command.split()}

    def kill(self, word: str = "") -> int:
        """Kill the device's processes, those with `word` in their command; return how many there were."""
        found = self.processes(word)
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(found)

    def reboot(self) -> None:
        """All that runs there ends at once, and the kernel is another one."""
        while self.kill():
            time.sleep(0.02)
        self._boot_id.write_text(f"{uuid.uuid4()}\n")

    def _script(self, name: str, line: str) -> None:
        path = self._bin / name
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)

    def _copy(self, source: Path, target: Path) -> None:
        # Environments are large and nobody writes into them; links of the rest among each other are kept. Runs came
        # home already, to a home that is gone.
        target.mkdir()
        others = [path for path in source.iterdir() if path.name not in ("environments", "runs")]
        subprocess.run(["cp", "-a", *others, f"{target}/"], check=True)  # noqa: S607
        if (source / "environments").is_dir():
            subprocess.run(["cp", "-al", source / "environments", f"{target}/"], check=True)  # noqa: S607

    def _mount(self, *arguments: str | Path) -> None:
        subprocess.run(["mount", *map(str, arguments)], check=True)  # noqa: S607


def in_own_mounts(arguments: list[str]) -> None:
    """Begin this program again in a mount namespace of its own, where we may: what it mounts then ends with it."""
    if os.environ.get(OWN_MOUNTS) is not None or os.getuid() != 0 or shutil.which("unshare") is None:
        return
    probe = ["unshare", "-m", "--propagation", "private"]
    allowed = subprocess.run([*probe, "true"], capture_output=True, check=False).returncode == 0
    os.environ[OWN_MOUNTS] = "1" if allowed else "0"
    if allowed:
        os.execvp(probe[0], [*probe, sys.executable, *arguments])  # noqa: S606
