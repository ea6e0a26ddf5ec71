"""The files through which a kernel tells of itself (`/proc`, `/sys`), below a root that may be another one.

Everything that reads hardware is given a tree, so that a simulated board is the same code on other files.
"""

import os
import threading
import weakref
from pathlib import Path
from typing import Dict, List, Optional

DEVICE_TREE = "proc/device-tree/compatible"
PAGE_BYTES = 4096
"""A file of sysfs that shows one value is never longer."""


class Tree:
    """Paths are relative to the root and have no leading slash: `sys/class/hwmon`."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._kept: Dict[str, int] = {}
        self._lock = threading.Lock()
        weakref.finalize(self, _close, self._kept)

    def text(self, path: str) -> str:
        """The whole file, stripped. Raises OSError; bytes that are not UTF-8 are replaced."""
        return (self._root / path).read_bytes().decode("utf-8", "replace").strip()

    def reread(self, path: str) -> str:
        """As `text`, the first 4096 bytes, for files that are read many times a second: opened once and read in place,
        since opening costs more than reading, and what a meter takes is taken from what it measures.

        Reading sysfs from its beginning asks the driver again (Documentation/filesystems/sysfs.rst). A file that fails
        is opened anew by the next read: its driver may have gone and come back.
        """
        with self._lock:
            descriptor = self._kept.get(path)
            if descriptor is None:
                descriptor = self._kept[path] = os.open(str(self._root / path), os.O_RDONLY)
            try:
                return os.pread(descriptor, PAGE_BYTES, 0).decode("utf-8", "replace").strip()
            except OSError as exc:
                os.close(self._kept.pop(path))
                exc.filename = str(self._root / path)
                raise

    def head(self, path: str, size: int) -> bytes:
        """At most the first `size` bytes. Empty when it cannot be read."""
        try:
            with (self._root / path).open("rb") as stream:
                return stream.read(size)
        except OSError:
            return b""

    def glob(self, pattern: str) -> List[str]:
        """Paths that match, sorted. Empty when there are none, or when they may not be listed."""
        try:
            return sorted(str(path.relative_to(self._root)) for path in self._root.glob(pattern))
        except OSError:
            return []

    def write(self, path: str, text: str) -> None:
        """Raises OSError. Nothing is created: a file of the kernel is there, or it is not."""
        with (self._root / path).open("r+b", buffering=0) as stream:
            stream.write(text.encode("ascii"))

    def integer(self, path: str, again: bool = False) -> int:
        """`again` where it is read many times a second (`reread`). Raises OSError, or ValueError naming the file when
        it does not hold an integer."""
        text = self.reread(path) if again else self.text(path)
        try:
            return int(text)
        except ValueError:
            raise ValueError(f"/{path}: expected an integer, got {text[:40]!r}") from None

    def known(self, path: str) -> Optional[str]:
        """The text, or None when it cannot be read or is empty."""
        try:
            return self.text(path) or None
        except OSError:
            return None

    def compatible(self) -> List[str]:
        """What the device tree says the board is compatible with, the most specific first; empty without one."""
        return [each for each in (self.known(DEVICE_TREE) or "").split("\0") if each]


def _close(kept: Dict[str, int]) -> None:
    for descriptor in kept.values():
        os.close(descriptor)
