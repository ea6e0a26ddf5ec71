"""Where what can be made again is kept between commands: wheels for devices, skeletons of models, layers, baselines."""

from __future__ import annotations

import fcntl
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from toggle_edge.errors import ConfigError

BASELINES_GB = 20.0
"""What stored baselines may take together unless `$TOGGLE_EDGE_BASELINES_GB` says otherwise."""

INDEX, PARTIAL = "index.json", ".partial"


def cache_folder() -> Path:
    """`$TOGGLE_EDGE_CACHE`, or `~/.cache/toggle-edge`. Its content may be deleted at any time."""
    return Path(os.environ.get("TOGGLE_EDGE_CACHE") or Path.home() / ".cache" / "toggle-edge")


def baselines_folder() -> Path:
    """Where the outputs of baselines lie."""
    return cache_folder() / "baselines"


def baselines_bytes() -> int:
    """How many bytes stored baselines may take together. Raises ConfigError for what is not a number of GB."""
    text = os.environ.get("TOGGLE_EDGE_BASELINES_GB") or str(BASELINES_GB)
    try:
        size = float(text)
    except ValueError:
        size = math.nan
    if not 0.0 <= size < math.inf:
        raise ConfigError(f"TOGGLE_EDGE_BASELINES_GB: expected a number of GB such as 20, or 0, got {text!r}")
    return int(size * 1e9)


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a lock file, whose folder is made; the kernel lets go of what a killed process held.

    Raises OSError where it cannot be written, and BlockingIOError when another holds it and `wait` is False.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def trim(folder: Path, most_bytes: int) -> None:
    """Delete entries, `folder/??/name/`, those used longest ago first, until the rest take at most `most_bytes`.

    An entry was used when its index was last touched. Deleting one that a process has mapped does no harm. What killed
    processes left half made goes too.
    """
    found = []
    for index in folder.glob(f"??/*/{INDEX}"):
        # Another process may delete it at the same time.
        with suppress(OSError):
            size = sum(path.stat().st_size for path in index.parent.iterdir())
            found.append((index.stat().st_mtime_ns, size, index))
    total = sum(size for _, size, _ in found)
    for _, size, index in sorted(found):
        if total <= most_bytes:
            break
        discard(index.parent)
        total -= size
    for partial in folder.glob(f"??/*{PARTIAL}"):
        with suppress(OSError), locked(partial.parent / "lock", wait=False):
            shutil.rmtree(partial, ignore_errors=True)


def discard(entry: Path) -> None:
    """Delete an entry, its index first: without one nobody takes the rest for whole."""
    with suppress(OSError):
        (entry / INDEX).unlink()
    shutil.rmtree(entry, ignore_errors=True)
