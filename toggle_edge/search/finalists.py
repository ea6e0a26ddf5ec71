"""Which trials are worth exporting: what each mode would select, and a spread along the predicted front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from toggle_edge.pareto import non_dominated
from toggle_edge.search.trial import Trial


def predicted_selection(trials: Sequence[Trial], mode: str) -> Trial | None:
    """The cheapest trial that is feasible in `mode`, the earliest at ties; None where there is none."""
    feasible = [trial for trial in trials if trial.observation.feasible[mode]]
    return min(feasible, key=lambda trial: (trial.observation.proxy_flops, trial.index), default=None)


def predicted_front(trials: Sequence[Trial]) -> list[Trial]:
    """Trials that no other beats in both cost and AvgPP, cheapest first. Only trials feasible in some mode."""
    feasible = [trial for trial in trials if any(trial.observation.feasible.values())]
    if not feasible:
        return []
    # A feasible trial always has an AvgPP: its mode's target was compared with it.
    points = np.array([[t.observation.proxy_flops, -(t.observation.avgpp or 0.0)] for t in feasible])
    kept = [trial for trial, on_front in zip(feasible, non_dominated(points), strict=True) if on_front]
    return sorted(kept, key=lambda trial: (trial.observation.proxy_flops, trial.index))


def finalists(trials: Sequence[Trial], selected: Mapping[str, Trial | None], count: int) -> list[Trial]:
    """At most `count` trials to export, cheapest first.

    First what each mode selects, then trials evenly spread over the predicted front, so that the
    measured front has more than one end; where too few are feasible, the least violated ones fill up.
    """
    chosen: dict[int, Trial] = {}
    for trial in selected.values():
        if trial is not None:
            chosen.setdefault(trial.index, trial)
    front = predicted_front(trials)
    if front:
        for position in np.linspace(0, len(front) - 1, num=count).round().astype(int):
            chosen.setdefault(front[position].index, front[position])
    by_violation = sorted(trials, key=lambda trial: (-_least_robustness(trial), trial.index))
    for trial in by_violation:
        chosen.setdefault(trial.index, trial)
    kept = list(chosen.values())[:count]
    return sorted(kept, key=lambda trial: (trial.observation.proxy_flops, trial.index))


def _least_robustness(trial: Trial) -> float:
    values = trial.observation.robustness.values()
    return min((float("-inf") if value is None else value for value in values), default=float("-inf"))
