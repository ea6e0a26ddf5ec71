"""Commands about the store of blobs."""

import os
import select
import time
from pathlib import Path
from typing import Any, Dict, List

from toggle_runtime.arrivals import Arrival, remove_leftovers
from toggle_runtime.blobs import blob_path, sync_folder
from toggle_runtime.codec import from_data
from toggle_runtime.manifests import Blob
from toggle_runtime.requests import Request, field
from toggle_runtime.wire import RequestError, Wire

MOST_BLOBS = 256
"""Most blobs of one request: the part of each is an open file."""

_STDIN = 0
_READ_BYTES = 128 << 10  # stays in the cache while it is written and hashed
_TELL_BYTES = 2 << 20
_TELL_S = 1.0
_LONGEST_WAIT_S = 600.0  # nobody sends any more; a host gives up much earlier


def receive(request: Request, wire: Wire) -> Dict[str, Any]:
    """Store blobs that come on stdin, once the host was told which are `missing` and how much of each is here.

    The bytes follow each other without any mark between them. Blobs that turn out damaged are removed and `refused`.
    """
    root = request["root"]
    wanted = {blob.sha256: blob for blob in _blobs(request)}
    (root / "incoming").mkdir(parents=True, exist_ok=True)
    stored = [digest for digest in wanted if _touched(blob_path(root, digest))]
    for digest in stored:
        remove_leftovers(root / "incoming", digest)
    arrivals: List[Arrival] = []
    refused = []
    try:
        for digest in sorted(set(wanted) - set(stored)):
            arrivals.append(Arrival(root, wanted[digest]))
        wire.announce(step="missing", missing=[[arrival.blob.sha256, arrival.at] for arrival in arrivals])
        stream = _Stream(wire)
        for arrival in arrivals:
            try:
                while arrival.at < arrival.blob.size:
                    arrival.write(stream.read(arrival.blob.size - arrival.at))
                problem = arrival.finish()
            except OSError:
                arrival.discard()  # what cannot grow must not stay on a disk that is full
                raise
            if problem is None:
                stored.append(arrival.blob.sha256)
            else:
                refused.append({"sha256": arrival.blob.sha256, "message": problem})
        if arrivals:
            sync_folder(root / "blobs" / "sha256")
    finally:
        for arrival in arrivals:
            arrival.close()
    return {"stored": sorted(stored), "refused": refused}


def collect(request: Request, wire: Wire) -> Dict[str, Any]:
    # Imported here: an agent compiles what it imports at each start, and an upload waits for that.
    from toggle_runtime.collection import collect as collected
    from toggle_runtime.commands.leased import leased

    quota = field(request, "quota_bytes", int)
    if quota < 0:
        raise RequestError("request", f"quota_bytes: expected 0 or more, got {quota}")
    with leased(request):
        return collected(request["root"], quota)


class _Stream:
    """The host's bytes. It is told how many have been taken: it has no more than a few under way that were not."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._taken = self._told = 0
        # One for all: getting a new one costs more than filling it.
        self._buffer = memoryview(bytearray(_READ_BYTES))
        os.set_blocking(_STDIN, False)

    def read(self, most: int) -> memoryview:
        """Some bytes, at least one, until the next call. Raises RequestError, kind `link`, where there are no more."""
        if self._taken - self._told >= _TELL_BYTES:
            self._tell()
        waits_since = time.monotonic()
        while True:
            try:
                count = os.readv(_STDIN, [self._buffer[:most]])
            except BlockingIOError:
                waiting_s = time.monotonic() - waits_since
                if waiting_s > _LONGEST_WAIT_S:
                    raise RequestError(
                        "link", f"the host's bytes stopped after {self._taken}, {waiting_s:.0f} s ago"
                    ) from None
                if not select.select([_STDIN], [], [], _TELL_S)[0]:
                    # What it was told may have been dropped; and it learns of a link that is dead in one direction.
                    self._tell(waiting_s)
                continue
            except OSError as exc:  # of the link, not of the disk: what has arrived must stay
                raise RequestError("link", f"the host's bytes ended after {self._taken}: {exc}") from exc
            if not count:
                raise RequestError("link", f"the host's bytes ended after {self._taken}")
            self._taken += count
            return self._buffer[:count]

    def _tell(self, waiting_s: float = 0.0) -> None:
        self._told = self._taken
        self._wire.progress(step="taken", bytes=self._taken, waiting_s=round(waiting_s, 1))


def _blobs(request: Request) -> List[Blob]:
    # A digest becomes a file's name: it must be one.
    found = [from_data(Blob, data) for data in field(request, "blobs", list)]
    if len(found) > MOST_BLOBS:
        raise RequestError("request", f"blobs: expected at most {MOST_BLOBS}, got {len(found)}")
    return found


def _touched(path: Path) -> bool:
    """Whether the file is there; if so it counts as used now, so that it is not collected before it is."""
    try:
        os.utime(str(path))
    except FileNotFoundError:
        return False
    return path.is_file()
