"""The candidates among which the acquisition chooses: discrete by construction.

Two sources: what additive harm would choose along the cost axis, under several guesses of the harm; and level switches
around the modes' incumbents, within a trust region that shrinks while a mode finds nothing better. From the best of
them the acquisition climbs on by trades.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from toggle_edge.pareto import non_dominated
from toggle_edge.search.knapsack import along_cost_axis
from toggle_edge.search.space import Levels, Space
from toggle_edge.search.trial import Trial

POOL_SIZE = 512
ADDITIVE_SHARE = 0.5
"""Share of the pool that additive harm proposes; the rest are level switches."""

PARENTS = 8

KEPT, ROUNDS, NEIGHBOURS = 8, 3, 256
"""How the best of the pool is improved: so many are kept, so often, and so many of their neighbours asked about."""

PRICES = 24
HARM_DEVIATION = 0.3
"""By how much, in logarithms, guesses of the harm differ: about what a few tens of trials leave open."""

PATIENCE = 12
"""Trials of a mode without a better one until the trust region is half as wide."""


def candidate_pool(
    space: Space,
    tried: Collection[Levels],
    around: Sequence[tuple[Sequence[Levels], int]],
    harms: Sequence[NDArray[np.float64]],
    saved: NDArray[np.float64],
    generator: np.random.Generator,
) -> tuple[Levels, ...]:
    """Distinct levels outside `tried`, at most `POOL_SIZE`. Empty only when all have been tried.

    `around` are by mode its incumbents and how many dimensions a switch may move. `harms` are tables of harm,
    dimensions x choices, in one unit. A space of at most `POOL_SIZE` points is listed whole.
    """
    seen = set(tried)
    if space.size <= POOL_SIZE:
        return tuple(
            dict.fromkeys(levels for levels in map(space.levels, space.enumerate()) if levels not in seen)
        )
    pool: dict[Levels, None] = {}
    for levels in itertools.islice(
        (each for each in _additive(harms, saved, generator) if each not in seen),
        round(ADDITIVE_SHARE * POOL_SIZE),
    ):
        pool[levels] = None
    draws = 0
    # A bounded number of draws: near exhaustion most of them repeat what was tried.
    while len(pool) < POOL_SIZE and draws < 2 * POOL_SIZE:
        incumbents, radius = around[draws % len(around)]
        place = draws // len(around)
        parent = incumbents[place % len(incumbents)] if incumbents else space.safest
        child = switched(space, parent, radius, generator)
        if child not in seen:
            pool[child] = None
        draws += 1
    if not pool:
        untried = (levels for levels in map(space.levels, space.enumerate()) if levels not in seen)
        return tuple(itertools.islice(untried, POOL_SIZE))
    # Levels that a left-out block makes void have many spellings; a config has one.
    return tuple(dict.fromkeys(each for each in map(space.canonical, pool) if each not in seen))


def _additive(
    harms: Sequence[NDArray[np.float64]], saved: NDArray[np.float64], generator: np.random.Generator
) -> list[Levels]:
    """Optima along the cost axis under each table of harm, then under guesses around them."""
    found: dict[Levels, None] = {}
    most = np.nanmax(saved)
    prices = np.geomspace(1e-3, 1e3, PRICES)
    for guess in range(8):
        for table in harms:
            scale = float(np.nanmedian(table.max(axis=1))) or 1.0
            noise = generator.normal(size=table.shape) + generator.normal(size=(len(table), 1))
            own = table * np.exp(HARM_DEVIATION * noise) if guess else table
            for levels in along_cost_axis(own, saved, (prices * scale / most).tolist()):
                found[levels] = None
    return list(found)


def switched(space: Space, parent: Levels, radius: int, generator: np.random.Generator) -> Levels:
    """Move some dimensions one level: all down (cheaper), all up (safer), or some each way (a trade).

    How many is log-uniform from 1 to `radius`: mostly small steps, some long ones.
    """
    count = min(radius, int(np.exp(generator.uniform(0.0, np.log(radius + 1)))))
    child = np.array(parent)
    chosen = generator.choice(len(child), min(count, len(child)), replace=False)
    kind = generator.integers(4)
    steps = (
        np.full(len(chosen), -1)
        if kind == 0
        else np.full(len(chosen), 1)
        if kind == 1
        else generator.choice((-1, 1), len(chosen))
    )
    child[chosen] = np.clip(child[chosen] + steps, 0, np.array(space.sizes)[chosen] - 1)
    return tuple(int(level) for level in child)


def refined(
    space: Space,
    tried: Collection[Levels],
    pool: Sequence[Levels],
    merits: Callable[[Sequence[Levels]], NDArray[np.float64]],
    generator: np.random.Generator,
) -> Levels:
    """The best of the pool, improved by trades in a few rounds: what is best of thousands is seldom in the pool.

    `merits` are of distinct levels, higher is better. The pool must not be empty.
    """
    values = merits(pool)
    order = np.argsort(-values, kind="stable")[:KEPT]
    best = {pool[int(i)]: float(values[int(i)]) for i in order}
    seen = set(tried) | set(pool)
    for _ in range(ROUNDS):
        children: dict[Levels, None] = {}
        for draw in range(2 * NEIGHBOURS):
            parent = list(best)[draw % len(best)]
            child = space.canonical(traded(space, parent, generator))
            if child not in seen:
                children[child] = None
            if len(children) == NEIGHBOURS:
                break
        if not children:
            break
        seen |= set(children)
        fresh = list(children)
        values = merits(fresh)
        for child, value in zip(fresh, values.tolist(), strict=True):
            best[child] = value
        best = dict(sorted(best.items(), key=lambda pair: -pair[1])[:KEPT])
    return next(iter(best))


def traded(space: Space, parent: Levels, generator: np.random.Generator) -> Levels:
    """Move one, two or three dimensions by one level or two, each either way."""
    child = list(parent)
    count = min(len(child), int(generator.integers(1, 4)))
    for index in generator.choice(len(child), count, replace=False):
        step = int(generator.choice((-2, -1, -1, 1, 1, 2)))
        child[index] = min(max(child[index] + step, 0), space.sizes[index] - 1)
    return tuple(child)


def incumbents(space: Space, trials: Sequence[Trial], mode: str) -> list[Levels]:
    """Around what to search for a mode: the cheap end of its feasible front, else the least violated trials."""
    feasible = [trial for trial in trials if trial.observation.feasible[mode]]
    if feasible:
        # A feasible observation always has an AvgPP; the type does not know.
        points = np.array([(t.observation.proxy_flops, -(t.observation.avgpp or 0.0)) for t in feasible])
        front = [trial for trial, kept in zip(feasible, non_dominated(points), strict=True) if kept]
        front.sort(key=lambda trial: trial.observation.proxy_flops)
        return [space.levels(trial.config) for trial in front]
    judged = [(trial.observation.robustness[mode], trial) for trial in trials]
    known = sorted(((value, t) for value, t in judged if value is not None), key=lambda pair: -pair[0])
    return [space.levels(trial.config) for _, trial in known[:PARENTS]]


def trust_radius(trials: Sequence[Trial], mode: str, dimensions: int, patience: int = PATIENCE) -> int:
    """How many dimensions a switch may move: a third at first, half as many each time nothing better was found."""
    best, stalled = float("inf"), 0
    for trial in trials:
        outcome = trial.observation
        if outcome.feasible[mode] and outcome.proxy_flops < best:
            best, stalled = outcome.proxy_flops, 0
        else:
            stalled += 1
    return max(2, dimensions // 3 >> stalled // patience)
