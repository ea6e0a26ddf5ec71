"""A work folder that belongs to one process at a time, and is clean of what killed ones left half-written."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from toggle_edge.errors import WorkspaceError

LOCK = ".lock"
LEFTOVERS = (".export-*", ".parity-*", ".skeleton-*", "*.partial")
"""Names that are only ever temporary: a process that ends renames them away or removes them."""

_DEPTH = 3


@contextmanager
def workspace(folder: Path) -> Iterator[Path]:
    """Hold `folder`, made if need be, for the length of the block; yield its absolute path.

    The lock is the kernel's, so a killed process holds nothing. Raises WorkspaceError when another process
    works there or the folder cannot be written, also for a full disk inside the block.
    """
    folder = folder.absolute()
    with naming_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _lock(descriptor, folder)
        with naming_errors(folder):
            sweep(folder)
            yield folder
    finally:
        os.close(descriptor)


@contextmanager
def naming_errors(folder: Path) -> Iterator[None]:
    """Turn an OSError that concerns the disk or the rights of `folder` into a WorkspaceError that says so."""
    try:
        yield
    except OSError as exc:
        remedies = {
            errno.ENOSPC: "the disk is full: free some space, then repeat; what was recorded is kept",
            errno.EDQUOT: "the quota is used up: free some space, then repeat; what was recorded is kept",
            errno.EROFS: "the disk is read-only: choose another folder",
            errno.EACCES: "permission denied: choose a folder of yours",
            errno.EPERM: "not permitted: choose a folder of yours",
            errno.ENOTDIR: "a part of the path is a file: choose another folder",
            errno.EEXIST: "a file has this name: choose another folder",
        }
        remedy = remedies.get(exc.errno or 0)
        if remedy is None:
            raise
        raise WorkspaceError(f"work folder {folder}: {remedy} ({exc})") from exc


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-written in `folder`. Call it under the lock only."""
    for depth in range(_DEPTH):
        for pattern in LEFTOVERS:
            for path in folder.glob("/".join(["*"] * depth + [pattern])):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        holder = os.pread(descriptor, 4096, 0).decode("utf-8", "replace").strip() or "one that just started"
        raise WorkspaceError(
            f"work folder {folder}: another toggle-edge works there ({holder}); wait for it, or choose another folder"
        ) from exc
    text = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": int(time.time())})
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)
