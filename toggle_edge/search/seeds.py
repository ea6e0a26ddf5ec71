"""The initial design: what is evaluated before any trial says more than the sensitivities do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from toggle_edge.config import Config
from toggle_edge.search.knapsack import least_harm, saved_costs
from toggle_edge.search.space import Space

SHARES = (0.3, 0.45, 0.6, 0.75)
"""Shares of the largest saving at which the additive optimum is evaluated: where contracts end, from safe to bold."""


def initial_design(
    space: Space, log_harm: NDArray[np.float64] | None = None, shares: Sequence[float] = SHARES
) -> tuple[tuple[str, Config], ...]:
    """Origins and configs: every uniform config, from the most bits down, then additive optima.

    `log_harm` is what AvgPP's sensitivities let expect, dimensions x choices; without it there are uniform configs
    only, or the safest config where no format is on every menu. Each config appears once.
    """
    design = [(f"uniform {config.formats[0][1]}", config) for config in space.uniforms()][::-1]
    if not design:
        design = [("safest", space.decode(space.safest))]
    if log_harm is not None:
        saved = saved_costs(space)
        most = float(np.nanmax(saved, axis=1).sum())
        for share in shares:
            levels = least_harm(np.exp(log_harm), saved, share * most)
            design.append((f"knapsack {share:.0%}", space.decode(levels)))
    # With few dimensions an optimum may be a uniform config again.
    first: dict[str, tuple[str, Config]] = {}
    for origin, config in design:
        first.setdefault(config.digest, (origin, config))
    return tuple(first.values())
