"""Blobs on their way into the store: each is hashed as it arrives, and published when it is what it should be.

What has arrived of one lies at `incoming/<digest>.part` and stays there when the link is lost or the agent is killed. A
part is held by a file lock, so that nobody writes into what another one publishes, and a dead holder does not block.
"""

import errno
import fcntl
import hashlib
import os
import stat
import threading
from pathlib import Path
from typing import Optional, Tuple, Union

from toggle_runtime.blobs import blob_path
from toggle_runtime.manifests import Blob

_SYNC_BYTES = 32 << 20
_CHUNK = 128 << 10
_TRIES = 10


class Arrival:
    """The part of one blob, ours while this is open. `at` bytes of it are there. Methods raise OSError."""

    def __init__(self, root: Path, blob: Blob) -> None:
        self.blob = blob
        self._final = blob_path(root, blob.sha256)
        self._final.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._descriptor = _hold(root / "incoming" / f"{blob.sha256}.part")
        self.at = os.fstat(self._descriptor).st_size
        self._hash = hashlib.sha256()
        self._hashed = self._written_out = 0
        self._writing_out: Optional[threading.Thread] = None
        self._failure: Optional[OSError] = None
        if self.at > blob.size:  # no beginning of it
            self.start_over()

    def start_over(self) -> None:
        """Forget what was there. Before the first write."""
        os.ftruncate(self._descriptor, 0)
        self.at = 0

    def write(self, data: Union[bytes, memoryview]) -> None:
        self._hash_what_was_there()
        rest = data
        while rest:
            count = os.pwrite(self._descriptor, rest, self.at)
            self.at, rest = self.at + count, rest[count:]
        self._hash.update(data)
        self._hashed = self.at
        # To the disk as data arrives, since the sync at the end would have to wait for all of it.
        if self.at - self._written_out >= _SYNC_BYTES and not (
            self._writing_out and self._writing_out.is_alive()
        ):
            self._join()
            self._written_out = self.at
            self._writing_out = threading.Thread(target=self._write_out)
            self._writing_out.start()

    def finish(self) -> Optional[str]:
        """Publish the blob, durably but for its folder. Where it is not what it should be, it is removed, and what was
        expected and what came is returned."""
        self._hash_what_was_there()
        if self._hash.hexdigest() != self.blob.sha256 or self.at != self.blob.size:
            self.discard()
            return (
                f"expected sha256 {self.blob.sha256} ({self.blob.size} bytes), got sha256 {self._hash.hexdigest()} "
                f"({self.at} bytes)"
            )
        self._join()
        os.fsync(self._descriptor)
        os.fchmod(
            self._descriptor, 0o444
        )  # runs hard-link blobs, and a run must not change what others share
        self._path.replace(self._final)
        remove_leftovers(self._path.parent, self.blob.sha256)
        return None

    def discard(self) -> None:
        """Remove what has arrived."""
        if _is_at(self._path, self._descriptor):
            self._path.unlink()

    def close(self) -> None:
        """Let go of it. What has arrived stays, to be continued; but no part of nothing, nor of what is stored."""
        if self._writing_out is not None:
            self._writing_out.join()
        if self.at == 0:
            self.discard()
        os.close(self._descriptor)
        # Looked at after the lock is gone: who publishes the blob from now on can remove this part itself.
        if self._final.exists():
            remove_leftovers(self._path.parent, self.blob.sha256)

    def _hash_what_was_there(self) -> None:
        while self._hashed < self.at:
            data = os.pread(self._descriptor, min(_CHUNK, self.at - self._hashed), self._hashed)
            if not data:
                raise OSError(errno.EIO, "it became shorter while it was read", str(self._path))
            self._hash.update(data)
            self._hashed += len(data)

    def _write_out(self) -> None:
        try:
            getattr(os, "fdatasync", os.fsync)(self._descriptor)
        except OSError as exc:
            self._failure = exc  # the kernel tells it once: the sync at the end would not learn of it

    def _join(self) -> None:
        if self._writing_out is not None:
            self._writing_out.join()
        if self._failure is not None:
            raise self._failure


def remove_leftovers(incoming: Path, digest: str) -> None:
    """Remove the parts of a blob that is stored, but for those that are held."""
    for path in incoming.glob(f"{digest}*.part"):
        descriptor = _open(path)
        try:
            if _lock(descriptor) and path.exists():
                path.unlink()
        finally:
            os.close(descriptor)


def _hold(path: Path) -> Tuple[Path, int]:
    """The part at `path`, open and locked. Where somebody alive holds it, who may have lost the link and not know it, a
    copy of what has arrived there, under a name of our own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(_TRIES):
        descriptor = _open(path)
        try:
            if not _lock(descriptor):
                own = path.with_name(f"{path.name[: -len('.part')]}.{os.getpid()}.part")
                copy = _open(own)
                if _lock(copy):
                    _copy(descriptor, copy)
                    os.close(descriptor)
                    return own, copy
                os.close(copy)
            elif _is_at(path, descriptor):
                return path, descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # renamed, or removed, by somebody who was faster
    raise OSError(errno.EBUSY, "somebody else is always faster", str(path))


def _open(path: Path) -> int:
    """Open or make a plain file. Whatever else lies there, such as a link to somewhere, is removed, not followed."""
    for _ in range(_TRIES):
        try:
            descriptor = os.open(str(path), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        except PermissionError:  # a whole one, whose writer was killed just before it was published
            path.unlink()
            continue
        except OSError as exc:
            if exc.errno not in (errno.ELOOP, errno.EMLINK, errno.ENXIO):
                raise
            path.unlink()
            continue
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
        path.unlink()
    raise OSError(errno.EBUSY, "expected a plain file", str(path))


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        there = path.lstat()
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(descriptor))


def _copy(source: int, target: int) -> None:
    os.ftruncate(target, 0)
    at, end = 0, os.fstat(source).st_size
    while at < end:
        data = os.pread(source, min(_CHUNK, end - at), at)
        if not data:
            return
        at += os.pwrite(target, data, at)
