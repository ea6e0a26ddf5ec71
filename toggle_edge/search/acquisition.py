"""How much each candidate of a pool promises: to all modes at once, since one trial serves them all.

Costs are known; what is believed is AvgPP and whether each mode's contract holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toggle_edge.config import Config
from toggle_edge.search.belief import Belief, Forecast, design_of
from toggle_edge.search.space import Space
from toggle_edge.search.trial import Trial

FRONT, CHEAPEST, FIRST = "front", "cheapest", "first"
LEAST_GAIN = 1e-9
"""Gains below this share of the box count as this much, so that logarithms order what gains nothing by its chance."""


def log_merits(
    forecast: Forecast,
    costs: NDArray[np.float64],
    reached: Mapping[str, Sequence[tuple[float, float]]],
    *,
    goal: str,
    targets: Mapping[str, float],
    box: tuple[float, float],
) -> NDArray[np.float64]:
    """Log of the expected gain of each candidate, higher is better; only the order has a meaning.

    `reached` are by mode cost and AvgPP of its feasible trials, `box` the least and the largest cost that count. Gains
    are summed over the modes of `targets`, each times the chance that the candidate is feasible in it. Goal FRONT: the
    expected hypervolume in (cost, AvgPP) by which the mode's front grows. Goal CHEAPEST: the cost saved; hypervolume
    alone would spend trials on the middle of the front, while a mode selects its cheap end. Goal FIRST, for modes
    without a feasible trial: the chance alone, which in logarithms is steep where a mode fails badly and flat where it
    fails by a hair. That a trial which no mode satisfies is read in part only is not counted as cheapness: where
    chances are small they are also least certain, and the search would gamble.
    """
    if goal == FIRST:
        return np.asarray(torch.stack([forecast.log_chances[mode] for mode in targets]).logsumexp(dim=0))
    cost = (torch.from_numpy(costs) - box[0]) / ((box[1] - box[0]) or 1.0)
    gains = []
    for mode, target in targets.items():
        front = [((each - box[0]) / ((box[1] - box[0]) or 1.0), avgpp) for each, avgpp in reached[mode]]
        if goal == CHEAPEST or forecast.avgpp is None:
            gain = min((place for place, _ in front), default=1.0) - cost
            chance = forecast.log_chances[mode]
        else:
            room = max(100.0 - target, 1e-9)
            gain = _expected_volume(cost, (forecast.avgpp - target) / room, front, target, room)
            # What AvgPP must reach is in the volume already.
            chance = forecast.log_robust[mode]
        gains.append(gain.clamp_min(LEAST_GAIN).log() + chance)
    return np.asarray(torch.stack(gains).logsumexp(dim=0))


def reached_points(
    space: Space,
    trials: Sequence[Trial],
    pending: Sequence[Config],
    belief: Belief,
    targets: Mapping[str, float],
) -> dict[str, list[tuple[float, float]]]:
    """By mode, cost and AvgPP of its feasible trials.

    `pending` is what is asked for and not answered yet: where it is likelier feasible than not it counts as answered as
    expected, or it would be asked for again.
    """
    reached = {
        mode: [
            (trial.observation.proxy_flops, trial.observation.avgpp or 0.0)
            for trial in trials
            if trial.observation.feasible[mode]
        ]
        for mode in targets
    }
    if not pending:
        return reached
    forecast = belief.forecast(design_of(space, [space.levels(config) for config in pending]))
    if forecast.avgpp is None:
        return reached
    points = [
        (space.proxy_flops(config), avgpp)
        for config, avgpp in zip(pending, forecast.avgpp.mean(dim=1).tolist(), strict=True)
    ]
    for mode, chances in forecast.log_chances.items():
        likely = (chances > math.log(0.5)).tolist()
        reached[mode] += [point for point, kept in zip(points, likely, strict=True) if kept]
    return reached


def _expected_volume(
    cost: Tensor, excess: Tensor, front: Sequence[tuple[float, float]], target: float, room: float
) -> Tensor:
    """Mean over equally likely values (n x nodes) of what each candidate adds to the volume under the front.

    The front is a staircase: what is the best AvgPP at a cost of at most t. A candidate adds what it rises above it
    from its own cost to the dearest that counts, 1.
    """
    steps = sorted((min(max(place, 0.0), 1.0), (avgpp - target) / room) for place, avgpp in front)
    edges = torch.tensor([0.0, *(place for place, _ in steps), 1.0]).double()
    heights = torch.from_numpy(np.maximum.accumulate([0.0, *(best for _, best in steps)]))
    widths = (edges[1:] - torch.maximum(edges[:-1], cost.unsqueeze(-1))).clamp_min(0.0)
    rises = (excess.unsqueeze(-1) - heights).clamp_min(0.0).mean(dim=1)
    volume: Tensor = (widths * rises).sum(-1)
    return volume
