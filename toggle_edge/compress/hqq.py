"""`hqq`: half-quadratic quantisation (Badri & Shaji, 2023), which needs no calibration.

It lowers sum(|W - Wq|**p) with p < 1, which lets few weights be far off where that serves the many. An auxiliary error
takes the power: shrink(W - Wq) solves for it, and a least-squares step solves for the grid, in turns, with a growing
penalty. The published method moves a fractional zero-point. Ours are codes, between which so small a step always rounds
back, so the scale moves instead, as in the method's form without zero-points; asymmetric formats start from three.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from toggle_edge.compress.grids import Encoder, Grid, best_of, nearest_codes, refitted, restored
from toggle_edge.compress.rounding import clipped_grids
from toggle_edge.config import Format

POWER = 0.7
PENALTY = 10.0
GROWTH = 1.01
ROUNDS = 20


def hqq(fmt: Format, *, positive: bool = False) -> Encoder:
    """Encoder of the integer format `fmt`, by the weights alone; `positive` as of `clipped_grids`."""

    def encode(groups: torch.Tensor) -> tuple[torch.Tensor, Grid]:
        start = best_of(groups, clipped_grids(groups, fmt, positive=positive), fmt.bits)
        # The constants of the method are for weights of about this size.
        unit = groups.abs().mean(dim=-1, keepdim=True)
        unit = torch.where(unit == 0, torch.ones_like(unit), unit)
        scaled, last = groups / unit, (1 << fmt.bits) - 1
        found = [
            settled(scaled, Grid(start.scales / unit.squeeze(-1), zeros), fmt.bits)
            for zeros in ((start.zeros, *_beside(start.zeros, last)) if fmt.asymmetric else (start.zeros,))
        ]
        best = _best(scaled, found, fmt.bits)
        grid = Grid(best.scales * unit.squeeze(-1), best.zeros)
        return nearest_codes(groups, grid, fmt.bits), grid

    return encode


def settled(groups: torch.Tensor, start: Grid, bits: int) -> Grid:
    """For each group the grid with the least sum(|W - Wq|**p) among `start` and all that the iteration passes."""
    passed, penalty = [start], PENALTY
    for _ in range(ROUNDS):
        grid = passed[-1]
        codes = nearest_codes(groups, grid, bits)
        target = groups - shrink(groups - restored(codes, grid), penalty)
        passed.append(refitted(target, codes, grid, None))
        penalty *= GROWTH
    return _best(groups, passed, bits)


def shrink(error: torch.Tensor, penalty: float) -> torch.Tensor:
    """The method's generalised soft threshold: sign(d) max(|d| - |d|**(p-1) / penalty, 0); 0 at 0."""
    size = error.abs()
    return error.sign() * (size - size.clamp(min=1e-8).pow(POWER - 1) / penalty).clamp_(min=0)


def _best(groups: torch.Tensor, grids: Sequence[Grid], bits: int) -> Grid:
    best, least = grids[0], _distance(groups, grids[0], bits)
    for grid in grids[1:]:
        distance = _distance(groups, grid, bits)
        better = distance < least
        least = torch.where(better, distance, least)
        best = Grid(
            torch.where(better, grid.scales, best.scales), torch.where(better, grid.zeros, best.zeros)
        )
    return best


def _beside(zeros: torch.Tensor, last: int) -> tuple[torch.Tensor, torch.Tensor]:
    return (zeros - 1).clamp_(min=0), (zeros + 1).clamp_(max=last)


def _distance(groups: torch.Tensor, grid: Grid, bits: int) -> torch.Tensor:
    return (groups - restored(nearest_codes(groups, grid, bits), grid)).abs_().pow_(POWER).sum(dim=-1)
