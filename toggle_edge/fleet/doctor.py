"""Looks at a registered device step by step, as far as it lets us: reached, recognised, logged in, asked."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from toggle_runtime.records import ERROR, PASS

from toggle_edge.errors import AgentError, FleetError, TransportError
from toggle_edge.fleet import transport as transports
from toggle_edge.fleet.agent_client import install
from toggle_edge.fleet.capabilities import plain
from toggle_edge.fleet.device import Device
from toggle_edge.fleet.environment import WheelFile, worker_wheels
from toggle_edge.fleet.facts import DeviceFacts, facts_of
from toggle_edge.fleet.findings import BROKEN, HERE, LOOKS, OK, THERE, UNKNOWN, Finding, Fix, Look, is_termux
from toggle_edge.fleet.packages import look_at_packages, require_packages
from toggle_edge.fleet.ssh_login import offered_key
from toggle_edge.fleet.transport import Transport

STEPS = ("reachable", "host key", "login", "agent")
"""What comes before the agent's answer, each needed by the next."""

_MAX_FOUND = 600


@dataclass(frozen=True, slots=True)
class Examination:
    """All findings about a device, in the order in which they are shown."""

    device: Device
    findings: tuple[Finding, ...]

    @property
    def outcome(self) -> str:
        """PASS when `validate` would work there, else ERROR."""
        return ERROR if any(each.state in (BROKEN, UNKNOWN) for each in self.findings) else PASS


def examine(
    device: Device,
    known_keys: Mapping[str, str],
    *,
    connect: Callable[[Device], Transport] = transports.connect,
    wheels_for: Callable[[DeviceFacts], list[WheelFile]] | None = None,
) -> Examination:
    """Look at everything. What cannot be looked at, because of something before it, is UNKNOWN. Raises nothing of its
    own: a device that cannot be used is a finding."""
    findings = _recognised(device)
    transport: Transport | None = None
    try:
        if findings[-1].state != BROKEN:
            transport = connect(device)
            findings.append(Finding("login", OK, _as_whom(device)))
    except TransportError as exc:
        findings.append(Finding("login", BROKEN, str(exc), _login_fix(device)))
    if transport is not None:
        try:
            wanted = wheels_for or partial(worker_wheels, target=device.target)
            findings += _asked(device, transport, known_keys, wanted)
        finally:
            transport.close()
    findings = [replace(each, found=plain(each.found, _MAX_FOUND)) for each in findings]
    unknown = [name for name in (*STEPS, *LOOKS) if name not in {each.name for each in findings}]
    because = f"not looked at: {findings[-1].name} comes first"
    return Examination(device, (*findings, *(Finding(name, UNKNOWN, because) for name in unknown)))


def _recognised(device: Device) -> list[Finding]:
    """Whether somebody answers, and whether it is the device that was registered."""
    if device.transport == "local":
        return [Finding("reachable", OK, "this machine"), Finding("host key", OK, "none is needed")]
    started = time.monotonic()
    try:
        offered = offered_key(device.host, device.port, device.jump)
    except TransportError as exc:
        return [Finding("reachable", BROKEN, str(exc), Fix(HERE, f"ssh -v {_address(device)} true"))]
    took = f"{device.host}:{device.port}, {1e3 * (time.monotonic() - started):.0f} ms for a key exchange"
    if offered.fingerprint != device.host_key:
        key = Finding(
            "host key",
            BROKEN,
            f"known {device.host_key}, offered {offered.kind} {offered.fingerprint}: another device, or one that was "
            "set up anew; if its own console shows that fingerprint, add it again",
            Fix(HERE, _adding_again(device)),
        )
    else:
        key = Finding("host key", OK, f"{offered.kind} {offered.fingerprint}")
    return [Finding("reachable", OK, took), key]


def _asked(
    device: Device,
    transport: Transport,
    known_keys: Mapping[str, str],
    wheels_for: Callable[[DeviceFacts], list[WheelFile]],
) -> list[Finding]:
    try:
        install(transport, device)  # apart, so that the clock is not compared across an upload
        before = time.time()
        facts = facts_of(transport, device)
        after = time.time()
    except (AgentError, TransportError) as exc:
        return [Finding("agent", BROKEN, str(exc), _agent_fix(device))]
    wheels, own, why = None, None, ""
    try:
        if device.packages:
            own = look_at_packages(transport, device)
            require_packages(device, device.target, own)
        else:
            wheels = wheels_for(facts)
    except FleetError as exc:
        why = str(exc)
    skew = None if facts.clock_s is None else (facts.clock_s - after, facts.clock_s - before)
    look = Look(device, facts, wheels, why, skew, known_keys, own)
    answered = f"version {facts.agent_version} under {facts.implementation} {facts.python}, {facts.machine}"
    return [Finding("agent", OK, answered), *(each(look) for each in LOOKS.values())]


def _as_whom(device: Device) -> str:
    return (
        f"{device.user}, with {device.identity or 'a key of the SSH agent'}" if device.user else "not needed"
    )


def _adding_again(device: Device) -> str:
    jump = device.jump
    options = {
        "host": device.host,
        "port": str(device.port),
        "user": device.user,
        "identity": device.identity,
        "jump": "" if jump is None else f"{jump.user}@{jump.host}:{jump.port}",
        "python": device.python,
        "root": device.root,
        "packages": device.packages,
    }
    given = [f"--{key} {shlex.quote(value)}" for key, value in options.items() if value]
    return f"toggle-edge device add {device.name} --replace {' '.join(given)}"


def _agent_fix(device: Device) -> Fix:
    installed = "pkg install python" if is_termux(device) else "sudo apt-get install -y python3"
    return Fix(THERE, f"{installed} && command -v python3 # then `python` in the device file is that path")


def _login_fix(device: Device) -> Fix:
    if not device.identity:
        return Fix(HERE, f"ssh-add && ssh-copy-id {_address(device)}")
    return Fix(HERE, f"ssh-copy-id -i {shlex.quote(device.identity)} {_address(device)}")


def _address(device: Device) -> str:
    jump = device.jump
    through = "" if jump is None else f"-J {shlex.quote(f'{jump.user}@{jump.host}:{jump.port}')} "
    return f"{through}-p {device.port} {shlex.quote(f'{device.user}@{device.host}')}"
