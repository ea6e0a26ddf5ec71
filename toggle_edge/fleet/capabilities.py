"""From what a device says of itself to what can run there: target, wheels, labels, and a table for people."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from toggle_edge.errors import FleetError
from toggle_edge.fleet.environment import PINS, wheel_platform
from toggle_edge.fleet.facts import DeviceFacts
from toggle_edge.targets import TARGETS, Target

RUNTIME = "onnxruntime"
RUNTIME_TARGETS = (("1.24", "onnx-cpu"), ("1.23", "onnx-cpu-1.23"), ("1.19", "onnx-cpu-1.19"))
"""Targets by the oldest onnxruntime that has their kernels, the newest first. The old ones have fewer formats."""

UNAVAILABLE = "unavailable"
MAX_TEXT = 200

_FALLBACK = "onnx-cpu"


@dataclass(frozen=True, slots=True)
class Choice:
    """What a device gets: a target, and the worker's wheels as name to version (none where none fit). `note` is what
    its owner should know about the choice, None where there is nothing."""

    target: str
    wheels: Mapping[str, str]
    note: str | None


def choose(
    facts: DeviceFacts, targets: Mapping[str, Target] = TARGETS, own: Mapping[str, str] | None = None
) -> Choice:
    """The newest wheels for the device's Python, or its `own` packages by their versions, and the target whose kernels
    that onnxruntime has."""
    if own is None:
        try:
            version, _, _ = wheel_platform(facts)
        except FleetError as exc:
            return Choice(_FALLBACK, {}, str(exc))
        wheels = dict(pin.split("==") for pin in PINS[version])
        said = f"Python {version} ends at {RUNTIME} {wheels[RUNTIME]}"
    else:
        wheels = dict(own)
        said = f"its own {RUNTIME} is {wheels[RUNTIME]}"
    wanted = choose_runtime(wheels[RUNTIME])
    if wanted is not None and wanted in targets:
        few = wanted != _FALLBACK
        return Choice(wanted, wheels, f"{said}: fewer formats than newer ones have" if few else None)
    return Choice(
        _FALLBACK,
        wheels,
        f"{said}, which lacks some of {_FALLBACK}'s formats, and this version "
        "has no target for it: choose formats of 4 bits and floats",
    )


def choose_runtime(version: str) -> str | None:
    """The target whose kernels an onnxruntime has, None where it is older than those of all."""
    known = (name for oldest, name in RUNTIME_TARGETS if _release(version) >= _release(oldest))
    return next(known, None)


def is_by_runtime(target: str) -> bool:
    """Whether a target is one that the device's onnxruntime decides, rather than one that somebody has chosen."""
    return target in {name for _, name in RUNTIME_TARGETS}


def labels_of(facts: DeviceFacts) -> dict[str, str]:
    """What a device can be chosen by: `arch`, `libc`, `python`, and `board` where it names itself."""
    labels = {
        "arch": facts.machine,
        "libc": f"{facts.libc} {facts.libc_version}".strip() or "unknown",
        "python": ".".join(facts.python.split(".")[:2]),
        "board": "" if facts.board.startswith(UNAVAILABLE) else facts.board,
    }
    return {key: plain(value) for key, value in labels.items() if value}


def capability_table(
    facts: DeviceFacts, choice: Choice, targets: Mapping[str, Target] = TARGETS
) -> dict[str, str | int]:
    """What can be run and measured there, in words and numbers; `unavailable: why` for what cannot."""
    missing = f"{UNAVAILABLE}: {choice.note}"
    target = targets[choice.target]
    table: dict[str, str | int] = {
        "agent": facts.agent_version,
        "python": f"{facts.implementation} {facts.python}",
        "system": f"{facts.system} {facts.release}",
        **(choice.wheels or {RUNTIME: missing}),
        "formats": ", ".join(map(str, target.menu)) if choice.wheels else missing,
        "cpus": facts.cpus,
        "memory_bytes": facts.memory_bytes,
        "free_disk_bytes": facts.free_disk_bytes,
        "memory": facts.memory_meter,
        "energy": _energy(facts),
        "governor": facts.conditions.get("governor", f"{UNAVAILABLE}: not told"),
    }
    return {key: plain(value) if isinstance(value, str) else value for key, value in table.items()}


def readable_meters(facts: DeviceFacts) -> list[str]:
    """The energy meters that could be read there."""
    return [name for name, told in facts.energy_meters.items() if not told.startswith(UNAVAILABLE)]


def _energy(facts: DeviceFacts) -> str:
    readable = readable_meters(facts)
    if readable:
        return f"{readable[0]}: {facts.energy_meters[readable[0]]}"
    reasons = [
        f"{name}: {told.removeprefix(UNAVAILABLE + ': ')}" for name, told in facts.energy_meters.items()
    ]
    return f"{UNAVAILABLE}: {'; '.join(reasons) or 'the agent has no meter'}"


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def plain(text: str, most: int = MAX_TEXT) -> str:
    """What a device said, fit for a file and a terminal: one line of `most` characters, none that a terminal obeys."""
    shown = "".join(character if character.isprintable() else " " for character in text).strip()
    return shown if len(shown) <= most else shown[: most - 1] + "…"
