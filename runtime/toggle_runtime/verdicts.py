"""Verdicts: traces judged under each mode of a specification, on the device and on the host alike.

One rule serves properties and modes: something holds when at least `required` probes satisfy it, and it is
MARGINAL when fewer than that do so by at least the noise floor. For a mode a probe must satisfy every
property at once, so each property may hold at its coverage while the mode does not.

A probe's robustness is an interval where its signals are: what is reported, and what decides for SATISFIED, is the
lower end. It is VIOLATED where even the upper ends fall short, and UNSET between the two.
"""

import math
from dataclasses import dataclass
from typing import Collection, Dict, FrozenSet, List, Mapping, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

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
from toggle_runtime.signals import FAR, LAYER_SIGNALS, Trace
from toggle_runtime.stl import UnsetError, parse, robustness, robustness_bounds, signals_of

__all__ = [
    "avgpp",
    "judge",
    "noise_floor",
    "per_probe_bounds",
    "per_probe_robustness",
    "required_probes",
    "signals_read",
]

_MISSING = {
    "factual": "signal 'factual' has no answer step",
    "attention_far": f"signal 'attention_far' has no key more than {FAR} tokens before a step",
}
"""Why these are 1 by definition throughout a probe, so that they would always pass."""


@dataclass(frozen=True)
class _Evaluation:
    """One formula on every probe: ends of the robustness (NaN where unset), the steps that attain the lower ones,
    why some are unset."""

    values: NDArray[np.float64]
    most: NDArray[np.float64]
    steps: List[int]
    reasons: Dict[int, str]


def signals_read(specification: Mapping[str, ModeSpecification]) -> FrozenSet[str]:
    """The signals that the formulas of all modes read. Raises FormulaError when one cannot be read."""
    texts = {text for mode in specification.values() for text in mode.properties.values()}
    return frozenset(name for text in texts for name in signals_of(parse(text)))


def judge(
    specification: Mapping[str, ModeSpecification], traces: Sequence[Trace], noise_floor: Mapping[str, float]
) -> List[ModeVerdict]:
    """Judge the traces of all probes under every mode, in the specification's order.

    A property is UNSET, and its mode with it, when any probe gives it no value; a mode is also UNSET without
    probes or properties, and either where the intervals of its robustness leave both SATISFIED and VIOLATED open.
    `noise_floor` maps a property to the change of robustness that counts as noise; one without it is at best
    MARGINAL. AvgPP is reported beside the verdict and does not enter it: it selects among candidates.

    Raises FormulaError when a formula cannot be read, ValueError when a coverage is not in (0, 1] or a noise
    floor is not a finite number >= 0.
    """
    for name, floor in noise_floor.items():
        if not (math.isfinite(floor) and floor >= 0):
            raise ValueError(f"noise floor of {name!r}: expected a finite number >= 0, got {floor!r}")
    texts = {text for mode in specification.values() for text in mode.properties.values()}
    evaluations = {text: _evaluate(text, traces) for text in texts}
    percent = avgpp(traces, signals_read(specification))
    return [
        _judge_mode(name, mode, evaluations, traces, noise_floor, percent)
        for name, mode in specification.items()
    ]


def avgpp(traces: Sequence[Trace], signals: Collection[str]) -> Optional[float]:
    """Average property preservation in percent: 100 for a candidate that equals its baseline.

    The mean over `signals`, those that the specification reads, of the mean over probes and steps of how much each
    preserves: `1 - jsd`, the cosines themselves, `min(1, factual)` on answer steps only, and the share of the steps
    before `departure`. Of intervals the end that preserves less. TOGGLE (arXiv 2512.16855) does not publish its
    formula; this one is ours. None when any probe lacks a signal or an answer step that is asked for, or any value
    is not finite.
    """
    means = []
    for name in sorted(signals):
        rows = [_preserved(name, trace) for trace in traces]
        if not rows or any(row is None or not row.size for row in rows):
            return None
        means.append(np.concatenate([row for row in rows if row is not None]).mean())
    percent = 100.0 * float(np.mean(means)) if means else math.nan
    return percent if math.isfinite(percent) else None


