"""The files through which a kernel tells of itself (`/proc`, `/sys`), below a root that may be another one.

Everything that reads hardware is given a tree, so that a simulated board is the same code on other files.
"""

from pathlib import Path
from typing import List, Optional

DEVICE_TREE = "proc/device-tree/compatible"


class Tree:
    """Paths are relative to the root and have no leading slash: `sys/class/hwmon`."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def text(self, path: str) -> str:
        """The whole file, stripped. Raises OSError; bytes that are not UTF-8 are replaced."""
        return (self._root / path).read_bytes().decode("utf-8", "replace").strip()

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

    def integer(self, path: str) -> int:
        """Raises OSError, or ValueError naming the file when it does not hold an integer."""
        text = self.text(path)
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
