"""Bring files into a device's store: only what it lacks, from where the last attempt broke off, verified there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from toggle_runtime.commands.store import MOST_BLOBS
from toggle_runtime.records import RecordError, from_data

from toggle_edge.errors import AgentError, FleetError, TransportLostError
from toggle_edge.fleet.agent_client import Event, OnProgress, ignore_progress, request
from toggle_edge.fleet.device import Device
from toggle_edge.fleet.transport import SILENCE_S, Transport

Files = Mapping[str, tuple[Path, int]]
"""Digest to path and size."""


CHUNK_BYTES = 4 << 20
"""What may be under way to the device at most, not yet taken there: what a lost link can cost to send again."""

_PIECE_BYTES = 1 << 20
_LONGEST_S = 7 * 86400.0
"""As long as it goes on: a link that does not is noticed."""


@dataclass(frozen=True)
class Refused:
    sha256: str
    message: str


@dataclass(frozen=True)
class Received:
    """The agent's answer to `receive`: what its store holds now, and what arrived damaged."""

    stored: list[str]
    refused: list[Refused]


def ship(
    transport: Transport, device: Device, files: Files, on_progress: OnProgress = ignore_progress
) -> int:
    """Bring `files` (digest -> path and size) into the device's store; return the bytes that had to be sent.

    What the store holds is not sent, what was sent in part is continued. A blob that arrives damaged is sent
    once more from the start. Raises FleetError when it is damaged again.
    """
    digests = sorted(files)
    batches = [digests[first : first + MOST_BLOBS] for first in range(0, len(digests), MOST_BLOBS)]
    return sum(
        _ship_batch(transport, device, {digest: files[digest] for digest in batch}, on_progress)
        for batch in batches
    )


def _ship_batch(transport: Transport, device: Device, files: Files, on_progress: OnProgress) -> int:
    sent, refused = _ship_once(transport, device, files, on_progress)
    if refused:
        more, refused = _ship_once(transport, device, {d: files[d] for d in refused}, on_progress)
        sent += more
    if refused:
        digest, message = next(iter(refused.items()))
        raise FleetError(
            f"device {device.name!r}: {files[digest][0].name}: {message} (sent twice); "
            "check the file on this host and the device's storage"
        )
    return sent


def _ship_once(
    transport: Transport, device: Device, files: Files, on_progress: OnProgress
) -> tuple[int, dict[str, str]]:
    """Send what is missing. Bytes sent, and what was refused: digest -> message."""
    stream = _Stream(device, files, on_progress)
    event = request(
        transport,
        device,
        "receive",
        on_progress=stream.hear,
        timeout_s=_LONGEST_S,
        feed=stream.feed,
        blobs=[{"sha256": digest, "size": size} for digest, (_, size) in files.items()],
    )
    try:
        answer = from_data(Received, {key: value for key, value in event.items() if key != "event"})
    except RecordError as exc:
        raise AgentError(f"device {device.name!r}: the agent's answer: {exc}") from exc
    stream.end()
    refused = {each.sha256: each.message for each in answer.refused}
    if {*answer.stored, *refused} != set(files):
        raise AgentError(
            f"device {device.name!r}: expected to hear of {len(files)} blobs whether they are stored, "
            f"heard of {len({*answer.stored, *refused} & set(files))}"
        )
    return stream.sent, refused


class _Stream:
    """The bytes that the device lacks, one blob after the other, with at most CHUNK_BYTES of them under way."""

    def __init__(self, device: Device, files: Files, on_progress: OnProgress) -> None:
        self.sent = 0
        self._device = device
        self._files = files
        self._on_progress = on_progress
        self._pieces: Iterator[bytes] | None = None
        self._total = self._taken = 0

    def hear(self, event: Event) -> None:
        """What the agent says on the way. Raises AgentError for what cannot be so."""
        step = event.get("step")
        if step == "missing" and self._pieces is None:
            self._begin(event.get("missing"))
        elif step == "taken":
            self._take(event.get("bytes"), event.get("waiting_s"))
        else:
            self._on_progress(event)

    def feed(self) -> bytes | None:
        """The next bytes; see `transport.Feed`. Raises FleetError where a file cannot be read."""
        if self._pieces is None or self.sent + _PIECE_BYTES - self._taken > CHUNK_BYTES:
            return b""
        piece = next(self._pieces, None)
        self.sent += len(piece or b"")
        return piece

    def end(self) -> None:
        """Everything has been taken."""
        self._taken = self.sent
        self._tell()

    def _begin(self, missing: object) -> None:
        known = {digest: size for digest, (_, size) in self._files.items()}
        waiting = []
        for entry in missing if isinstance(missing, list) else [missing]:
            match entry:
                case [str(digest), int(at)] if 0 <= at <= known.pop(digest, -1):
                    waiting.append((digest, at))
                case _:
                    raise AgentError(
                        f"device {self._device.name!r}: expected the blobs that are missing, each once, and how much "
                        f"of them is there, got {str(entry)[:80]}"
                    )
        self._total = sum(self._files[digest][1] - at for digest, at in waiting)
        self._pieces = _pieces([(*self._files[digest], at) for digest, at in waiting])

    def _take(self, taken: object, waiting_s: object) -> None:
        if type(taken) is not int or not self._taken <= taken <= self.sent:
            raise AgentError(
                f"device {self._device.name!r}: expected how much it took of {self.sent} bytes, got {str(taken)[:80]}"
            )
        self._taken = taken
        if taken < self.sent and isinstance(waiting_s, float) and waiting_s > SILENCE_S:
            raise TransportLostError(
                f"device {self._device.name!r}: the link was lost in one direction: the device has waited for "
                f"{SILENCE_S:g} s for bytes that were sent"
            )
        self._tell()

    def _tell(self) -> None:
        if self._total:
            self._on_progress({"event": "progress", "step": "upload", "done": self._taken, "of": self._total})


def _pieces(parts: list[tuple[Path, int, int]]) -> Iterator[bytes]:
    """Files of a path and size from some byte on. Raises FleetError where one is not as long as it was."""
    for path, size, at in parts:
        try:
            with path.open("rb") as source:
                source.seek(at)
                while at < size:
                    piece = source.read(min(_PIECE_BYTES, size - at))
                    if not piece:
                        raise FleetError(
                            f"{path}: expected {size} bytes, it ends after {at}; export it again"
                        )
                    at += len(piece)
                    yield piece
        except OSError as exc:
            raise FleetError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
