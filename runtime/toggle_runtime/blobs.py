"""The device's content-addressed store, and durable writes.

Blobs arrive as `incoming/<digest>.part`, are verified, and are renamed into `blobs/sha256/<digest>`. Only
verified content is ever found under a digest; a run verifies it again, since disks rot.
"""

import errno
import hashlib
import os
import shutil
import stat
from pathlib import Path
from typing import Any, Dict, List, Optional

from toggle_runtime.records import Blob

_CHUNK = 128 << 10


def blob_path(root: Path, digest: str) -> Path:
    return root / "blobs" / "sha256" / digest


def part_path(root: Path, digest: str) -> Path:
    return root / "incoming" / f"{digest}.part"


def missing(root: Path, digests: List[str]) -> Dict[str, Any]:
    """Which of `digests` are not stored, and how many bytes of each have already arrived."""
    (root / "incoming").mkdir(parents=True, exist_ok=True)
    absent = [digest for digest in digests if not _touched(blob_path(root, digest))]
    parts = {digest: part_path(root, digest) for digest in absent}
    for part in parts.values():
        _give_back(part)
    partial = {digest: part.stat().st_size for digest, part in parts.items() if part.is_file()}
    return {"missing": absent, "partial": partial}


def _touched(path: Path) -> bool:
    """Whether the file is there; if so it counts as used now, so that it is not collected before it is."""
    try:
        os.utime(str(path))
    except FileNotFoundError:
        return False
    return path.is_file()


def commit(root: Path, blobs: List[Blob]) -> Dict[str, Any]:
    """Verify each incoming part and publish it. A part that does not match is deleted and `refused`."""
    (root / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
    committed, refused = [], []
    for blob in blobs:
        part, final = part_path(root, blob.sha256), blob_path(root, blob.sha256)
        if not part.exists() and mismatch(final, blob) is None:
            committed.append(blob.sha256)
            continue
        # Taken away before it is looked at: another host that begins to send the same blob empties the part first.
        taken = part.with_name(f"{part.name}.{os.getpid()}.tmp")
        problem = _take(part, taken) or mismatch(taken, blob)
        if problem is not None:
            if taken.exists():
                taken.unlink()
            refused.append({"sha256": blob.sha256, "message": problem})
            continue
        sync_file(taken)
        taken.chmod(0o444)  # runs hard-link blobs, and a run must not change what others share
        taken.replace(final)
        committed.append(blob.sha256)
    sync_folder(root / "blobs" / "sha256")
    return {"committed": committed, "refused": refused}


def _take(part: Path, taken: Path) -> Optional[str]:
    try:
        os.utime(str(part))  # young, so that no sweep takes it while it is read
        part.replace(taken)
    except FileNotFoundError:
        return "nothing has arrived"
    return None


def _give_back(part: Path) -> None:
    """A part that an agent was verifying when it was killed is a part again: nothing is sent twice for that."""
    for taken in part.parent.glob(f"{part.name}.*.tmp"):
        owner = taken.name.split(".")[-2]
        if owner.isdigit() and not _lives(int(owner)) and not part.exists():
            taken.replace(part)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's, so none of our agents
        return False
    return True


def discard(root: Path, digests: List[str]) -> Dict[str, Any]:
    """Remove what has arrived of these blobs: a host that gives up leaves no part on a disk that is full."""
    for digest in digests:
        part = part_path(root, digest)
        if part.exists():
            part.unlink()
    return {}


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
