"""Choose per device on the measured front, and say why. What was measured decides, not what was predicted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from toggle_runtime.records import Measurement

from toggle_edge.fleet.device import Device
from toggle_edge.pareto import non_dominated

DECODE, MEMORY, ENERGY = "decode_ms_p50", "memory_bytes", "energy_mj_per_token"


@dataclass(frozen=True)
class MeasuredCandidate:
    """A candidate that ran on the device.

    `avgpp` is in percent, None if it could not be judged. `shortfall` says by mode why the contract
    did not hold on the device or was not certified, None where it did; a mode that is missing counts as not
    satisfied. `proxy_flops` is the predicted cost.
    """

    id: str
    avgpp: float | None
    artifact_bytes: int
    measured: Mapping[str, Measurement]
    shortfall: Mapping[str, str | None]
    proxy_flops: float


@dataclass(frozen=True)
class Choice:
    """What a mode selects. `id` is None when nothing qualifies; `reason` is a sentence with figures.

    `runners_up` are the others that qualified, fastest first; `rejected` says of each of the rest why not.
    """

    mode: str
    id: str | None
    reason: str
    runners_up: tuple[str, ...]
    rejected: Mapping[str, str]


def budget_of(device: Device) -> dict[str, float]:
    """A device's hard limits, by the measurement that each of them bounds from above."""
    limits = {
        DECODE: device.budget.decode_ms,
        MEMORY: device.budget.memory_bytes,
        ENERGY: device.budget.energy_mj_per_token,
    }
    return {name: float(limit) for name, limit in limits.items() if limit is not None}


def over_budget(measured: Mapping[str, Measurement], budget: Mapping[str, float]) -> dict[str, str]:
    """Of each limit that is broken, or whose quantity was not measured, a sentence that says so."""
    broken = {}
    for name, limit in budget.items():
        measurement = measured.get(name)
        if measurement is None or measurement.value is None or not math.isfinite(measurement.value):
            broken[name] = f"{name} has a budget of {limit:g} but was not measured ({_absence(measurement)})"
        # Written so that a NaN limit rejects.
        elif not measurement.value <= limit:
            broken[name] = f"{name} is {measurement.value:g}, over the budget of {limit:g}"
    return broken


def measured_front(candidates: Sequence[MeasuredCandidate]) -> list[str]:
    """Ids on the front of what was measured, in the given order.

    Minimised: decode time, and of memory and energy those that all of them have (an axis that only some
    have cannot order them). Maximised: AvgPP. A candidate without a decode time or an AvgPP cannot be on the
    front, nor does it decide which axes there are.
    """
    timed = [
        (each, each.avgpp)
        for each in candidates
        if _value(each, DECODE) is not None and each.avgpp is not None
    ]
    shared = [
        name for name in (DECODE, MEMORY, ENERGY) if all(_value(each, name) is not None for each, _ in timed)
    ]
    if not timed:
        return []
    costs = [[-avgpp, *(_known(each, name) for name in shared)] for each, avgpp in timed]
    return [each.id for (each, _), kept in zip(timed, non_dominated(np.array(costs)), strict=True) if kept]


def select(candidates: Sequence[MeasuredCandidate], mode: str, budget: Mapping[str, float]) -> Choice:
    """The fastest candidate that satisfies the mode and the device's budget.

    `budget` maps a measured quantity, or `artifact_bytes`, to its largest allowed value in the unit of its
    name; what could not be measured is not within a budget. Candidates whose 95 % interval of decode time
    overlaps the fastest one's count as equally fast; of those the smallest `artifact_bytes` wins.
    """
    rejected = {each.id: why for each in candidates if (why := _rejection(each, mode, budget)) is not None}
    eligible = sorted((each for each in candidates if each.id not in rejected), key=_speed)
    if not eligible:
        causes = "; ".join(f"{name}: {why}" for name, why in rejected.items()) or "no candidate was measured"
        return Choice(mode, None, f"Nothing qualifies for {mode}: {causes}.", (), rejected)
    fastest = eligible[0]
    equals = [each for each in eligible if _tied(each, fastest)]
    chosen = min(equals, key=lambda each: (each.artifact_bytes, _speed(each)))
    others = tuple(each.id for each in eligible if each is not chosen)
    reason = f"{chosen.id} decodes fastest: {_timing(chosen)}, of {len(eligible)} that qualify for {mode}."
    if len(equals) > 1:
        rest = "" if chosen is fastest else f" against {_timing(fastest)} for the fastest, {fastest.id}"
        reason = (
            f"{chosen.id} is the smallest ({_size(chosen)}) of {len(equals)} whose decode times cannot be told "
            f"apart: {_timing(chosen)}{rest}."
        )
    return Choice(mode, chosen.id, reason, others, rejected)


