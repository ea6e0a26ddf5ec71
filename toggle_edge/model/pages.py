"""Pages of a mapped file that have been read: given back, so that a large model's file does not gather in memory."""

from __future__ import annotations

import ctypes
import mmap
from collections import deque
from pathlib import Path
from typing import Any

import torch

KEPT_BYTES = 128 * 2**20
"""What was read last stays up to this size; of what lies further back most has been used."""


class Pages:
    """Where a file is mapped into this process, and what of it was read.

    What is given back is read from the file again when it is used again: that costs time and changes nothing. Where
    the system does not say where files are mapped, nothing is given back.
    """

    def __init__(self, path: Path, *, kept_bytes: int = KEPT_BYTES) -> None:
        self._path, self._most = path.resolve(), kept_bytes
        self._spans: list[tuple[int, int]] | None = None
        self._read: deque[tuple[int, int]] = deque()
        self._bytes = 0

    def note(self, values: torch.Tensor) -> None:
        """Say that these values were read, as a view into the file. Others are left alone."""
        if self._spans is None:
            self._spans = _mapped(self._path)
        start, end = values.data_ptr(), values.data_ptr() + values.nbytes
        # Memory that is no file's would lose its content.
        if not any(low <= start and end <= high for low, high in self._spans):
            return
        self._read.append((start, end))
        self._bytes += end - start
        while self._bytes > self._most and len(self._read) > 1:
            low, high = self._read.popleft()
            self._bytes -= high - low
            _drop(low, high)


def _drop(start: int, end: int) -> None:
    first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    library: Any = ctypes.CDLL(None)
    if last > first:
        library.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)


def _mapped(path: Path) -> list[tuple[int, int]]:
    """The spans of addresses at which a file is mapped."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        addresses, *_, name = [*line.split(maxsplit=5), ""][:6]
        if name == str(path):
            low, high = addresses.split("-")
            found.append((int(low, 16), int(high, 16)))
    return found
