"""How a running search stands, from its trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from toggle_runtime.records import ModeSpecification

from toggle_edge.config import Config
from toggle_edge.pareto import hypervolume
from toggle_edge.report.standing import BITS, Best, Point, Standing
from toggle_edge.search.finalists import predicted_front, predicted_selection
from toggle_edge.search.trial import Trial

LATEST = 10
"""Trials whose mean time predicts that of the next ones: a search's trials get slower, or refute sooner, as it goes."""


def standing_of(
    specification: Mapping[str, ModeSpecification],
    trials: Sequence[Trial],
    of: int,
    *,
    seconds: Sequence[float],
    baseline_flops: float,
) -> Standing:
    """The standing after `trials`; `seconds` is what the trials of this process took, oldest first."""
    feasible = [trial for trial in trials if any(trial.observation.feasible.values())]
    front = {trial.index for trial in predicted_front(trials)}
    points = tuple(
        Point(
            trial.observation.proxy_flops / baseline_flops,
            trial.observation.avgpp or 0.0,
            trial.index in front,
            is_uniform(trial.config),
        )
        for trial in feasible
    )
    mean = float(np.mean(seconds[-LATEST:])) if seconds else None
    return Standing(
        trials=len(trials),
        of=of,
        refuted=sum(trial.observation.refuted for trial in trials),
        feasible=len(feasible),
        hypervolume=_covered(points, min(mode.avgpp for mode in specification.values())),
        seconds_per_trial=mean,
        seconds_left=None if mean is None else mean * (of - len(trials)),
        best=tuple(
            best for mode in specification if (best := _best(trials, mode, baseline_flops)) is not None
        ),
        points=points,
        modes=tuple(specification),
    )


def is_uniform(config: Config) -> bool:
    """Whether the config has one format everywhere, and nothing else."""
    return len({fmt for _, fmt in config}) == 1 and not config.sparsities and not config.structure


def _best(trials: Sequence[Trial], mode: str, baseline_flops: float) -> Best | None:
    selected = predicted_selection(trials, mode)
    if selected is None:
        return None
    uniform = predicted_selection([trial for trial in trials if is_uniform(trial.config)], mode)
    cost = selected.observation.proxy_flops
    against = None if uniform is None else cost / uniform.observation.proxy_flops - 1.0
    bits = np.array([fmt.bits for _, fmt in selected.config])
    counts = np.histogram(bits, bins=(0, *(edge + 0.5 for edge in BITS[:-1]), np.inf))[0]
    return Best(mode, selected.index, cost / baseline_flops, against, tuple(int(count) for count in counts))


def _covered(points: Sequence[Point], least_avgpp: float) -> float:
    room = max(100.0 - least_avgpp, 1e-9)
    costs = [[point.cost, (100.0 - point.avgpp) / room] for point in points]
    return hypervolume(np.array(costs), np.ones(2)) if costs else 0.0
