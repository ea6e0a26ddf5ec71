"""Bring files into a device's store: only what it lacks, from where the last attempt broke off, verified there."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from toggle_runtime.records import RecordError, from_data

from toggle_edge.errors import AgentError, FleetError, TransportError, TransportLostError
from toggle_edge.fleet.agent_client import Event, OnProgress, ignore_progress, request
from toggle_edge.fleet.device import Device
from toggle_edge.fleet.transport import Transport

Answer = TypeVar("Answer")
Files = Mapping[str, tuple[Path, int]]
"""Digest to path and size."""


@dataclass(frozen=True)
class Missing:
    """The agent's answer to `missing`: what it lacks, and how many bytes of each have arrived."""

    missing: list[str]
    partial: dict[str, int]


@dataclass(frozen=True)
class Refused:
    sha256: str
    message: str


@dataclass(frozen=True)
class Committed:
    """The agent's answer to `commit`."""

    committed: list[str]
    refused: list[Refused]


def ship(
    transport: Transport, device: Device, files: Files, on_progress: OnProgress = ignore_progress
) -> int:
    """Bring `files` (digest -> path and size) into the device's store; return the bytes that had to be sent.

    What the store holds is not sent, what was sent in part is continued. A blob that arrives damaged is sent
    once more from the start. Raises FleetError when it is damaged again.
    """
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
    """Upload what is missing and commit it. Bytes sent, and what was refused: digest -> message."""
    answer = _checked(Missing, request(transport, device, "missing", digests=sorted(files)), device)
    wanted = sorted(digest for digest in answer.missing if digest in files)
    if not wanted:
        return 0, {}
    partial = answer.partial
    # More than the whole cannot be a beginning of it: start over.
    offsets = {d: partial.get(d, 0) if 0 <= partial.get(d, 0) <= files[d][1] else 0 for d in wanted}
    total = sum(files[digest][1] - offsets[digest] for digest in wanted)
    done = 0
    for digest in wanted:
        path, offset = files[digest][0], offsets[digest]

        def tell(position: int, before: int = done - offset) -> None:
            on_progress({"event": "progress", "step": "upload", "done": before + position, "of": total})

        try:
            transport.upload(path, f"{device.root}/incoming/{digest}.part", offset, tell)
        except TransportLostError:
            raise  # what has arrived is where the next attempt goes on
        except TransportError:
            # The device refuses, most likely for a full disk: a part that cannot grow must not stay on it.
            with suppress(FleetError):
                request(transport, device, "discard", digests=[digest])
            raise
        done += files[digest][1] - offset
    blobs = [{"sha256": digest, "size": files[digest][1]} for digest in wanted]
    committed = _checked(Committed, request(transport, device, "commit", blobs=blobs), device)
    return done, {entry.sha256: entry.message for entry in committed.refused if entry.sha256 in files}


def _checked(kind: type[Answer], event: Event, device: Device) -> Answer:
    """The agent's answer as a value. Raises AgentError when it is not one."""
    try:
        return from_data(kind, {key: value for key, value in event.items() if key != "event"})
    except RecordError as exc:
        raise AgentError(f"device {device.name!r}: the agent's answer: {exc}") from exc
