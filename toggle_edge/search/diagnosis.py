"""Why a mode has no feasible trial: what blocks it, by how much, and what least change of the contract would help."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from toggle_edge.search.outcomes import AVGPP
from toggle_edge.search.trial import Trial


@dataclass(frozen=True, slots=True)
class Relaxation:
    """A single change after which `trial` would be feasible: the threshold of a property weaker `by` so much (in the
    unit of its signal), or the AvgPP target lower by so many percentage points (`outcome` is then `avgpp`).

    `cost` is that trial's.
    """

    outcome: str
    by: float
    trial: int
    cost: float


@dataclass(frozen=True, slots=True)
class Blocked:
    """A mode without a feasible trial. `nearest` is the trial that fails by least, `missing` by how much it fails each
    outcome that it fails, the worst first; `relaxations` the least single changes that would help, the least first.

    `unjudged` counts trials without a robustness, `refuted` those that were stopped early and cannot say by how much.
    """

    mode: str
    nearest: int | None
    missing: Mapping[str, float]
    relaxations: tuple[Relaxation, ...]
    unjudged: int
    refuted: int

    @property
    def message(self) -> str:
        """One sentence for people."""
        if self.nearest is None:
            return f"mode {self.mode}: no trial could be judged ({self.unjudged} unset, {self.refuted} refuted early)"
        worst, by = next(iter(self.missing.items()))
        text = f"mode {self.mode}: {worst} blocks; trial {self.nearest} comes nearest and misses it by {_upwards(by)}"
        if not self.relaxations:
            every = " and ".join(_weaker(key, value) for key, value in self.missing.items())
            return f"{text}; no single change of the contract would help: it takes {every} for that trial"
        least = self.relaxations[0]
        return f"{text}; {_weaker(least.outcome, least.by)} would make trial {least.trial} feasible"


def _weaker(outcome: str, by: float) -> str:
    what = "the AvgPP target lower" if outcome == AVGPP else f"the threshold of {outcome} weaker"
    return f"{what} by {_upwards(by)}"


def _upwards(by: float) -> str:
    """In three digits, and never less than it is: what is advised must suffice."""
    text = f"{by:.3g}"
    if float(text) < by:
        text = f"{float(text) + 10.0 ** (math.floor(math.log10(by)) - 2):.3g}"
    return text


def blocked(trials: Sequence[Trial], mode: str, target: float) -> Blocked | None:
    """Say what blocks `mode`, whose AvgPP target is `target`; None where a trial is feasible.

    Shortfalls are compared as shares of what is at stake: a robustness of its ceiling over all trials, AvgPP of what
    lies between target and 100.
    """
    if any(trial.observation.feasible[mode] for trial in trials):
        return None
    judged = [
        t for t in trials if t.observation.robustness[mode] is not None and t.observation.avgpp is not None
    ]
    whole = [trial for trial in judged if not trial.observation.refuted]
    refuted = sum(trial.observation.refuted for trial in trials)
    if not whole:
        return Blocked(mode, None, {}, (), len(trials) - len(judged), refuted)
    misses = {trial.index: _missing(trial, mode, target) for trial in whole}
    stake = _stakes(whole, mode, target)

    def weight(pair: tuple[str, float]) -> float:
        return pair[1] / stake[pair[0]]

    nearest = min(whole, key=lambda t: (max(map(weight, misses[t.index].items()), default=0.0), t.index))
    least: dict[str, Relaxation] = {}
    for trial in whole:
        if len(misses[trial.index]) == 1:
            ((key, by),) = misses[trial.index].items()
            found = Relaxation(key, by, trial.index, trial.observation.proxy_flops)
            if key not in least or (by, found.cost) < (least[key].by, least[key].cost):
                least[key] = found
    return Blocked(
        mode,
        nearest.index,
        dict(sorted(misses[nearest.index].items(), key=lambda pair: (-weight(pair), pair[0]))),
        tuple(sorted(least.values(), key=lambda each: (each.by / stake[each.outcome], each.outcome))),
        len(trials) - len(judged),
        refuted,
    )


def _missing(trial: Trial, mode: str, target: float) -> dict[str, float]:
    outcome = trial.observation
    own = {key: value for key, value in outcome.properties.get(mode, {}).items() if value is not None}
    joint = outcome.robustness[mode] or 0.0
    missing = {key: -value for key, value in own.items() if value < 0}
    if joint < 0 and len(missing) < 2:
        # Each property may hold at the coverage while the mode does not: then the weakest one is short by the rest.
        weakest = min(own, key=lambda key: own[key], default="robustness")
        missing[weakest] = max(missing.get(weakest, 0.0), -joint)
    if outcome.avgpp is not None and outcome.avgpp < target:
        missing[AVGPP] = target - outcome.avgpp
    return missing


def _stakes(trials: Sequence[Trial], mode: str, target: float) -> dict[str, float]:
    stakes = {AVGPP: max(100.0 - target, 0.1), "robustness": 1.0}
    for trial in trials:
        for key, value in trial.observation.properties.get(mode, {}).items():
            if value is not None:
                stakes[key] = max(stakes.get(key, 0.05), value)
    return stakes
