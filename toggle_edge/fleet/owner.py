"""Who holds a device's lease, in words that another process of ours can check: is that process still alive?

A host that is killed leaves its run going on the device. The next command on the same host may end that run,
because it can see that nobody waits for it; it must not end the run of a process that is alive.
"""

from __future__ import annotations

import getpass
import os
import re
import socket
from pathlib import Path

_OWNER = re.compile(r"(?P<who>.+):(?P<pid>\d+):(?P<start>\d+)")


def this_process() -> str:
    """`user@host:pid:start`, where `start` is the kernel's clock tick at which the process began."""
    return f"{_who()}:{os.getpid()}:{_start(os.getpid())}"


def is_gone(owner: str) -> bool:
    """Whether `owner` was a process of this user on this host that does not run any more. False when in doubt."""
    match = _OWNER.fullmatch(owner)
    if match is None or match["who"] != _who() or match["start"] == "0":
        return False
    return _start(int(match["pid"])) != int(match["start"])


def _who() -> str:
    return f"{getpass.getuser()}@{socket.gethostname()}"


def _start(pid: int) -> int:
    """Field 22 of `/proc/PID/stat`; 0 where there is no such process, or no `/proc`."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    # The command's name, in parentheses, may hold spaces and parentheses itself.
    fields = text.rpartition(")")[2].split()
    return 0 if fields[0] in "ZX" else int(fields[19])
