"""Every number of a claim, computed again from the traces: on RTAMT's robustness, in plain Python.

Shares no code with `toggle_runtime.verdicts`, whose work it checks; the rules are those of the docstrings in
`toggle_runtime.records`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from toggle_runtime.records import (
    MARGINAL,
    SATISFIED,
    UNSET,
    VIOLATED,
    Argmin,
    Coverage,
    ModeSpecification,
    ModeVerdict,
    Verdict,
)
from toggle_runtime.signals import Trace
from toggle_runtime.stl import parse, signals_of

from toggle_edge.certify.monitor import attains
from toggle_edge.certify.series import TOLERANCE, Series

__all__ = ["avgpp_of", "mode_verdict_of", "noise_floor_of"]

_KINDS = {
    **dict.fromkeys(("attention", "attention_min"), "attention"),
    **dict.fromkeys(("context", "context_min"), "context"),
    "attention_far": "attention_far",
}
"""The cosines by layer that a signal is made of."""


def noise_floor_of(
    specification: Mapping[str, ModeSpecification], first: Mapping[str, Series], second: Mapping[str, Series]
) -> dict[str, float]:
    """By property, the largest change of either end between both runs' series, over all modes.

    A property is absent when any of its values is unset or the runs do not have the same probes.
    """
    floors: dict[str, float] = {}
    for mode in specification.values():
        for name, text in mode.properties.items():
            before, after = first[text].values, second[text].values
            pairs = zip(before, after, strict=False)
            changes = [
                max(abs(a[0] - b[0]), abs(a[1] - b[1])) for a, b in pairs if a is not None and b is not None
            ]
            whole = 0 < len(changes) == len(before) == len(after)
            floors[name] = max(floors.get(name, 0.0), *changes) if whole else math.inf
    return {name: floor for name, floor in floors.items() if math.isfinite(floor)}


def avgpp_of(specification: Mapping[str, ModeSpecification], traces: Sequence[Trace]) -> float | None:
    """Average property preservation in percent, None when any part of it is missing or not finite."""
    texts = [text for mode in specification.values() for text in mode.properties.values()]
    kept: dict[str, list[float]] = {name: [] for text in texts for name in signals_of(parse(text))}
    for trace in traces:
        for name, row in kept.items():
            if name not in trace.lower:
                return None
            every = range(len(trace.answer))
            steps = [step for step in every if trace.answer[step]] if name == "factual" else every
            if not steps:
                return None
            row += [_preserved(name, trace, step) for step in steps]
    if not traces or not kept or not all(math.isfinite(value) for row in kept.values() for value in row):
        return None
    return 100.0 / len(kept) * math.fsum(math.fsum(row) / len(row) for row in kept.values())


def _preserved(name: str, trace: Trace, step: int) -> float:
    low = float(trace.lower[name][step])
    if name == "jsd":
        return 1.0 - float(trace.upper[name][step])
    if name == "factual":
        # min() would drop a NaN that comes second.
        return low if math.isnan(low) or low < 1.0 else 1.0
    return low / len(trace.answer) if name == "departure" else low


def mode_verdict_of(
    name: str,
    mode: ModeSpecification,
    series: Mapping[str, Series],
    traces: Sequence[Trace],
    floors: Mapping[str, float],
    percent: float | None,
    claimed: ModeVerdict | None,
) -> ModeVerdict:
    """The mode's verdict from RTAMT's series.

    `claimed` decides only between steps that attain the same value: a claimed step that does so is taken. A
    property without a noise floor is at best MARGINAL.
    """
    required = max(1, math.ceil(mode.coverage * len(traces) - 1e-9))
    steps = {
        verdict.property: verdict.argmin.step
        for verdict in (claimed.verdicts if claimed else ())
        if verdict.argmin
    }
    verdicts = [
        _verdict_of(key, text, series[text], traces, required, floors.get(key, math.inf), steps.get(key))
        for key, text in mode.properties.items()
    ]
    joint, highest = [], []
    clear = 0
    for probe in range(len(traces)):
        values = {key: series[text].values[probe] for key, text in mode.properties.items()}
        known = {key: value for key, value in values.items() if value is not None}
        if values and len(known) == len(values):
            joint.append(min(low for low, _ in known.values()))
            highest.append(min(high for _, high in known.values()))
            clear += all(low >= floors.get(key, math.inf) for key, (low, _) in known.items())
    satisfied = sum(value >= 0 for value in joint)
    coverage = Coverage(satisfied, len(traces), required)
    if not joint or len(joint) < len(traces):
        return ModeVerdict(name, UNSET, None, coverage, percent, verdicts, "a probe has no value")
    least = sorted(joint)[-required]
    if least < 0 <= sorted(highest)[-required]:
        return ModeVerdict(name, UNSET, None, coverage, percent, verdicts, "not decided")
    word = SATISFIED if clear >= required else MARGINAL if satisfied >= required else VIOLATED
    return ModeVerdict(name, word, least, coverage, percent, verdicts)


def _verdict_of(
    name: str,
    text: str,
    series: Series,
    traces: Sequence[Trace],
    required: int,
    floor: float,
    claimed_step: int | None,
) -> Verdict:
    values = [value for value in series.values if value is not None]
    if len(values) < len(traces) or not traces:
        first = min(series.reasons, default=None)
        reason = "there are no probes" if first is None else f"probe {first}: {series.reasons[first]}"
        return Verdict(name, UNSET, reason=reason)
    lows = [low for low, _ in values]
    least, most = sorted(lows)[-required], sorted(high for _, high in values)[-required]
    if least < 0 <= most:
        return Verdict(name, UNSET, reason="not decided")
    probe = lows.index(least)
    trace = traces[probe]
    candidates = (
        range(len(trace.answer)) if claimed_step is None else (claimed_step, *range(len(trace.answer)))
    )
    step = next((step for step in candidates if attains(text, trace, step, least, TOLERANCE)), -1)
    word = SATISFIED if least >= floor else MARGINAL if least >= 0 else VIOLATED
    argmin = Argmin(probe, step, _layer(text, trace, step))
    return Verdict(name, word, least, argmin, min(lows), robustness_upper=most)


def _layer(text: str, trace: Trace, step: int) -> int | None:
    kinds = {_KINDS.get(name) for name in signals_of(parse(text))}
    rows = trace.layers.get(next(iter(kinds)) or "") if len(kinds) == 1 else None
    if rows is None or step < 0:
        return None
    cosines = [float(layer[step]) for layer in rows]
    # NaN is where a removed block leaves nothing to compare; a NaN of the candidate has no argmin at all.
    return min(range(len(cosines)), key=lambda layer: (math.isnan(cosines[layer]), cosines[layer]))
