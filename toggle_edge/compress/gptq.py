"""`gptq`: rounding that lets later columns make up for the error of earlier ones (Frantar et al., arXiv 2210.17323).

It starts from the grid of `importance`, and from some wider and narrower, since a compensating weight wants another
range than a lone one. Columns go in the order of their importance, which a grid that is known before allows. Then the
scales are fitted to the codes, now with the inputs' correlations. A row keeps whichever of all these, and of its base,
has the least output error: on the calibration texts the result is never worse than `importance`.
"""

from __future__ import annotations

import torch

from toggle_edge.compress.calibration import InputStatistics
from toggle_edge.compress.grids import Encoder, Grid, restored
from toggle_edge.compress.importance import DAMPING, importance
from toggle_edge.config import Format

BLOCK = 128
"""Columns after which the rest of the matrix is updated at once: the same result, faster."""

STARTS = (1.0, 0.8, 0.87, 0.93, 1.07)
"""What the base's scales are multiplied by, to start from."""


def gptq(fmt: Format, statistics: InputStatistics | None, *, positive: bool = False) -> Encoder:
    """Encoder of the integer format `fmt`; `positive` as of `clipped_grids`. Without a Gram matrix, or with one
    of zeros, it is `importance`."""
    base = importance(fmt, statistics, positive=positive)
    gram = None if statistics is None else statistics.gram
    if gram is None or not bool(gram.any()):
        return base
    order = gram.diagonal().argsort(descending=True, stable=True)
    factor = inverse_factor(gram[order][:, order])
    if factor is None:
        return base

    def encode(groups: torch.Tensor) -> tuple[torch.Tensor, Grid]:
        codes, start = base(groups)
        best, best_grid, least = codes, start, _output_error(groups, codes, start, gram)
        group_of = order // groups.shape[-1]
        weights = groups.flatten(1)[:, order]
        for share in STARTS:
            grid = Grid(start.scales * share, start.zeros)
            spread = Grid(grid.scales[:, group_of], grid.zeros[:, group_of])
            flat = codes.flatten(1).clone()
            flat[:, order] = compensated(weights, spread, factor, fmt.bits)
            codes = flat.reshape(groups.shape)
            grid, error = rescaled(groups, codes, grid, gram)
            better = error < least
            least = torch.where(better, error, least)
            best = torch.where(better[:, None, None], codes, best)
            best_grid = Grid(torch.where(better[:, None], grid.scales, best_grid.scales), best_grid.zeros)
        return best, best_grid

    return encode


def inverse_factor(gram: torch.Tensor) -> torch.Tensor | None:
    """The upper Cholesky factor of the damped Gram matrix's inverse; None where rounding leaves it none."""
    damped = gram + DAMPING * gram.diagonal().mean() * torch.eye(len(gram), device=gram.device)
    lower, failed = torch.linalg.cholesky_ex(damped)
    if bool(failed):
        return None
    upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    return None if bool(failed) else upper


def compensated(weights: torch.Tensor, grid: Grid, factor: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes of `rows x columns` weights, column by column, with a scale and zero-point for each weight in `grid`.

    A weight that is exactly zero was pruned: it stays at the zero-point, whatever the others want of it.
    """
    kept = weights != 0
    work, codes = weights.clone(), torch.empty_like(weights)
    last, columns = (1 << bits) - 1, weights.shape[1]
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        errors = torch.empty(len(weights), end - start, device=weights.device)
        for column in range(start, end):
            scale, zero = grid.scales[:, column], grid.zeros[:, column]
            code = ((work[:, column] / scale).round_() + zero).clamp_(0, last)
            code = torch.where(kept[:, column], code, zero)
            codes[:, column] = code
            error = (work[:, column] - (code - zero) * scale) / factor[column, column]
            errors[:, column - start] = error
            work[:, column:end] -= torch.outer(error, factor[column, column:end])
        work[:, end:] -= errors @ factor[start:end, end:]
    return codes


def rescaled(
    groups: torch.Tensor, codes: torch.Tensor, grid: Grid, gram: torch.Tensor
) -> tuple[Grid, torch.Tensor]:
    """The grid with each group's scale in turn at the least output error for these codes; each row's error then.

    A scale is let go no further than to half or twice its value, where its codes would be others.
    """
    size, scales = groups.shape[-1], grid.scales.clone()
    difference = (restored(codes, grid) - groups).flatten(1)[:, : len(gram)]
    slope = difference @ gram
    for group in range(scales.shape[1]):
        part = slice(group * size, min((group + 1) * size, len(gram)))
        steps = codes[:, group, : part.stop - part.start] - grid.zeros[:, group, None]
        curvature = ((steps @ gram[part, part]) * steps).sum(dim=-1)
        change = -(steps * slope[:, part]).sum(dim=-1) / curvature
        ratio = 1 + change / scales[:, group]
        change = torch.where((ratio >= 0.5) & (ratio <= 2.0), change, 0.0)
        scales[:, group] += change
        moved = change[:, None] * steps
        difference[:, part] += moved
        slope += moved @ gram[part]
    return Grid(scales, grid.zeros), (difference * slope).sum(dim=-1)


def _output_error(groups: torch.Tensor, codes: torch.Tensor, grid: Grid, gram: torch.Tensor) -> torch.Tensor:
    """Each row's mean squared output error on the calibration texts."""
    difference = (groups - restored(codes, grid)).flatten(1)[:, : len(gram)]
    return ((difference @ gram) * difference).sum(dim=-1)
