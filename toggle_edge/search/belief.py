"""What is believed about configs that were not evaluated: the chance that each mode holds, and their AvgPP."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toggle_edge.errors import SearchError
from toggle_edge.search.outcomes import AVGPP, Scale, mode_key, scales, values_of
from toggle_edge.search.space import Levels, Space
from toggle_edge.search.surrogate import Design, Law, fit_law
from toggle_edge.search.trial import Trial

NODES = torch.special.ndtri((torch.arange(16, dtype=torch.double) + 0.5) / 16)
"""Equally likely normal values, by which expectations are taken: the same ones always, so that they repeat."""


@dataclass(frozen=True)
class Forecast:
    """What is believed about n points.

    - `log_chances`: by mode, the log of the chance that it holds, AvgPP target included.
    - `log_robust`: by mode, the log of the chance that its robustness suffices, whatever AvgPP is.
    - `avgpp`: equally likely values in percent, n x nodes; None while no trial told any.
    """

    log_chances: Mapping[str, Tensor]
    log_robust: Mapping[str, Tensor]
    avgpp: Tensor | None


@dataclass(frozen=True)
class Belief:
    """Laws of all outcomes. `bars` are by mode the log shortfalls that each of its outcomes may have at most."""

    laws: Mapping[str, Law]
    bars: Mapping[str, Mapping[str, float]]
    scale: Scale

    def forecast(self, design: Design) -> Forecast:
        """What to expect of n points.

        The outcomes count as independent given the laws; what they have in common is in the laws' means.
        """
        found = {key: law.predict(design) for key, law in self.laws.items()}
        robust, chances = {}, {}
        for mode, bars in self.bars.items():
            logs = {
                key: torch.special.log_ndtr((bar - found[key][0]) / found[key][1])
                for key, bar in bars.items()
            }
            certain = torch.zeros(len(design.levels), dtype=torch.double)
            robust[mode] = logs.get(mode_key(mode), certain)
            chances[mode] = robust[mode] + logs.get(AVGPP, certain)
        if AVGPP not in found:
            return Forecast(chances, robust, None)
        mean, deviation = found[AVGPP]
        shortfalls = torch.exp(mean.unsqueeze(-1) + deviation.unsqueeze(-1) * NODES)
        return Forecast(chances, robust, self.scale.ceiling + self.scale.floor - shortfalls)

    def harms(self, mode: str) -> dict[str, Tensor]:
        """By outcome of a mode, each choice's likeliest harm (not its log), in units of the most that it may have."""
        return {
            key: torch.exp(self.laws[key].harm - self.laws[key].total_at(bar))
            for key, bar in self.bars[mode].items()
        }


def believe(
    space: Space,
    trials: Sequence[Trial],
    harms: Mapping[str, NDArray[np.float64]],
    ceilings: Mapping[str, float],
    *,
    targets: Mapping[str, float],
    margins: Mapping[str, float],
) -> Belief:
    """Fit the laws of all modes to all trials.

    `harms` as of `expected_harm`; `targets` are the modes' AvgPP in percent, and a mode holds from robustness
    `margins[mode]` (0 where it has none) on. Call inside `isolated`. Raises SearchError if an outcome admits no fit, or
    no trial says anything about a mode.
    """
    observations = [trial.observation for trial in trials]
    levels = [space.levels(trial.config) for trial in trials]
    values = [values_of(observation) for observation in observations]
    limits = scales(observations, ceilings)
    laws: dict[str, Law] = {}
    for key in (AVGPP, *map(mode_key, targets)):
        scale = limits.setdefault(key, Scale(0.0, 0.05))
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
        if AVGPP in laws:
            # AvgPP is of all steps of all probes and far less noisy: what it taught of each choice is expected of the
            # other outcomes too.
            prior = prior + laws[AVGPP].harm - torch.from_numpy(harms.get(AVGPP, harms[""]))
        laws[key] = fit_law(
            prior, design_of(space, rows), torch.tensor(shortfalls).double(), torch.tensor(bounded)
        )
    bars = {}
    for mode, target in targets.items():
        least = {AVGPP: target, mode_key(mode): margins.get(mode, 0.0)}
        strictly = {key: limits[key].log_shortfall(value) for key, value in least.items() if key in laws}
        bars[mode] = {
            key: bar if key == AVGPP else bar - laws[key].optimism(bar) for key, bar in strictly.items()
        }
        if not bars[mode]:
            raise SearchError(f"surrogate: none of {len(trials)} trials says anything about mode {mode!r}")
    return Belief(laws, bars, limits[AVGPP])


def design_of(space: Space, rows: Sequence[Levels]) -> Design:
    return Design(
        torch.tensor(rows, dtype=torch.long).reshape(len(rows), len(space.dimensions)),
        torch.from_numpy(space.encode(rows)),
    )


def _worst(values: Sequence[Mapping[str, float | None]], key: str, scale: Scale) -> float:
    known = [value for value in (each.get(key) for each in values) if value is not None]
    return min([*known, scale.ceiling - math.exp(1.0) * scale.floor])
