"""The initial design: what is evaluated before any model of the problem exists."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from toggle_edge.config import Config
from toggle_edge.errors import SearchError
from toggle_edge.search.space import Space

FRACTIONS = (0.25, 0.5, 0.75)
"""Shares of the layers that are lowered between two adjacent uniform configs."""


def initial_design(
    space: Space,
    *,
    seed: int,
    sensitivity: Mapping[str, float] | None = None,
    fractions: Sequence[float] = FRACTIONS,
) -> tuple[tuple[str, Config], ...]:
    """Origins and configs: every uniform config, then steps between adjacent ones, from the most bits down.

    `sensitivity` is each layer's harm per saved proxy FLOP when it goes down one level: the least sensitive
    layers are lowered first. Without it the order is random but fixed by `seed`. Each config appears once.
    Raises SearchError on a sensitivity that is missing or not finite.
    """
    design = [(f"uniform {fmt}", config) for fmt, config in zip(space.menu, space.uniforms(), strict=True)]
    order = _order(space, sensitivity, seed)
    for lower, upper in reversed(list(itertools.pairwise(range(len(space.menu))))):
        for fraction in fractions:
            lowered = set(order[: round(fraction * len(order))])
            config = space.decode([lower if layer in lowered else upper for layer in space.layers])
            design.append((f"seed {fraction:.0%} {space.menu[upper]} to {space.menu[lower]}", config))
    # With few layers a fraction rounds to none or all of them, which is a uniform config again.
    first: dict[str, tuple[str, Config]] = {}
    for origin, config in design:
        first.setdefault(config.digest, (origin, config))
    return tuple(first.values())


def _order(space: Space, sensitivity: Mapping[str, float] | None, seed: int) -> list[str]:
    if sensitivity is None:
        return [space.layers[i] for i in np.random.default_rng(seed).permutation(len(space.layers))]
    for layer in space.layers:
        if layer not in sensitivity or not math.isfinite(sensitivity[layer]):
            raise SearchError(
                f"seeds: expected a finite sensitivity for layer {layer!r}, got {sensitivity.get(layer)!r}"
            )
    return sorted(space.layers, key=lambda layer: sensitivity[layer])
