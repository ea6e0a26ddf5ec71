"""The candidates among which the acquisition chooses: discrete by construction."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence

import numpy as np

from toggle_edge.config import Config
from toggle_edge.search.space import Levels, Space

POOL_SIZE = 512
RANDOM_SHARE = 0.25
"""Share of the pool drawn from the whole space, so that the search can leave the front it has."""


def candidate_pool(
    space: Space, parents: Sequence[Config], tried: Collection[Config], generator: np.random.Generator
) -> tuple[Config, ...]:
    """Distinct configs outside `tried`: mutations of `parents` and random ones, at most `POOL_SIZE`.

    A space of at most `POOL_SIZE` configs is listed whole. Empty only when every config has been tried.
    """
    seen = {space.levels(config) for config in tried}
    if space.size <= POOL_SIZE:
        return tuple(config for config in space.enumerate() if space.levels(config) not in seen)
    pool: dict[Levels, Config] = {}

    def offer(config: Config) -> None:
        levels = space.levels(config)
        if levels not in seen and len(pool) < POOL_SIZE:
            pool[levels] = config

    # A bounded number of draws: near exhaustion most of them repeat what was tried.
    mutations = round((1 - RANDOM_SHARE) * POOL_SIZE) if parents else 0
    for draw in range(mutations):
        offer(mutate(space, parents[draw % len(parents)], generator))
    for _ in range(POOL_SIZE - mutations):
        offer(space.random(generator))
    if not pool:
        untried = (config for config in space.enumerate() if space.levels(config) not in seen)
        return tuple(itertools.islice(untried, POOL_SIZE))
    return tuple(pool.values())


def mutate(space: Space, parent: Config, generator: np.random.Generator) -> Config:
    """Move some layers one level: all down (cheaper), all up (safer), or each either way (a trade).

    The number of layers is log-uniform from 1 to half of them: mostly small steps, some long ones.
    """
    levels = np.array(space.levels(parent))
    most = max(1, len(levels) // 2)
    count = min(most, int(np.exp(generator.uniform(0.0, np.log(most + 1)))))
    chosen = generator.choice(len(levels), count, replace=False)
    steps = (np.full(count, -1), np.full(count, 1), generator.choice((-1, 1), count))[generator.integers(3)]
    levels[chosen] = np.clip(levels[chosen] + steps, 0, len(space.menu) - 1)
    return space.decode([int(level) for level in levels])
