"""`lsq` and `seq`: the quantisers of TOGGLE (arXiv 2512.16855), with their steps fitted instead of trained.

LSQ (Esser et al., 2020) rounds to whole steps; StretchedElasticQuant (ParetoQ, arXiv 2502.02631) to half-way points, so
that few levels lie evenly around zero. The step starts where the range reaches the largest weight and goes to where
the squared error's derivative is zero, which is what training the step alone would reach. (The step is the range over
the number of levels; taking the range itself for it, as the method's published code does, leaves three levels at any
width.) The paper uses `seq` up to 2 bits and `lsq` above.
"""

from __future__ import annotations

import torch

from toggle_edge.compress.grids import Encoder, Grid, alternated, best_of, nearest_codes
from toggle_edge.config import Format
from toggle_edge.errors import ConfigError

ROUNDS = 30
"""Most steps of the fit; it ends earlier where nothing changes."""


def lsq(fmt: Format) -> Encoder:
    """Encoder of a symmetric integer format. Raises ConfigError for an asymmetric one."""
    half = _half_of(fmt, "lsq")

    def encode(groups: torch.Tensor) -> tuple[torch.Tensor, Grid]:
        largest = groups.abs().amax(dim=-1)
        scales = torch.where(largest == 0, torch.ones_like(largest), largest / max(half - 1, 1))
        return _fitted(groups, Grid(scales, torch.full_like(scales, half)), fmt.bits)

    return encode


def seq(fmt: Format) -> Encoder:
    """Encoder of a symmetric integer format whose levels are `(c - 2**(bits-1) + 1/2)` steps: none of them is zero.

    A group with a weight that is exactly zero, as pruning leaves it, or with padding, has LSQ's whole steps instead, so
    that zeros stay zero. Raises ConfigError for an asymmetric format.
    """
    half = _half_of(fmt, "seq")
    whole_steps = lsq(fmt)

    def encode(groups: torch.Tensor) -> tuple[torch.Tensor, Grid]:
        codes, whole = whole_steps(groups)
        stretched = ~(groups == 0).any(dim=-1)
        largest = groups.abs().amax(dim=-1)
        scales = torch.where(stretched, largest / half, torch.ones_like(largest))
        half_steps, between = _fitted(groups, Grid(scales, torch.full_like(scales, half - 0.5)), fmt.bits)
        grid = Grid(
            torch.where(stretched, between.scales, whole.scales),
            torch.where(stretched, between.zeros, whole.zeros),
        )
        return torch.where(stretched.unsqueeze(-1), half_steps, codes), grid

    return encode


def _fitted(groups: torch.Tensor, start: Grid, bits: int) -> tuple[torch.Tensor, Grid]:
    grid = best_of(groups, (start, alternated(groups, start, bits, rounds=ROUNDS)), bits)
    return nearest_codes(groups, grid, bits), grid


def _half_of(fmt: Format, name: str) -> int:
    if fmt.asymmetric:
        raise ConfigError(
            f"quantiser {name}: has no zero-point, got {fmt}; choose {Format(fmt.bits, fmt.group)}, or one of rtn, "
            "hqq, importance and gptq"
        )
    return 1 << fmt.bits - 1
