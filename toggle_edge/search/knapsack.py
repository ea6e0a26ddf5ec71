"""Additive harm, additive cost: the choices with the least harm for a cost. A multiple-choice knapsack."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from toggle_edge.errors import SearchError
from toggle_edge.search.space import Levels, Space

RELATIVE_GAP = 1e-4
SECONDS = 5.0
"""The solver stops here with the best that it has; at 150 dimensions it takes milliseconds."""


def saved_costs(space: Space) -> NDArray[np.float64]:
    """What each choice alone saves of the safest config's cost: dimensions x choices, NaN where there is none.

    Exact for formats. Sparsity and structure save less once a format is lower, so sums of these are estimates.
    """
    safest = space.safest
    dearest = space.proxy_flops(space.decode(safest))
    table = np.full((len(safest), max(space.sizes)), np.nan)
    for index, size in enumerate(space.sizes):
        for level in range(size):
            moved = (*safest[:index], level, *safest[index + 1 :])
            table[index, level] = dearest - space.proxy_flops(space.decode(moved))
    return table


def least_harm(harm: NDArray[np.float64], saved: NDArray[np.float64], least: float) -> Levels:
    """The levels of least summed harm that save at least `least` together: exact, by integer programming.

    `harm` and `saved` are dimensions x choices; `saved` is NaN where a dimension has no such choice. Raises SearchError
    where even the cheapest choices do not save as much.
    """
    there = ~np.isnan(saved)
    owner, level = np.nonzero(there)
    if np.nanmax(saved, axis=1).sum() < least - 1e-9 * abs(least):
        raise SearchError(
            f"knapsack: expected to save {least:.6g}, all cheapest choices save {np.nanmax(saved, axis=1).sum():.6g}"
        )
    one_each = csr_array((np.ones(len(owner)), (owner, np.arange(len(owner)))))
    scale = np.nanmax(saved) or 1.0
    result = milp(
        harm[there] / (harm[there].max() or 1.0),
        integrality=np.ones(len(owner)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1.0, 1.0),
            LinearConstraint(saved[there][np.newaxis] / scale, least / scale * (1 - 1e-12), np.inf),
        ],
        options={"mip_rel_gap": RELATIVE_GAP, "time_limit": SECONDS},
    )
    if result.x is None:
        raise SearchError(f"knapsack: no solution within {SECONDS} s: {result.message}")
    taken = result.x > 0.5
    return tuple(int(each) for each in level[taken][np.argsort(owner[taken], kind="stable")])


def along_cost_axis(
    harm: NDArray[np.float64], saved: NDArray[np.float64], prices: Sequence[float]
) -> list[Levels]:
    """For each price of a unit of cost the levels with the least harm plus price times cost, without repeats.

    These are the vertices of the lower hull of (cost, harm): what `least_harm` finds, but for the points between.
    """
    found: dict[Levels, None] = {}
    for price in prices:
        score = np.where(np.isnan(saved), np.inf, harm - price * saved)
        found[tuple(int(level) for level in score.argmin(axis=1))] = None
    return list(found)
