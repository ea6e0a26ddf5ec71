"""`importance`: scales (and zero-points) with the least error of the layer's outputs, inputs taken as uncorrelated.

A weight's squared error counts as often as the mean square of its input, E[x**2], as in llama.cpp's importance matrix
and llm-compressor's observer of that name. Each candidate scale is refitted in closed form to the codes that it gives.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from toggle_edge.compress.calibration import InputStatistics
from toggle_edge.compress.grids import Encoder, Grid, alternated, best_of, nearest_codes, refitted
from toggle_edge.compress.rounding import clipped_grids
from toggle_edge.config import Format

DAMPING = 0.01
"""Share of the mean importance that every input has at least: calibration never saw all that there is."""

REFITS = 8


def importance(fmt: Format, statistics: InputStatistics | None, *, positive: bool = False) -> Encoder:
    """Encoder of the integer format `fmt`. Without statistics all inputs count the same; `positive` as of
    `clipped_grids`."""

    def encode(groups: torch.Tensor) -> tuple[torch.Tensor, Grid]:
        weights = importance_of(groups, statistics)
        plain = best_of(groups, clipped_grids(groups, fmt, positive=positive), fmt.bits, weights)
        fitted = best_of(groups, _fitted_grids(groups, fmt, weights, positive), fmt.bits, weights)
        fitted = alternated(groups, fitted, fmt.bits, weights, rounds=REFITS)
        grid = best_of(groups, (plain, fitted), fmt.bits, weights)
        return nearest_codes(groups, grid, fmt.bits), grid

    return encode


def importance_of(groups: torch.Tensor, statistics: InputStatistics | None) -> torch.Tensor | None:
    """Each input's damped importance, `groups x group`, mean 1 over the layer; 0 for padding. None without any."""
    if statistics is None:
        return None
    squares = statistics.mean_square.to(groups.device, torch.float64)
    mean = squares.mean()
    if mean == 0:
        return None
    padded = torch.zeros(groups[0].numel(), dtype=torch.float32, device=groups.device)
    padded[: len(squares)] = (squares / mean + DAMPING).to(torch.float32)
    return padded.reshape(groups.shape[1:])


def _fitted_grids(
    groups: torch.Tensor, fmt: Format, weights: torch.Tensor | None, positive: bool
) -> Iterator[Grid]:
    for grid in clipped_grids(groups, fmt, positive=positive):
        yield refitted(groups, nearest_codes(groups, grid, fmt.bits), grid, weights)
