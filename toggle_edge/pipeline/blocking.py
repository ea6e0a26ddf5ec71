"""Why a mode has no feasible trial, and what would help.

Trials keep no more of each property than its robustness at the mode's coverage, and refuted ones not even that: which
probes fail decides how much weaker a threshold would have to be. So the nearest trials are read once more, whole.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from toggle_runtime.verdicts import per_probe_robustness, required_probes

from toggle_edge.pipeline.preparing import Prepared
from toggle_edge.report.progress import Reporter
from toggle_edge.search.diagnosis import Blocked, Relaxation, blocked
from toggle_edge.search.outcomes import AVGPP
from toggle_edge.search.trial import Trial

NEAREST = 4
"""So many trials are read once more."""

LEAST_STAKE = 0.05

Rows = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class _Read:
    """A trial on all search probes: by outcome what all of it takes, and what would do alone."""

    trial: Trial
    together: Mapping[str, float]
    alone: Mapping[str, float]


def why_blocked(prepared: Prepared, trials: Sequence[Trial], mode: str, report: Reporter) -> Blocked | None:
    """What blocks `mode`, by how much, and the least changes of the contract that make a trial feasible; None where a
    trial is. A threshold that weakens by so much is taken to raise robustness by as much, which holds where a formula
    names one."""
    contract = prepared.specification[mode]
    found = blocked(trials, mode, contract.avgpp)
    if found is None:
        return None
    read, stakes = list[_Read](), {AVGPP: max(100.0 - contract.avgpp, 0.1)}
    chosen = _nearest(trials, mode, found)
    for trial in chosen:
        traces = prepared.evaluator.traces(trial.config)
        percent = prepared.evaluator.judged(trial.config, traces).avgpp
        rows = {name: per_probe_robustness(text, traces) for name, text in contract.properties.items()}
        report("diagnosis", len(read) + 1, len(chosen), "no trial is feasible: reading the nearest once more")
        for name, row in rows.items():
            stakes[name] = max(stakes.get(name, LEAST_STAKE), float(np.max(row[~np.isnan(row)], initial=0.0)))
        required = required_probes(contract.coverage, len(traces))
        lacking = math.inf if percent is None else contract.avgpp - percent
        read.append(_of(trial, shortfalls(rows, required), alone(rows, required), lacking))
    sound = [each for each in read if each.together and all(map(math.isfinite, each.together.values()))]
    if not sound:
        return found

    def weight(pair: tuple[str, float]) -> float:
        return pair[1] / stakes[pair[0]]

    nearest = min(sound, key=lambda each: (max(map(weight, each.together.items())), each.trial.index))
    return dataclasses.replace(
        found,
        nearest=nearest.trial.index,
        missing=dict(sorted(nearest.together.items(), key=weight, reverse=True)),
        relaxations=tuple(sorted(_least(sound), key=lambda each: each.by / stakes[each.outcome])),
    )


def shortfalls(rows: Rows, required: int) -> dict[str, float]:
    """By property, how much weaker all of these have to be for `required` probes to satisfy every property; those that
    suffice as they are are left out. `rows` are robustnesses by probe; where one is unset the probe cannot be won."""
    known = {name: np.where(np.isnan(row), -np.inf, row) for name, row in rows.items()}
    best = np.argsort(-np.min(list(known.values()), axis=0), kind="stable")[:required]
    least = {name: float(row[best].min()) for name, row in known.items()}
    return {name: -value for name, value in least.items() if value < 0}


def alone(rows: Rows, required: int) -> dict[str, float]:
    """By property, how much weaker it has to be if no other one is; those are left out that cannot do it alone."""
    found = {}
    for name, row in rows.items():
        others = [other >= 0 for key, other in rows.items() if key != name]
        free = row[np.all(others, axis=0) & ~np.isnan(row)] if others else row[~np.isnan(row)]
        if len(free) >= required and (least := float(np.sort(free)[len(free) - required])) < 0:
            found[name] = -least
    return found


def _nearest(trials: Sequence[Trial], mode: str, found: Blocked) -> list[Trial]:
    """The trials to read: what is near by what trials know, then those of the greatest robustness, or bound of it."""
    judged = [(t.observation.robustness[mode], t.index) for t in trials]
    ranked = sorted(((value, index) for value, index in judged if value is not None), reverse=True)
    named = [found.nearest, *(each.trial for each in found.relaxations), *(index for _, index in ranked)]
    by_index = {trial.index: trial for trial in trials}
    return [by_index[index] for index in dict.fromkeys(named) if index is not None][:NEAREST]


def _of(trial: Trial, together: Mapping[str, float], single: Mapping[str, float], lacking: float) -> _Read:
    if lacking <= 0:
        return _Read(trial, together, single)
    return _Read(trial, {**together, AVGPP: lacking}, {} if together else {AVGPP: lacking})


def _least(read: Sequence[_Read]) -> list[Relaxation]:
    least: dict[str, Relaxation] = {}
    for each in read:
        for key, by in each.alone.items():
            one = Relaxation(key, by, each.trial.index, each.trial.observation.proxy_flops)
            if key not in least or (by, one.cost) < (least[key].by, least[key].cost):
                least[key] = one
    return list(least.values())
