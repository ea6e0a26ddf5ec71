"""Grids: the levels that codes stand for, and the nearest code to a weight. What all quantisers share.

Weights come as `rows x groups x group`. A grid has a scale and a zero-point per group; code `c` in `0..2**bits - 1`
stands for `(c - zero) * scale`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Grid:
    """Scales and zero-points, both `rows x groups` float32. A scale may be negative, but not zero."""

    scales: torch.Tensor
    zeros: torch.Tensor


Encoder = Callable[[torch.Tensor], tuple[torch.Tensor, Grid]]
"""Finite `rows x groups x group` weights -> their codes (float32, whole numbers, same shape) and the grid."""


def nearest_codes(groups: torch.Tensor, grid: Grid, bits: int) -> torch.Tensor:
    """The code next to each weight, as float32. Ties round to the even distance from the zero-point."""
    zeros = grid.zeros.unsqueeze(-1)
    steps = groups / grid.scales.unsqueeze(-1)
    # Where the zero-point lies between two codes (seq), so do the levels.
    between = zeros - zeros.floor()
    return (steps.sub_(between).round_().add_(between + zeros)).clamp_(0, (1 << bits) - 1)


def restored(codes: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The weights that the codes stand for."""
    return (codes - grid.zeros.unsqueeze(-1)) * grid.scales.unsqueeze(-1)


def squared_error(
    groups: torch.Tensor, codes: torch.Tensor, grid: Grid, importance: torch.Tensor | None
) -> torch.Tensor:
    """Each group's squared error, `rows x groups`; weighted where `importance` (`groups x group`) is given."""
    difference = restored(codes, grid).sub_(groups).square_()
    return (difference if importance is None else difference.mul_(importance)).sum(dim=-1)


def refitted(groups: torch.Tensor, codes: torch.Tensor, grid: Grid, importance: torch.Tensor | None) -> Grid:
    """The grid whose scales have the least squared error for these codes: sum(w W q) / sum(w q**2).

    A group without such a scale (all codes at the zero-point, or none that correlates) keeps its own.
    """
    steps = codes - grid.zeros.unsqueeze(-1)
    weighted = steps if importance is None else steps * importance
    scales = (weighted * groups).sum(dim=-1) / (weighted * steps).sum(dim=-1)
    usable = torch.isfinite(scales) & (scales != 0)
    return Grid(torch.where(usable, scales, grid.scales), grid.zeros)


def best_of(
    groups: torch.Tensor, grids: Iterable[Grid], bits: int, importance: torch.Tensor | None = None
) -> Grid:
    """For each group the first of the grids with the least (weighted) squared error; at least one is needed."""
    candidates = iter(grids)
    best = next(candidates)
    least = squared_error(groups, nearest_codes(groups, best, bits), best, importance)
    for grid in candidates:
        error = squared_error(groups, nearest_codes(groups, grid, bits), grid, importance)
        better = error < least
        least = torch.where(better, error, least)
        best = Grid(
            torch.where(better, grid.scales, best.scales), torch.where(better, grid.zeros, best.zeros)
        )
    return best


def alternated(
    groups: torch.Tensor, grid: Grid, bits: int, importance: torch.Tensor | None = None, *, rounds: int
) -> Grid:
    """Round to the grid, refit the scales, and again: each round lowers the (weighted) error, or the loop ends."""
    for _ in range(rounds):
        following = refitted(groups, nearest_codes(groups, grid, bits), grid, importance)
        if torch.equal(following.scales, grid.scales):
            break
        grid = following
    return grid
