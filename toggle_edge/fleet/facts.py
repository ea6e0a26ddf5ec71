"""What a device says of itself, read strictly: it decides which wheels are fetched and what is sent."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

from toggle_runtime.deployment import Deployment
from toggle_runtime.records import RecordError, from_data

from toggle_edge.errors import AgentError
from toggle_edge.fleet.agent_client import request
from toggle_edge.fleet.device import Device
from toggle_edge.fleet.transport import Transport


@dataclass(frozen=True)
class DeviceFacts:
    """The agent's `facts`. `trusted_keys` maps public keys (hex) to names, `revoked_keys` key ids; sizes are in bytes;
    `clock_s` is the device's time in seconds since 1970; `lease` is empty when nobody holds it. Meters and power
    sources say how they read, or `unavailable: why`. What has a default is unknown to older agents.
    """

    agent_version: str
    protocol: int
    manifest_versions: list[int]
    record_version: int
    trusted_keys: dict[str, str]
    python: str
    implementation: str
    machine: str
    libc: str
    libc_version: str
    system: str
    release: str
    hostname: str
    cpus: int
    memory_bytes: int
    free_disk_bytes: int
    conditions: dict[str, str] = field(default_factory=dict)
    deployed: Optional[Deployment] = None  # noqa: UP045  (what the codec reads)
    deployment_problem: Optional[str] = None  # noqa: UP045
    modules: list[str] = field(default_factory=list)
    board: str = "unavailable: this agent does not tell"
    clock_s: Optional[float] = None  # noqa: UP045 - the decoder that host and device share knows this spelling
    lease: dict[str, str] = field(default_factory=dict)
    root_foreign: list[str] = field(default_factory=list)
    root_writable: bool = True
    root_executable: bool = True
    energy_meters: dict[str, str] = field(default_factory=dict)
    memory_meter: str = "unavailable: this agent does not tell"
    power_sources: dict[str, str] = field(default_factory=dict)
    revoked_keys: dict[str, str] = field(default_factory=dict)


def facts_of(transport: Transport, device: Device) -> DeviceFacts:
    """Ask the agent. Raises AgentError when the answer is not what facts look like."""
    return read_facts(request(transport, device, "facts").get("facts"), device)


def read_facts(data: Any, device: Device) -> DeviceFacts:
    """Facts from parsed JSON. What we do not know is left out: a newer agent may say more."""
    known = {each.name for each in dataclasses.fields(DeviceFacts)}
    if not isinstance(data, Mapping):
        raise AgentError(f"device {device.name!r}: facts: expected an object, got {str(data)[:60]!r}")
    try:
        return from_data(DeviceFacts, {key: value for key, value in data.items() if key in known})
    except RecordError as exc:
        raise AgentError(f"device {device.name!r}: facts: {exc}; is something else answering there?") from exc
