"""How much memory this process may still take: the machine's, or less where a control group limits it."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

_NO_LIMIT = 2**60
"""Version 1 writes about 2**63 where there is no limit."""


def available_bytes(root: Path = Path("/")) -> int | None:
    """What can be had without swapping or being killed; None where the system does not say.

    The least of `MemAvailable` and, for the process's memory control group and each one above it, its limit less what
    it uses; files that are cached can be dropped and do not count as used. Both versions of control groups are read.
    """
    found = [_meminfo(_text(root / "proc/meminfo"))]
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if "memory" in controllers.split(","):
            mount, names = (
                root / "sys/fs/cgroup/memory",
                ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
            )
        elif not controllers:
            mount, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "")
        else:
            continue
        # In a container the path is the host's and may not be there; the container's own group is the mount itself.
        parts = [part for part in path.split("/") if part]
        for depth in range(len(parts), -1, -1):
            found.append(_room(mount.joinpath(*parts[:depth]), *names))
    known = [value for value in found if value is not None]
    return max(0, min(known)) if known else None


_MMAP_THRESHOLD = -3  # of mallopt(3)
_LARGE, _SMALLER, _MANY_WEIGHTS = 4 * 2**20, 2**20, 16_000_000


def give_large_blocks_back(weights: int) -> None:
    """Let freed blocks of 4 MiB and more, 1 MiB for models of many weights, go back to the system at once.

    glibc raises its own limit to 32 MiB as it sees such blocks freed, and then keeps hundreds of them in pieces. Fresh
    memory costs time, which small models would notice. Other C libraries have no such setting and are left alone.
    """
    library: Any = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_MMAP_THRESHOLD, _SMALLER if weights >= _MANY_WEIGHTS else _LARGE)


def give_back() -> None:
    """Return what was freed in small pieces to the system."""
    library: Any = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def _room(group: Path, limit: str, usage: str, prefix: str) -> int | None:
    most, used = _text(group / limit).strip(), _text(group / usage).strip()
    if not most.isdigit() or int(most) >= _NO_LIMIT or not used.isdigit():
        return None
    statistics = dict(
        line.split()[:2] for line in _text(group / "memory.stat").splitlines() if line.count(" ") == 1
    )
    cached = sum(int(statistics.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
    return int(most) - int(used) + cached


def _meminfo(text: str) -> int | None:
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
