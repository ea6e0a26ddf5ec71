"""What is believed about configs that were not evaluated: the chance that a mode holds, and their AvgPP."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toggle_edge.errors import SearchError
from toggle_edge.search.outcomes import AVGPP, Scale, keys_of_mode, scales, values_of
from toggle_edge.search.space import Levels, Space
from toggle_edge.search.surrogate import Design, Law, fit_law
from toggle_edge.search.trial import Trial

NEAR = 0.25
"""Trials whose joint robustness is this near to 0 say how far it lies below the least of the properties'."""

NODES = torch.special.ndtri((torch.arange(16, dtype=torch.double) + 0.5) / 16)
"""Equally likely normal values, by which expectations are taken: the same ones always, so that they repeat."""


@dataclass(frozen=True)
class Belief:
    """Laws of one mode's outcomes. `bars` are the log shortfalls that each may have at most."""

    laws: Mapping[str, Law]
    bars: Mapping[str, float]
    scale: Scale

    def log_chance(self, design: Design) -> Tensor:
        """Log of the chance that every property holds and the AvgPP target is reached, at n points.

        The properties count as independent given the laws; what they have in common is in the laws' means.
        """
        total = torch.zeros(len(design.levels), dtype=torch.double)
        for key, law in self.laws.items():
            mean, deviation = law.predict(design)
            total += torch.special.log_ndtr((self.bars[key] - mean) / deviation)
        return total

    def avgpp(self, design: Design) -> Tensor:
        """Equally likely values of AvgPP in percent: n x nodes."""
        mean, deviation = self.laws[AVGPP].predict(design)
        shortfalls = torch.exp(mean.unsqueeze(-1) + deviation.unsqueeze(-1) * NODES)
        return self.scale.ceiling + self.scale.floor - shortfalls

    @property
    def harms(self) -> dict[str, Tensor]:
        """By outcome, each choice's likeliest harm (not its log), in units of the most that the outcome may have."""
        return {key: torch.exp(law.harm - self._total_at_bar(key)) for key, law in self.laws.items()}

    def _total_at_bar(self, key: str) -> float:
        return self.laws[key].total_at(self.bars[key])


def believe(
    space: Space,
    trials: Sequence[Trial],
    harms: Mapping[str, NDArray[np.float64]],
    ceilings: Mapping[str, float],
    *,
    mode: str,
    target: float,
    margin: float = 0.0,
) -> Belief:
    """Fit the laws of `mode` to all trials. `harms` as of `expected_harm`; a mode holds from robustness `margin` on.

    Call inside `isolated`. Raises SearchError if an outcome admits no fit, or no trial says anything.
    """
    observations = [trial.observation for trial in trials]
    levels = [space.levels(trial.config) for trial in trials]
    values = [values_of(observation) for observation in observations]
    limits = scales(observations, ceilings)
    keys = [AVGPP, *keys_of_mode(sorted({key for each in values for key in each}), mode)]
    gap = joint_gap(trials, mode)
    laws, bars = {}, {}
    for key in keys:
        scale = limits.get(key, Scale(0.0, 0.05))
        rows, shortfalls, bounded = [], [], []
        worst = _worst(values, key, scale)
        for own, outcome, found in zip(levels, observations, values, strict=True):
            value, refuted = found.get(key), outcome.refuted
            if refuted and (key == AVGPP or value is None):
                # The AvgPP of the probes that refute most candidates says nothing about all of them.
                continue
            rows.append(own)
            # What could not be judged fell short of everything that was.
            shortfalls.append(scale.log_shortfall(worst if value is None else value))
            bounded.append(refuted or value is None)
        if not rows:
            continue
        prior = torch.from_numpy(harms.get(key, harms[""]))
        laws[key] = fit_law(
            prior, design_of(space, rows), torch.tensor(shortfalls).double(), torch.tensor(bounded)
        )
        bars[key] = scale.log_shortfall(target if key == AVGPP else margin + gap)
    if not laws:
        raise SearchError(f"surrogate: none of {len(trials)} trials says anything about mode {mode!r}")
    return Belief(laws, bars, limits[AVGPP])


def design_of(space: Space, rows: Sequence[Levels]) -> Design:
    return Design(
        torch.tensor(rows, dtype=torch.long).reshape(len(rows), len(space.dimensions)),
        torch.from_numpy(space.encode(rows)),
    )


def joint_gap(trials: Sequence[Trial], mode: str) -> float:
    """How far the joint robustness typically lies below the least of the properties', near the boundary.

    A probe must satisfy all properties at once, so at a coverage below 1 different properties may spend it on different
    probes.
    """
    gaps = []
    for trial in trials:
        joint, own = trial.observation.robustness[mode], trial.observation.properties.get(mode, {})
        least = min((value for value in own.values() if value is not None), default=None)
        if joint is not None and least is not None and abs(joint) <= NEAR and not trial.observation.refuted:
            gaps.append(max(least - joint, 0.0))
    return float(np.median(gaps)) if gaps else 0.0


def _worst(values: Sequence[Mapping[str, float | None]], key: str, scale: Scale) -> float:
    known = [value for value in (each.get(key) for each in values) if value is not None]
    return min([*known, scale.ceiling - math.exp(1.0) * scale.floor])
