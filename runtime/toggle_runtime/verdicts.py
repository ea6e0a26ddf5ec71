"""Verdicts: traces judged under each mode of a specification, on the device and on the host alike.

One rule serves properties and modes: something holds when at least `required` probes satisfy it, and it is
MARGINAL when fewer than that do so by at least the noise floor. For a mode a probe must satisfy every
property at once, so each property may hold at its coverage while the mode does not.
"""

import math
from dataclasses import dataclass
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

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
from toggle_runtime.signals import Trace
from toggle_runtime.stl import UnsetError, parse, robustness, signals_of

__all__ = ["avgpp", "judge", "noise_floor", "per_probe_robustness"]

_PRESERVED = ("jsd", "attention", "context", "factual")


@dataclass(frozen=True)
class _Evaluation:
    """One formula on every probe: robustness (NaN where unset), attaining steps, why some are unset."""

    values: NDArray[np.float64]
    steps: List[int]
    reasons: Dict[int, str]


def judge(
    specification: Mapping[str, ModeSpecification], traces: Sequence[Trace], noise_floor: Mapping[str, float]
) -> List[ModeVerdict]:
    """Judge the traces of all probes under every mode, in the specification's order.

    A property is UNSET, and its mode with it, when any probe gives it no value; a mode is also UNSET without
    probes or properties. `noise_floor` maps a property to the change of robustness that counts as noise; an
    absent one is 0. AvgPP is reported beside the verdict and does not enter it: it selects among candidates.

    Raises FormulaError when a formula cannot be read, ValueError when a coverage is not in (0, 1] or a noise
    floor is not a finite number >= 0.
    """
    for name, floor in noise_floor.items():
        if not (math.isfinite(floor) and floor >= 0):
            raise ValueError(f"noise floor of {name!r}: expected a finite number >= 0, got {floor!r}")
    texts = {text for mode in specification.values() for text in mode.properties.values()}
    evaluations = {text: _evaluate(text, traces) for text in texts}
    percent = avgpp(traces)
    return [
        _judge_mode(name, mode, evaluations, traces, noise_floor, percent)
        for name, mode in specification.items()
    ]


def avgpp(traces: Sequence[Trace]) -> Optional[float]:
    """Average property preservation in percent: 100 for a candidate that equals its baseline.

    The mean over the four properties of the mean over probes and steps of `1 - jsd`, `attention`, `context`
    and, on answer steps only, `min(1, factual)`. TOGGLE (arXiv 2512.16855) does not publish its formula; this
    one is ours. None when any probe lacks a signal or an answer step, or any value is not finite.
    """
    pooled: Dict[str, List[NDArray[np.float64]]] = {name: [] for name in _PRESERVED}
    for trace in traces:
        if any(name not in trace.signals for name in _PRESERVED) or not trace.answer.any():
            return None
        pooled["jsd"].append(1.0 - trace.signals["jsd"])
        pooled["attention"].append(trace.signals["attention"])
        pooled["context"].append(trace.signals["context"])
        pooled["factual"].append(np.minimum(1.0, trace.signals["factual"][trace.answer]))
    if not traces:
        return None
    percent = 100.0 * float(np.mean([np.concatenate(rows).mean() for rows in pooled.values()]))
    return percent if math.isfinite(percent) else None


def per_probe_robustness(formula: str, traces: Sequence[Trace]) -> NDArray[np.float64]:
    """Robustness of one formula's text on each probe, NaN where it is unset. Raises FormulaError."""
    return _evaluate(formula, traces).values


