"""The device's content-addressed store, and durable writes.

`arrivals` verifies blobs and renames them into `blobs/sha256/<digest>`. Only verified content is ever found under a
digest; a run verifies it again, since disks rot.
"""

import errno
import hashlib
import os
import shutil
import stat
from pathlib import Path
from typing import Optional

from toggle_runtime.manifests import Blob

_CHUNK = 128 << 10


def blob_path(root: Path, digest: str) -> Path:
    return root / "blobs" / "sha256" / digest


def blob_of(path: Path) -> Blob:
    """Digest and size of a file. Raises OSError."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as stream:
        for chunk in iter(lambda: stream.read(_CHUNK), b""):
            digest.update(chunk)
            size += len(chunk)
    return Blob(digest.hexdigest(), size)


def mismatch(path: Path, blob: Blob) -> Optional[str]:
    """None when the file at `path` is exactly `blob`; otherwise what was expected and what is there."""
    expected = f"expected sha256 {blob.sha256} ({blob.size} bytes)"
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode):
            # A link may lead elsewhere once it was looked at, and a pipe would never end.
            return f"{expected}, got no plain file"
        size = found.st_size
        if size != blob.size:
            return f"{expected}, got {size} bytes"
        there = blob_of(path)
    except OSError as exc:
        return f"{expected}, got no readable file: {exc.strerror}"
    return None if there == blob else f"{expected}, got sha256 {there.sha256}"


def place(source: Path, target: Path) -> None:
    """Hard-link `source` to `target`, or copy it where links are denied (FAT, Android's shared storage)."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def write_durably(path: Path, data: bytes) -> None:
    """Replace the file at `path` so that a power cut leaves either the old content or the new."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        if temporary.exists():
            temporary.unlink()
        raise
    sync_folder(path.parent)


def describe(exc: OSError, root: Path) -> str:
    """What went wrong on the device's file system, and for a full one what to do."""
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(str(next(each for each in (root, *root.parents) if each.exists()))).free
        return (
            f"the disk that holds {root} is full ({free} bytes free): {exc}; free some space there, or choose "
            "another `root` in the device file, then repeat"
        )
    return f"{type(exc).__name__}: {exc}"


def sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


sync_folder = sync_file  # a folder is synced like a file, through a read-only descriptor
