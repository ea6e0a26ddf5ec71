"""Outcomes of a trial as shortfalls: how far each falls short of the untouched model's, and how much it may.

An outcome is AvgPP, or the joint robustness of one mode. Properties are none of their own: at a coverage below 1
different properties may fail on different probes, so a trial is refuted though no single property is, and what chances
of single properties multiply to was the worse prediction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from toggle_edge.search.trial import Observation

AVGPP = "avgpp"
PERFECT = 100.0
LEAST_SHORTFALL = 0.02
"""Shortfalls are counted from this share of the ceiling on, so that a perfect trial has a logarithm."""


@dataclass(frozen=True, slots=True)
class Scale:
    """The most that an outcome can reach, and what is added to every shortfall from it."""

    ceiling: float
    floor: float

    def log_shortfall(self, value: float) -> float:
        return math.log(max(self.ceiling - value, 0.0) + self.floor)

    def value(self, log_shortfall: float) -> float:
        return self.ceiling + self.floor - math.exp(log_shortfall)


def mode_key(mode: str) -> str:
    """The key of a mode's joint robustness."""
    return f"{mode}/"


def values_of(observation: Observation) -> dict[str, float | None]:
    """An observation's outcomes by key."""
    return {AVGPP: observation.avgpp} | {
        mode_key(mode): value for mode, value in observation.robustness.items()
    }


def scales(observations: Sequence[Observation], ceilings: Mapping[str, float]) -> dict[str, Scale]:
    """By key, the scale of each outcome: from `ceilings`, the untouched model's values, and the best that was seen."""
    best: dict[str, float] = dict(ceilings)
    best[AVGPP] = PERFECT
    for observation in observations:
        for key, value in values_of(observation).items():
            if value is not None and not observation.refuted:
                best[key] = max(best.get(key, value), value)
    return {key: Scale(value, LEAST_SHORTFALL * _span(key, value)) for key, value in best.items()}


def _span(key: str, ceiling: float) -> float:
    # AvgPP is out of 100, but a search lives in its last few percent.
    return 1.0 if key == AVGPP else max(abs(ceiling), 0.05)
