"""`rtn`: round to nearest, with a search over clipping factors for the least squared error (as OCTAV's or AWQ's clip
search, here by grid).

The integer range is lopsided (-2..1 for 2 bits), so scales of both signs are tried: a negative scale turns the longer
side to where the larger weights are. Asymmetric formats say the same with the zero-point, and more.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from toggle_edge.compress.grids import Encoder, Grid, best_of, nearest_codes
from toggle_edge.config import Format

CLIP_FACTORS = tuple(1.0 - 0.05 * step for step in range(13))
"""Share of the largest weight that the end of the range stands for: 1.0 clips nothing, 0.4 clips the most."""


def rtn(fmt: Format, *, positive: bool = False) -> Encoder:
    """Encoder of the integer format `fmt`, by the weights alone; `positive` as of `clipped_grids`."""

    def encode(groups: torch.Tensor) -> tuple[torch.Tensor, Grid]:
        grid = best_of(groups, clipped_grids(groups, fmt, positive=positive), fmt.bits)
        return nearest_codes(groups, grid, fmt.bits), grid

    return encode


def clipped_grids(groups: torch.Tensor, fmt: Format, *, positive: bool = False) -> Iterator[Grid]:
    """The grids that the search compares, those of the symmetric format first.

    With `positive`, for kernels that take no negative scale, the shorter side of the range may reach the largest weight
    instead.
    Asymmetric grids reach from the least to the largest weight, and always over zero; the zero-point is the code on
    either side of where zero falls.
    """
    half, last = 1 << fmt.bits - 1, (1 << fmt.bits) - 1
    largest = _or_one(groups.abs().amax(dim=-1))
    middle = torch.full_like(largest, half)
    for factor in CLIP_FACTORS:
        for sign in (1.0, -1.0):
            if positive and sign < 0:
                yield Grid(factor * largest / max(half - 1, 1), middle)
            elif fmt.asymmetric and sign < 0:
                # The same levels with a positive scale: the zero-point moves instead.
                yield Grid(factor * largest / half, middle - 1)
            else:
                yield Grid(sign * factor * largest / half, middle)
    if fmt.asymmetric:
        low = groups.amin(dim=-1).clamp_(max=0)
        span = _or_one(groups.amax(dim=-1).clamp_(min=0) - low)
        zeros = -low / span * last
        for factor in CLIP_FACTORS:
            for rounded in (zeros.floor(), zeros.ceil()):
                yield Grid(factor * span / last, rounded.clamp(0, last))


def _or_one(values: torch.Tensor) -> torch.Tensor:
    # A group of zeros has no scale; any non-zero one stores it exactly.
    return torch.where(values == 0, torch.ones_like(values), values)