def _preserved(name: str, trace: Trace) -> Optional[NDArray[np.float64]]:
    if name not in trace.lower:
        return None
    lower, steps = trace.lower[name], len(trace.answer)
    if name == "jsd":
        return 1.0 - trace.upper[name]
    if name == "factual":
        return np.minimum(1.0, lower[trace.answer])
    return lower / steps if name == "departure" else lower


def required_probes(coverage: float, probes: int) -> int:
    """How many of `probes` must satisfy a mode of this coverage: never fewer than 1."""
    # 0.55 * 100 is a hair above 55 in binary; it must not ask for 56.
    return max(1, math.ceil(coverage * probes - 1e-9))


def per_probe_robustness(formula: str, traces: Sequence[Trace]) -> NDArray[np.float64]:
    """Robustness of one formula's text on each probe, the lower end of an interval, NaN where it is unset. Raises
    FormulaError."""
    return per_probe_bounds(formula, traces)[0]


def per_probe_bounds(
    formula: str, traces: Sequence[Trace]
) -> Tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper end of the robustness on each probe, NaN where it is unset. Raises FormulaError."""
    evaluation = _evaluate(formula, traces)
    return evaluation.values, evaluation.most


def noise_floor(
    specification: Mapping[str, ModeSpecification], traces: Sequence[Trace], repeated: Sequence[Trace]
) -> Dict[str, float]:
    """By property, the largest change of either end of a probe's robustness between two runs of one artifact, in
    any mode. A property that is unset on any probe of either run has none: an unknown floor is not a low one.

    Raises ValueError when the runs have no probes or not the same number.
    """
    if not traces or len(traces) != len(repeated):
        raise ValueError(
            f"noise floor: expected two runs of the same probes, got {len(traces)} and {len(repeated)}"
        )
    floors: Dict[str, float] = {}
    for mode in specification.values():
        for name, text in mode.properties.items():
            first, second = _evaluate(text, traces), _evaluate(text, repeated)
            changes = [np.abs(first.values - second.values), np.abs(first.most - second.most)]
            floors[name] = float(np.maximum(floors.get(name, 0.0), np.max(changes)))
    return {name: floor for name, floor in floors.items() if math.isfinite(floor)}


def _evaluate(text: str, traces: Sequence[Trace]) -> _Evaluation:
    formula = parse(text)
    used = signals_of(formula)
    values, most = np.full(len(traces), np.nan), np.full(len(traces), np.nan)
    steps = [0] * len(traces)
    reasons: Dict[int, str] = {}
    for probe, trace in enumerate(traces):
        missing = [reason for name, reason in _MISSING.items() if name in used and _is_void(name, trace)]
        if missing:
            reasons[probe] = missing[0]
            continue
        try:
            if trace.is_exact:
                value, step = robustness(formula, trace.lower)
                high = value
            else:
                value, high, step = robustness_bounds(formula, trace.lower, trace.upper)
        except UnsetError as exc:
            reasons[probe] = str(exc)
            continue
        values[probe], most[probe], steps[probe] = float(value), float(high), int(step)
        if math.isnan(values[probe]):
            reasons[probe] = f"{' or '.join(sorted(used))} is not finite at step {steps[probe]}"
    return _Evaluation(values, most, steps, reasons)


def _is_void(name: str, trace: Trace) -> bool:
    return not trace.answer.any() if name == "factual" else name not in trace.lower


def _summary(reasons: Mapping[int, str]) -> str:
    first = min(reasons)
    more = f" (and {len(reasons) - 1} more probes)" if len(reasons) > 1 else ""
    return f"probe {first}: {reasons[first]}{more}"


def _judge_mode(
    name: str,
    mode: ModeSpecification,
    evaluations: Mapping[str, _Evaluation],
    traces: Sequence[Trace],
    floors: Mapping[str, float],
    percent: Optional[float],
) -> ModeVerdict:
    if not 0 < mode.coverage <= 1:
        raise ValueError(f"mode {name!r}: expected a coverage in (0, 1], got {mode.coverage!r}")
    probes = len(traces)
    required = required_probes(mode.coverage, probes)
    verdicts = [
        _judge_property(key, text, evaluations[text], required, traces, floors.get(key, math.inf))
        for key, text in mode.properties.items()
    ]
    if not verdicts or not probes:
        reason = "there are no probes" if verdicts else "there are no properties"
        return ModeVerdict(name, UNSET, None, Coverage(0, probes, required), percent, verdicts, reason)
    rows = np.stack([evaluations[text].values for text in mode.properties.values()])
    joint = rows.min(axis=0)  # NaN where any property is: such a probe counts as not satisfied
    coverage = Coverage(int((joint >= 0).sum()), probes, required)
    for key, text in mode.properties.items():
        if evaluations[text].reasons:
            reason = f"{key}: {_summary(evaluations[text].reasons)}"
            return ModeVerdict(name, UNSET, None, coverage, percent, verdicts, reason)
    least, _ = _least_of_best(joint, required)
    most, _ = _least_of_best(
        np.min([evaluations[text].most for text in mode.properties.values()], axis=0), required
    )
    if least < 0 <= most:
        return ModeVerdict(name, UNSET, None, coverage, percent, verdicts, _straddling(least, most))
    limits = np.array([[floors.get(key, math.inf)] for key in mode.properties])
    clear = int((rows >= limits).all(axis=0).sum())
    word = VIOLATED if coverage.satisfied < required else MARGINAL if clear < required else SATISFIED
    return ModeVerdict(name, word, least, coverage, percent, verdicts)


def _judge_property(
    name: str, text: str, evaluation: _Evaluation, required: int, traces: Sequence[Trace], floor: float
) -> Verdict:
    if not traces:
        return Verdict(name, UNSET, reason="there are no probes")
    if evaluation.reasons:
        return Verdict(name, UNSET, reason=_summary(evaluation.reasons))
    least, probe = _least_of_best(evaluation.values, required)
    most, _ = _least_of_best(evaluation.most, required)
    if least < 0 <= most:
        return Verdict(name, UNSET, reason=_straddling(least, most))
    step = evaluation.steps[probe]
    argmin = Argmin(probe, step, _weakest_layer(text, traces[probe], step))
    word = VIOLATED if least < 0 else MARGINAL if least < floor else SATISFIED
    return Verdict(name, word, least, argmin, float(evaluation.values.min()), robustness_upper=most)


def _straddling(least: float, most: float) -> str:
    return (
        f"its robustness lies between {least:.4g} and {most:.4g}, and this bundle's reduced baseline cannot say where; "
        "raise k (probes.distribution_ids, probes.attention_ids in the profile) and export it again"
    )


def _least_of_best(values: NDArray[np.float64], required: int) -> Tuple[float, int]:
    """The `required`-th largest value, and the first probe that has it."""
    least = np.sort(values)[::-1][required - 1]
    return float(least), int(np.argmax(values == least))


def _weakest_layer(text: str, trace: Trace, step: int) -> Optional[int]:
    """The layer with the lowest cosine, where one kind of cosine alone decides and its layers were recorded."""
    kinds = {LAYER_SIGNALS.get(name) for name in signals_of(parse(text))}
    kind = kinds.pop()
    if kinds or kind is None or kind not in trace.layers:
        return None
    # NaN is where a removed block leaves nothing to compare; a NaN of the candidate has no argmin at all.
    cosines = trace.layers[kind][:, step]
    return int(np.argmin(np.where(np.isnan(cosines), np.inf, cosines)))
