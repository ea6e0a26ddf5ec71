"""The kernel's page cache of files: let go of it, and see what of it is still there. Standard library only.

To measure a load from storage needs no root: clean pages of one's own files may be dropped by advice. It is advice, so
what stayed is looked at, never assumed.
"""

import os
from pathlib import Path
from typing import Iterable, List, Optional

_LOOKS = 64
"""Places of a file that are looked at: enough to see whether a twentieth of it stayed."""


def drop(files: Iterable[Path]) -> None:
    """Write back what is dirty, then advise the kernel to drop the pages of `files`. Raises OSError."""
    for path in files:
        descriptor = os.open(str(path), os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def resident_share(files: Iterable[Path]) -> Optional[float]:
    """The share, 0 to 1, of the looked-at places that could be read without waiting for storage, weighted by size.

    None where the kernel or the file system does not tell (before Linux 4.14, macOS, some overlays).
    """
    total = resident = 0.0
    for path in files:
        size = path.stat().st_size
        if size == 0:
            continue
        try:
            found = _looked_at(path, size)
        except (OSError, AttributeError):
            return None
        total += size
        resident += size * sum(found) / len(found)
    return resident / total if total else None


def _looked_at(path: Path, size: int) -> List[bool]:
    descriptor, found = os.open(str(path), os.O_RDONLY), []
    try:
        # From the end, since to read a place makes the kernel read ahead of it.
        for look in range(min(_LOOKS, -(-size // 4096)) - 1, -1, -1):
            offset = size * look // _LOOKS // 4096 * 4096 if size > _LOOKS * 4096 else look * 4096
            try:
                os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT)
                found.append(True)
            except BlockingIOError:
                found.append(False)
    finally:
        os.close(descriptor)
    return found
