"""How much each candidate of a pool promises to one mode.

Costs are known; what is believed is AvgPP and whether the contract holds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toggle_edge.search.belief import Belief
from toggle_edge.search.surrogate import Design

FRONT, CHEAPEST = "front", "cheapest"
LEAST_GAIN = 1e-9
"""Gains below this share of the box count as this much, so that logarithms order what gains nothing by its chance."""


def log_merits(
    belief: Belief,
    design: Design,
    costs: NDArray[np.float64],
    reached: Sequence[tuple[float, float]],
    *,
    goal: str,
    target: float,
    box: tuple[float, float],
) -> NDArray[np.float64]:
    """Log of the expected gain of each candidate, higher is better; only the order has a meaning.

    `reached` are cost and AvgPP of the mode's feasible trials, `box` the least and the largest cost that count. Goal
    FRONT: the expected hypervolume in (cost, AvgPP) by which a feasible candidate extends the front, times the chance
    that it is feasible. Goal CHEAPEST: the cost saved, times that chance; hypervolume alone would spend trials on the
    middle of the front, while a mode selects its cheap end. Without a feasible trial, for both: the chance alone, which
    in logarithms is steep where a property fails badly and flat where it fails by a hair.
    """
    chance = belief.log_chance(design)
    if not reached:
        return np.asarray(chance)
    cost = (torch.from_numpy(costs) - box[0]) / ((box[1] - box[0]) or 1.0)
    front = [((each - box[0]) / ((box[1] - box[0]) or 1.0), avgpp) for each, avgpp in reached]
    if goal == CHEAPEST:
        gain = min(place for place, _ in front) - cost
    else:
        room = max(100.0 - target, 1e-9)
        gain = _expected_volume(cost, (belief.avgpp(design) - target) / room, front, target, room)
    return np.asarray(gain.clamp_min(LEAST_GAIN).log() + chance)


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