def why_changed(predicted_id: str | None, choice: Choice, candidates: Sequence[MeasuredCandidate]) -> str:
    """One sentence with figures: how the measured selection relates to the predicted one."""
    by_id = {each.id: each for each in candidates}
    if predicted_id is None:
        return f"Nothing was predicted to satisfy {choice.mode}; measured: {choice.reason}"
    if predicted_id == choice.id:
        return f"Measuring confirms the prediction: {choice.reason}"
    if predicted_id not in by_id:
        return f"The predicted {predicted_id} was not measured on this device; {choice.reason}"
    if predicted_id in choice.rejected:
        why = choice.rejected[predicted_id]
        if choice.id is None:
            return f"The predicted {predicted_id} falls out ({why}), and nothing else qualifies."
        return f"The predicted {predicted_id} falls out ({why}), so {choice.id} takes its place."
    predicted, chosen = by_id[predicted_id], by_id[choice.id or predicted_id]
    fastest = min((by_id[name] for name in (chosen.id, *choice.runners_up)), key=_speed)
    flops = f"at {chosen.proxy_flops / predicted.proxy_flops:.2f} times the proxy FLOPs"
    if _tied(predicted, fastest):
        return (
            f"{chosen.id} and the predicted {predicted_id} are equally fast within their intervals "
            f"({_timing(chosen)} against {_timing(predicted)}); {chosen.id} is taken for its "
            f"{_size(chosen)} against {_size(predicted)}, {flops}."
        )
    return (
        f"The proxy favoured {predicted_id}, but it decodes slower here: {_timing(predicted)} against "
        f"{_timing(chosen)} of {chosen.id}, {flops}."
    )


def _rejection(candidate: MeasuredCandidate, mode: str, budget: Mapping[str, float]) -> str | None:
    shortfall = candidate.shortfall.get(mode, f"was not judged under {mode}")
    if shortfall is not None:
        return shortfall
    size = Measurement(float(candidate.artifact_bytes), "bytes", "sum of the artifact's files", 1)
    broken = over_budget({**candidate.measured, "artifact_bytes": size}, budget)
    if broken:
        return next(iter(broken.values()))
    if _value(candidate, DECODE) is None:
        return f"decode time was not measured ({_absence(candidate.measured.get(DECODE))})"
    return None


def _value(candidate: MeasuredCandidate, name: str) -> float | None:
    measurement = candidate.measured.get(name)
    if measurement is None or measurement.value is None or not math.isfinite(measurement.value):
        return None
    return measurement.value


def _known(candidate: MeasuredCandidate, name: str) -> float:
    value = _value(candidate, name)
    if value is None:
        raise ValueError(
            f"{candidate.id}: expected {name} to be measured; {_absence(candidate.measured.get(name))}"
        )
    return value


def _absence(measurement: Measurement | None) -> str:
    return "no such measurement" if measurement is None else measurement.reason or f"got {measurement.value}"


def _interval(candidate: MeasuredCandidate) -> tuple[float, float]:
    value, ci95 = _known(candidate, DECODE), candidate.measured[DECODE].ci95
    return (value, value) if ci95 is None else (ci95[0], ci95[1])


def _speed(candidate: MeasuredCandidate) -> tuple[float, str]:
    return _known(candidate, DECODE), candidate.id


def _tied(candidate: MeasuredCandidate, fastest: MeasuredCandidate) -> bool:
    return _interval(candidate)[0] <= _interval(fastest)[1]


def _timing(candidate: MeasuredCandidate) -> str:
    low, high = _interval(candidate)
    return f"{_known(candidate, DECODE):.3g} ms [{low:.3g}, {high:.3g}]"


def _size(candidate: MeasuredCandidate) -> str:
    size = candidate.artifact_bytes
    return f"{size / 1e6:.2f} MB" if size >= 10_000 else f"{size} bytes"
