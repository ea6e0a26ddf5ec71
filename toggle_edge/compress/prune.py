"""Pruners: set the share `sparsity` of every row's weights to zero, those of the least score.

`magnitude` scores by the weight's size, as TOGGLE does; `wanda` by size times the norm of its input (Sun et al., arXiv
2306.11695). The count is exact in every row, whatever its length: the threshold is the k-th smallest score itself, and
equal scores go in the order of columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from toggle_edge.compress.calibration import InputStatistics
from toggle_edge.config import MOST_SPARSITY
from toggle_edge.errors import ConfigError

CHUNK_WEIGHTS = 2**22


@dataclass(frozen=True)
class Pruner:
    """Which weights become zero: of `rows x columns` weights at a sparsity. `calibrated` ones score by the inputs."""

    prune: Callable[[torch.Tensor, float, InputStatistics | None], torch.Tensor]
    calibrated: bool = False


def magnitude(
    weight: torch.Tensor, sparsity: float, statistics: InputStatistics | None = None
) -> torch.Tensor:
    """A copy of `rows x columns` weights in which the smallest of every row are zero. Statistics are not used.

    A NaN is never pruned. Raises ConfigError for a sparsity outside 0.0 to 0.5.
    """
    return _pruned(weight, sparsity, None)


def wanda(weight: torch.Tensor, sparsity: float, statistics: InputStatistics | None = None) -> torch.Tensor:
    """Likewise by size times the root of E[x**2]; without statistics (nothing is multiplied) by size alone.

    Raises ConfigError for a sparsity outside 0.0 to 0.5.
    """
    return _pruned(weight, sparsity, None if statistics is None else statistics.mean_square)


PRUNERS: Mapping[str, Pruner] = {"magnitude": Pruner(magnitude), "wanda": Pruner(wanda, calibrated=True)}


def pruner_named(name: str) -> Pruner:
    """Raises ConfigError for an unknown name."""
    try:
        return PRUNERS[name]
    except KeyError:
        raise ConfigError(f"pruner: expected one of {', '.join(PRUNERS)}, got {name!r}") from None


def zeros_per_row(columns: int, sparsity: float) -> int:
    """How many weights of a row of that many are set to zero: the nearest whole number, halves up."""
    return int(sparsity * columns + 0.5)


def _pruned(weight: torch.Tensor, sparsity: float, mean_square: torch.Tensor | None) -> torch.Tensor:
    if not 0.0 <= sparsity <= MOST_SPARSITY:
        raise ConfigError(f"sparsity: expected 0.0 to {MOST_SPARSITY}, got {sparsity}")
    rows, columns = weight.shape
    count = zeros_per_row(columns, sparsity)
    result = weight.clone()
    if count == 0:
        return result
    norms = None if mean_square is None else mean_square.sqrt().to(weight.device, torch.float32)
    step = max(1, CHUNK_WEIGHTS // columns)
    for start in range(0, rows, step):
        part = result[start : start + step]
        scores = part.abs().float()
        # An input that was always zero leaves all of its weights without a score; then size decides nothing either.
        scores = scores if norms is None else scores * norms
        part[_least(scores.nan_to_num_(nan=torch.inf, posinf=torch.inf), count)] = 0
    return result


def _least(scores: torch.Tensor, count: int) -> torch.Tensor:
    """A mask of exactly `count` of each row's least scores; of equal ones the first."""
    threshold = scores.kthvalue(count, dim=-1, keepdim=True).values
    below, level = scores < threshold, scores == threshold
    wanted = count - below.sum(dim=-1, keepdim=True)
    return below | (level & (level.cumsum(dim=-1, dtype=torch.int32) <= wanted))
