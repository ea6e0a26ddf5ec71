"""Why a process died of a signal that the agent did not send: the kernel's word for it, where it gives one.

A process that needs more memory than there is gets SIGKILL and cannot say a thing; only the kernel's counters,
taken before and compared after, tell that death from any other.
"""

import signal
from pathlib import Path
from typing import Dict, Optional

_NO_LIMIT = 1 << 60
"""Version 1 groups without a limit report one near 2**63, rounded down to a page."""


def oom_kills() -> Dict[str, int]:
    """How many processes the kernel has killed for lack of memory, by each counter that can be read.

    The machine's counter counts since the start, a control group's those of the group this process is in.
    """
    group = _memory_group()
    counters = {"machine": _number("/proc/vmstat", "oom_kill")}
    if group is not None:
        counters["group"] = _number(f"{group}/memory.events", "oom_kill")
        if counters["group"] is None:
            counters["group"] = _number(f"{group}/memory.oom_control", "oom_kill")
    return {name: count for name, count in counters.items() if count is not None}


def why_killed(number: int, before: Dict[str, int]) -> str:
    """Says what killed a worker with that signal; `before` are the `oom_kills` from when it was started."""
    if number != signal.SIGKILL:
        return f"the worker was killed by {_name(number)}"
    after = oom_kills()
    remedy = "choose a candidate with fewer bytes, or stop other programs on the device"
    if any(after.get(name, 0) > count for name, count in before.items()):
        return f"the worker was killed by the kernel for lack of memory ({_memory()}); {remedy}"
    told = (
        "the kernel counts no kill for lack of memory" if before else "the kernel counts no such kills here"
    )
    return f"the worker was killed by SIGKILL, not by the agent ({told}; {_memory()}); if memory ran short, {remedy}"


def memory_limit() -> Optional[int]:
    """Bytes that this process's control group may use; None without a limit, or where none can be read."""
    group = _memory_group()
    if group is None:
        return None
    for name in ("memory.max", "memory.limit_in_bytes"):
        text = _text(f"{group}/{name}").strip()
        if text.isdigit():
            return int(text) if int(text) < _NO_LIMIT else None
    return None


def _memory() -> str:
    free, limit = _number("/proc/meminfo", "MemAvailable:"), memory_limit()
    known = [] if free is None else [f"{free >> 10} MiB are free now"]
    if limit is not None:
        known.append(f"the agent's control group may use {limit >> 20} MiB")
    return ", ".join(known) or "how much memory is free cannot be read"


def _memory_group() -> Optional[str]:
    for line in _text("/proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers and Path("/sys/fs/cgroup/cgroup.controllers").exists():
            return f"/sys/fs/cgroup{path.rstrip('/')}"
        if "memory" in controllers.split(","):
            return f"/sys/fs/cgroup/memory{path.rstrip('/')}"
    return None


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no name
        return f"signal {number}"


def _number(path: str, key: str) -> Optional[int]:
    for line in _text(path).splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == key and words[1].isdigit():
            return int(words[1])
    return None


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
