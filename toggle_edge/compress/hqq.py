"""`hqq`: half-quadratic quantisation (Badri & Shaji, 2023), which needs no calibration.

It lowers sum(|W - Wq|**p) with p < 1, which lets few weights be far off where that serves the many. An auxiliary error
takes the power: shrink(W - Wq) solves for it, and a least-squares step solves for the grid, in turns, with a growing
penalty. Asymmetric formats move the zero-point (the method's own form, here rounded to a code in the end), symmetric
ones, which have none to move, the scale.
"""

from __future__ import annotations

import torch

from toggle_edge.compress.grids import Encoder, Grid, best_of, nearest_codes, restored
from toggle_edge.compress.rounding import clipped_grids
from toggle_edge.config import Format

POWER = 0.7
PENALTY = 10.0
GROWTH = 1.01
ROUNDS = 20


def hqq(fmt: Format) -> Encoder:
    """Encoder of the integer format `fmt`, by the weights alone."""

    def encode(groups: torch.Tensor) -> tuple[torch.Tensor, Grid]:
        start = best_of(groups, clipped_grids(groups, fmt), fmt.bits)
        # The constants of the method are for weights of about this size.
        unit = groups.abs().mean(dim=-1, keepdim=True)
        unit = torch.where(unit == 0, torch.ones_like(unit), unit)
        scaled = Grid(start.scales / unit.squeeze(-1), start.zeros)
        best = settled(groups / unit, scaled, fmt)
        grid = Grid(best.scales * unit.squeeze(-1), best.zeros)
        return nearest_codes(groups, grid, fmt.bits), grid

    return encode


def settled(groups: torch.Tensor, start: Grid, fmt: Format) -> Grid:
    """For each group the grid with the least sum(|W - Wq|**p) among `start` and all that the iteration passes."""
    last = (1 << fmt.bits) - 1
    best, least = start, _distance(groups, start, fmt.bits)
    grid, penalty = start, PENALTY
    for _ in range(ROUNDS):
        codes = nearest_codes(groups, _whole(grid, last), fmt.bits)
        target = groups - shrink(groups - restored(codes, grid), penalty)
        if fmt.asymmetric:
            zeros = (codes - target / grid.scales.unsqueeze(-1)).mean(dim=-1)
            grid = Grid(grid.scales, zeros)
        else:
            grid = _rescaled(target, codes, grid)
        penalty *= GROWTH
        candidate = _whole(grid, last)
        distance = _distance(groups, candidate, fmt.bits)
        better = distance < least
        least = torch.where(better, distance, least)
        best = Grid(
            torch.where(better, candidate.scales, best.scales),
            torch.where(better, candidate.zeros, best.zeros),
        )
    return best


def shrink(error: torch.Tensor, penalty: float) -> torch.Tensor:
    """The method's generalised soft threshold: sign(d) max(|d| - |d|**(p-1) / penalty, 0); 0 at 0."""
    size = error.abs()
    return error.sign() * (size - size.clamp(min=1e-8).pow(POWER - 1) / penalty).clamp_(min=0)


def _rescaled(target: torch.Tensor, codes: torch.Tensor, grid: Grid) -> Grid:
    steps = codes - grid.zeros.unsqueeze(-1)
    scales = (target * steps).sum(dim=-1) / steps.square().sum(dim=-1)
    usable = torch.isfinite(scales) & (scales != 0)
    return Grid(torch.where(usable, scales, grid.scales), grid.zeros)


def _whole(grid: Grid, last: int) -> Grid:
    return Grid(grid.scales, grid.zeros.round().clamp(0, last))


def _distance(groups: torch.Tensor, grid: Grid, bits: int) -> torch.Tensor:
    return (groups - restored(nearest_codes(groups, grid, bits), grid)).abs_().pow_(POWER).sum(dim=-1)
