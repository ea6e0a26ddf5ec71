"""Which process is meant by a number, in which boot, and its certain end."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable


@dataclass(frozen=True)
class Clock:
    """Seconds that never go back within one boot, and which boot it is."""

    now: Callable[[], float]
    boot: Callable[[], str]


def boot_id() -> str:
    """Names this boot of the kernel; `unknown` where it has no name."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"


CLOCK = Clock(time.monotonic, boot_id)


def started(pid: int) -> int:
    """The kernel's clock tick at which a process began, by which it is told from others of its number; 0 where that
    cannot be read."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        # The command's name, in parentheses, may hold spaces and parentheses itself.
        return int(text.rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def end(pid: object, start: object) -> bool:
    """Kill the process of this number, if it is the one that began then and not ourselves; whether it was killed."""
    if not isinstance(pid, int) or pid <= 1 or pid == os.getpid() or not start or started(pid) != start:
        return False
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return False
    return True