def noise_floor(
    specification: Mapping[str, ModeSpecification], traces: Sequence[Trace], repeated: Sequence[Trace]
) -> Dict[str, float]:
    """By property, the largest change of a probe's robustness between two runs of one artifact, in any mode.

    Raises ValueError when the runs have no probes or not the same number, or when any robustness is unset: an
    unknown floor must not read as a low one.
    """
    if not traces or len(traces) != len(repeated):
        raise ValueError(
            f"noise floor: expected two runs of the same probes, got {len(traces)} and {len(repeated)}"
        )
    floors: Dict[str, float] = {}
    for mode in specification.values():
        for name, text in mode.properties.items():
            first, second = _evaluate(text, traces), _evaluate(text, repeated)
            for run, evaluation in (("first", first), ("second", second)):
                if evaluation.reasons:
                    reason = _summary(evaluation.reasons)
                    raise ValueError(f"noise floor of {name!r}: unset in the {run} run: {reason}")
            changes = np.abs(first.values - second.values)
            floors[name] = max(floors.get(name, 0.0), float(changes.max()))
    return floors


def _evaluate(text: str, traces: Sequence[Trace]) -> _Evaluation:
    formula = parse(text)
    used = signals_of(formula)
    values = np.full(len(traces), np.nan)
    steps = [0] * len(traces)
    reasons: Dict[int, str] = {}
    for probe, trace in enumerate(traces):
        if "factual" in used and not trace.answer.any():
            # Off the answer `factual` is 1 by definition: without an answer step it would always pass.
            reasons[probe] = "signal 'factual' has no answer step"
            continue
        try:
            value, step = robustness(formula, trace.signals)
        except UnsetError as exc:
            reasons[probe] = str(exc)
            continue
        values[probe], steps[probe] = float(value), int(step)
        if math.isnan(values[probe]):
            reasons[probe] = f"{' or '.join(sorted(used))} is not finite at step {steps[probe]}"
    return _Evaluation(values, steps, reasons)


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
    # 0.55 * 100 is a hair above 55 in binary; it must not ask for 56.
    required = max(1, math.ceil(mode.coverage * probes - 1e-9))
    verdicts = [
        _judge_property(key, text, evaluations[text], required, traces, floors.get(key, 0.0))
        for key, text in mode.properties.items()
    ]
    if not verdicts or not probes:
        return ModeVerdict(name, UNSET, None, Coverage(0, probes, required), percent, verdicts)
    rows = np.stack([evaluations[text].values for text in mode.properties.values()])
    joint = rows.min(axis=0)  # NaN where any property is: such a probe counts as not satisfied
    coverage = Coverage(int((joint >= 0).sum()), probes, required)
    if any(verdict.verdict == UNSET for verdict in verdicts):
        return ModeVerdict(name, UNSET, None, coverage, percent, verdicts)
    limits = np.array([[floors.get(key, 0.0)] for key in mode.properties])
    clear = int((rows >= limits).all(axis=0).sum())
    word = VIOLATED if coverage.satisfied < required else MARGINAL if clear < required else SATISFIED
    least, _ = _least_of_best(joint, required)
    return ModeVerdict(name, word, least, coverage, percent, verdicts)


def _judge_property(
    name: str, text: str, evaluation: _Evaluation, required: int, traces: Sequence[Trace], floor: float
) -> Verdict:
    if not traces:
        return Verdict(name, UNSET, reason="there are no probes")
    if evaluation.reasons:
        return Verdict(name, UNSET, reason=_summary(evaluation.reasons))
    least, probe = _least_of_best(evaluation.values, required)
    step = evaluation.steps[probe]
    argmin = Argmin(probe, step, _weakest_layer(text, traces[probe], step))
    word = VIOLATED if least < 0 else MARGINAL if least < floor else SATISFIED
    return Verdict(name, word, least, argmin, float(evaluation.values.min()))


def _least_of_best(values: NDArray[np.float64], required: int) -> Tuple[float, int]:
    """The `required`-th largest value, and the first probe that has it."""
    least = np.sort(values)[::-1][required - 1]
    return float(least), int(np.argmax(values == least))


def _weakest_layer(text: str, trace: Trace, step: int) -> Optional[int]:
    """The layer with the lowest attention cosine, where attention alone decides and layers were recorded."""
    if signals_of(parse(text)) != {"attention"} or not trace.attention_layers.size:
        return None
    return int(np.argmin(trace.attention_layers[:, step]))
