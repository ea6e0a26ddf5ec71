"""Weights -> codes and scales, and back. What is computed here is what is searched, exported and run.

Group-wise symmetric round-to-nearest: the columns of each row are cut into groups that share one scale, found
by a search over clipping factors for the least squared error (as in OCTAV or AWQ's clip search, here by grid).
The integer range is lopsided (-2..1 for 2 bits), so scales of both signs are tried: a negative scale turns the
longer side to where the larger weights are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from toggle_edge.config import Format
from toggle_edge.errors import ConfigError

CLIP_FACTORS = tuple(1.0 - 0.05 * step for step in range(13))
"""Share of the largest weight that the end of the range stands for: 1.0 clips nothing, 0.4 clips the most."""


@dataclass(frozen=True)
class CompressedLayer:
    """A layer as it is stored: `rows x columns` weights in one format.

    For integer formats `codes` is `rows x groups x group` uint8 in `0..2**bits - 1`, with the zero-point at
    `2**(bits-1)` and the last group padded with it, and `scales` is `rows x groups` float32. For fp16 and fp32
    `codes` is the `rows x columns` matrix itself in that precision and `scales` is None.
    """

    format: Format
    rows: int
    columns: int
    codes: torch.Tensor
    scales: torch.Tensor | None


def quantise(weight: torch.Tensor, fmt: Format) -> CompressedLayer:
    """Compress one `rows x columns` matrix.

    A group with a weight that is not finite has the scale NaN, so that all of it stays NaN: a damaged model must not
    be mended on the way. Raises ConfigError when a finite weight does not fit into fp16.
    """
    rows, columns = weight.shape
    if fmt.bits == 32:
        return CompressedLayer(fmt, rows, columns, weight.to(torch.float32).clone(), None)
    if fmt.bits == 16:
        half = weight.to(torch.float16)
        if bool((torch.isfinite(weight) & ~torch.isfinite(half)).any()):
            raise ConfigError(
                f"layer of {rows} x {columns}: weights exceed fp16's range; choose an int8 format"
            )
        return CompressedLayer(fmt, rows, columns, half, None)
    size = fmt.group_size(columns)
    groups = -(-columns // size)
    padded = torch.zeros(rows, groups * size, dtype=torch.float32)
    padded[:, :columns] = weight
    grouped = padded.reshape(rows, groups, size)
    whole = torch.isfinite(grouped).all(dim=-1, keepdim=True)
    codes, scales = _least_squares_codes(torch.where(whole, grouped, 0.0), fmt.bits)
    scales[~whole.squeeze(-1)] = torch.nan
    zero_point = 1 << fmt.bits - 1
    codes.reshape(rows, -1)[:, columns:] = zero_point
    return CompressedLayer(fmt, rows, columns, codes, scales)


def dequantise(layer: CompressedLayer) -> torch.Tensor:
    """The `rows x columns` float32 weights that the stored codes stand for."""
    if layer.scales is None:
        return layer.codes.to(torch.float32)
    centred = layer.codes.to(torch.float32) - (1 << layer.format.bits - 1)
    weights = centred * layer.scales.unsqueeze(-1)
    return weights.reshape(layer.rows, -1)[:, : layer.columns].contiguous()


def _least_squares_codes(groups: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    half = 1 << bits - 1
    largest = groups.abs().amax(dim=-1)
    # A group of zeros has no scale; any non-zero one stores it exactly.
    largest = torch.where(largest == 0, torch.ones_like(largest), largest)
    best_error = torch.full_like(largest, float("inf"))
    best_scale = largest / half
    for factor in CLIP_FACTORS:
        for sign in (1.0, -1.0):
            scale = sign * factor * largest / half
            steps = (groups / scale.unsqueeze(-1)).round_().clamp_(-half, half - 1)
            error = (steps.mul_(scale.unsqueeze(-1)).sub_(groups)).square_().sum(dim=-1)
            better = error < best_error
            best_error = torch.where(better, error, best_error)
            best_scale = torch.where(better, scale, best_scale)
    steps = (groups / best_scale.unsqueeze(-1)).round_().clamp_(-half, half - 1)
    return (steps + half).to(torch.uint8), best_scale
