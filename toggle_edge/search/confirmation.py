"""The winner of many trials is partly lucky: finalists are judged again on probes that chose none of them.

The cheapest feasible trial is the one that suits the search probes best, and on others it holds less often. So each
mode's finalists, from the cheapest to the one with the most room, read selection probes until it is likely enough that
the mode will hold on fresh ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import betabinom

from toggle_edge.config import Config
from toggle_edge.errors import SearchError
from toggle_edge.pareto import non_dominated
from toggle_edge.search.trial import Trial

CHANCE = 0.8
"""How likely a confirmed trial is to hold on fresh probes."""

HOPELESS = 0.2
"""A finalist that is less likely than this to hold is dropped before it has read all selection probes."""

FIRST_PROBES = 20


@dataclass(frozen=True, slots=True)
class Reading:
    """One config on some selection probes under one mode: how many satisfy it, of how many, and their AvgPP."""

    satisfied: int
    probes: int
    avgpp: float | None


@dataclass(frozen=True, slots=True)
class Confirmation:
    """A mode's finalist and how it did. `chance` is that of holding on fresh probes; `confirmed` that it is enough."""

    trial: Trial
    reading: Reading
    chance: float
    confirmed: bool


def holding_chance(satisfied: int, probes: int, required: int, fresh: int) -> float:
    """The chance that at least `required` of `fresh` probes satisfy, where `satisfied` of `probes` did.

    Beta-binomial with Jeffreys' prior: exact for exchangeable probes that had no part in the choice. Raises SearchError
    on impossible counts.
    """
    if not (0 <= satisfied <= probes and 0 <= required <= fresh):
        raise SearchError(
            f"confirmation: expected 0 to {probes} satisfied and 0 to {fresh} required, got {satisfied}, {required}"
        )
    return float(betabinom.sf(required - 1, fresh, satisfied + 0.5, probes - satisfied + 0.5))


def guarded_required(probes: int, required: int, fresh: int, chance: float = CHANCE) -> int:
    """The fewest of `probes` that must satisfy for `holding_chance` to reach `chance`; all where that is not enough."""
    return next(
        (n for n in range(probes + 1) if holding_chance(n, probes, required, fresh) >= chance), probes
    )


def finalists_of_mode(trials: Sequence[Trial], mode: str, most: int) -> list[Trial]:
    """At most `most` feasible trials that no other beats in cost and robustness, evenly spread, cheapest first."""
    feasible = [trial for trial in trials if trial.observation.feasible[mode]]
    if not feasible:
        return []
    # A feasible trial always has a robustness; the type does not know.
    points = [(t.observation.proxy_flops, -(t.observation.robustness[mode] or 0.0)) for t in feasible]
    front = [trial for trial, kept in zip(feasible, non_dominated(points), strict=True) if kept]
    front.sort(key=lambda trial: (trial.observation.proxy_flops, trial.index))
    places = np.linspace(0, len(front) - 1, num=min(most, len(front))).round().astype(int)
    return [front[place] for place in dict.fromkeys(places.tolist())]


def confirm(
    trials: Sequence[Trial],
    mode: str,
    read: Callable[[Config, int], Reading],
    *,
    probes: int,
    required: int,
    fresh: int,
    target: float,
    chance: float = CHANCE,
    most: int = 16,
) -> list[Confirmation]:
    """Judge a mode's finalists from the cheapest on until one is likely enough to hold on `fresh` probes.

    `read(config, n)` judges a config on the first n of the `probes` selection probes; asked for more of the same config
    it need not read the first ones again. `required` of the fresh ones must satisfy, and AvgPP must reach `target` on
    the selection probes. Returns all that were judged; the last is the only one that may be confirmed. Where none is,
    the likeliest is the one to take, and to say so. So few probes may be there that even one which satisfies all of
    them is not confirmed; then nothing after it is judged, since it could not do better.
    """
    judged = []
    attainable = holding_chance(probes, probes, required, fresh)
    for trial in finalists_of_mode(trials, mode, most):
        seen, likely = Reading(0, 0, None), 1.0
        count = min(FIRST_PROBES, probes)
        while seen.probes < probes and likely >= HOPELESS:
            seen = read(trial.config, count)
            likely = holding_chance(seen.satisfied, seen.probes, required, fresh)
            count = min(2 * count, probes)
        reached = seen.avgpp is not None and seen.avgpp >= target
        likely = likely if reached else 0.0
        judged.append(Confirmation(trial, seen, likely, seen.probes == probes and likely >= chance))
        if judged[-1].confirmed or likely >= attainable:
            break
    return judged


def likeliest(confirmations: Sequence[Confirmation]) -> Confirmation | None:
    """The confirmed one, else the likeliest to hold, the cheapest at ties; None where nothing was judged."""
    return max(
        confirmations,
        key=lambda each: (each.confirmed, each.chance, -each.trial.observation.proxy_flops),
        default=None,
    )
