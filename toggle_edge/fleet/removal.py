"""Takes everything of ours off a device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from toggle_runtime.records import RecordError, from_data

from toggle_edge.errors import AgentError
from toggle_edge.fleet.agent_client import request
from toggle_edge.fleet.device import Device
from toggle_edge.fleet.owner import this_process
from toggle_edge.fleet.transport import Transport


@dataclass(frozen=True)
class Cleaned:
    """Names in the device's root: those that are gone, and those that stayed because they are not ours."""

    removed: list[str]
    left: list[str]


@dataclass(frozen=True, slots=True)
class Removed:
    """What became of a device: what was cleaned there (None with the `reason`: it was not), and the device file that
    was deleted, None where that is part of toggle-edge."""

    name: str
    cleaned: Cleaned | None
    reason: str | None
    file: Path | None


def clean(transport: Transport, device: Device) -> Cleaned:
    """Have the agent remove it all, itself included. Raises AgentError while a run holds the device, for a root that is
    not ours, and for an answer that is none."""
    event = request(transport, device, "remove", owner=this_process())
    try:
        return from_data(Cleaned, {key: value for key, value in event.items() if key != "event"})
    except RecordError as exc:
        raise AgentError(f"device {device.name!r}: the agent's answer: {exc}") from exc
