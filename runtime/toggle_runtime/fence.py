"""The number that only grows, and the lock for moments under which it is read, raised and relied upon."""

import fcntl
import os
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

from toggle_runtime.blobs import write_durably
from toggle_runtime.wire import RequestError

_GUARD_S = 15.0
"""Nothing takes long under the guard but a durable write, which a worn card may hold up for seconds."""


class GuardError(RequestError):
    """Somebody has the guard for longer than anything takes."""


@contextmanager
def guard(root: Path) -> Iterator[None]:
    """A lock for moments, of the folder itself: who takes the lease, or writes under it, does so alone.

    Raises GuardError where somebody has it for longer than anything takes.
    """
    descriptor = os.open(str(root), os.O_RDONLY)
    try:
        deadline = time.monotonic() + _GUARD_S
        while not locked(descriptor):
            if time.monotonic() > deadline:
                raise GuardError(
                    "lease",
                    f"{root}: another agent has been taking the lease or writing for {_GUARD_S:g} s; if its process "
                    "is stopped, end it there, and try again",
                )
            time.sleep(0.005)
        yield
    finally:
        os.close(descriptor)


def locked(descriptor: int) -> bool:
    """Have the kernel's lock of an open file, or not, without waiting."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def granted(root: Path) -> int:
    """The latest token; 0 before the first. Raises RequestError where the file is damaged."""
    path = root / "fence"
    try:
        text = path.read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError:
        return 0
    if not (text.isdigit() and len(text) < 20):
        raise RequestError(
            "lease",
            f"{path}: expected a whole number, got {text[:20]!r}; remove the file when no run is under way",
        )
    return int(text)


def grant(root: Path) -> int:
    """The next token, on the disk before anybody uses it: after a power cut none is given twice. Under the guard."""
    token = granted(root) + 1
    write_durably(root / "fence", f"{token}\n".encode("ascii"))
    return token
