"""Weights -> codes, scales and zero-points, and back. What is computed here is what is searched, exported and run.

The columns of each row are cut into groups that share one scale and, in asymmetric formats, one zero-point. Which, and
which code each weight gets, is a quantiser's choice; all are training-free. What codes stand for is the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from toggle_edge.compress.calibration import InputStatistics
from toggle_edge.compress.gptq import gptq
from toggle_edge.compress.grids import Encoder, Grid, nearest_codes
from toggle_edge.compress.hqq import hqq
from toggle_edge.compress.importance import importance
from toggle_edge.compress.lsq import lsq, seq
from toggle_edge.compress.rounding import rtn
from toggle_edge.config import AXIS, Format
from toggle_edge.errors import ConfigError

CHUNK_WEIGHTS = 2**22
"""Weights that are encoded at a time: bounds what a large layer needs beside itself."""

CACHED_WEIGHTS = 2**17
"""Weights that are dequantised at a time."""


@dataclass(frozen=True)
class CompressedLayer:
    """A layer as it is stored: `rows x columns` weights in one format.

    For integer formats `codes` is `rows x groups x group` in `0..2**bits - 1`, uint8 up to 8 bits and uint16 above, the
    last group padded with the zero-point; `scales` is `rows x groups` float32. `zero_points` is None where every
    zero-point is `2**(bits-1)`; in asymmetric formats it is `rows x groups` codes; of the quantiser `seq` it is
    float32, with halves. For fp16 and fp32 `codes` is the `rows x columns` matrix itself in that precision, without
    scales and zero-points.
    """

    format: Format
    rows: int
    columns: int
    codes: torch.Tensor
    scales: torch.Tensor | None
    zero_points: torch.Tensor | None = None


@dataclass(frozen=True)
class Quantiser:
    """How codes and scales are chosen: an encoder for a format, a layer's input statistics, and whether all scales are
    to be positive.

    `calibrated` ones weigh by those statistics, `needs_gram` with their Gram matrix.
    """

    encoder: Callable[[Format, InputStatistics | None, bool], Encoder]
    calibrated: bool = False
    needs_gram: bool = False


QUANTISERS: Mapping[str, Quantiser] = {
    "rtn": Quantiser(lambda fmt, _, positive: rtn(fmt, positive=positive)),
    "lsq": Quantiser(lambda fmt, *_: lsq(fmt)),
    "seq": Quantiser(lambda fmt, *_: seq(fmt)),
    "hqq": Quantiser(lambda fmt, _, positive: hqq(fmt, positive=positive)),
    "importance": Quantiser(
        lambda fmt, seen, positive: importance(fmt, seen, positive=positive), calibrated=True
    ),
    "gptq": Quantiser(
        lambda fmt, seen, positive: gptq(fmt, seen, positive=positive), calibrated=True, needs_gram=True
    ),
}


def quantiser_named(name: str) -> Quantiser:
    """Raises ConfigError for an unknown name."""
    try:
        return QUANTISERS[name]
    except KeyError:
        raise ConfigError(f"quantiser: expected one of {', '.join(QUANTISERS)}, got {name!r}") from None


def quantise(
    weight: torch.Tensor,
    fmt: Format,
    statistics: InputStatistics | None = None,
    *,
    quantiser: str = "rtn",
    narrow_scales: bool = False,
) -> CompressedLayer:
    """Compress one `rows x columns` matrix. Without statistics a calibrated quantiser takes all inputs as equal.

    `narrow_scales` is for kernels that take positive scales only, and those of groups in bfloat16: the scales are such
    then, so that what is evaluated is what such a kernel computes.

    A group with a weight that is not finite has the scale NaN, so that all of it stays NaN: a damaged model must not
    be mended on the way. Raises ConfigError when a finite weight does not fit into fp16, for an unknown quantiser or
    one that does not have the format, and for statistics of another width.
    """
    rows, columns = weight.shape
    chosen = quantiser_named(quantiser)
    if statistics is not None and len(statistics.mean_square) != columns:
        raise ConfigError(
            f"layer of {rows} x {columns}: expected statistics of {columns} inputs, got "
            f"{len(statistics.mean_square)}; calibrate with this model"
        )
    if fmt.is_float:
        return CompressedLayer(fmt, rows, columns, _as_float(weight, fmt), None)
    size = fmt.group_size(columns)
    groups = -(-columns // size)
    encode = chosen.encoder(fmt, statistics, narrow_scales)
    middle = 1 << fmt.bits - 1
    code_type = torch.uint8 if fmt.bits <= 8 else torch.uint16
    codes = torch.empty(rows, groups, size, dtype=code_type, device=weight.device)
    scales = torch.empty(rows, groups, device=weight.device)
    zeros = torch.empty(rows, groups, device=weight.device)
    step = max(1, CHUNK_WEIGHTS // (groups * size))
    for start in range(0, rows, step):
        part = slice(start, start + step)
        padded = torch.zeros(len(weight[part]), groups * size, device=weight.device)
        padded[:, :columns] = weight[part]
        grouped = padded.reshape(-1, groups, size)
        whole = torch.isfinite(grouped).all(dim=-1, keepdim=True)
        found, grid = encode(torch.where(whole, grouped, 0.0))
        if narrow_scales:
            found, grid = _narrowed(torch.where(whole, grouped, 0.0), found, grid, fmt)
        found.flatten(1)[:, columns:] = grid.zeros[:, -1:]
        codes[part] = found.to(torch.int32).to(code_type)
        scales[part] = torch.where(whole.squeeze(-1), grid.scales, torch.nan)
        zeros[part] = grid.zeros
    if fmt.asymmetric:
        return CompressedLayer(fmt, rows, columns, codes, scales, zeros.to(torch.int32).to(code_type))
    return CompressedLayer(
        fmt, rows, columns, codes, scales, None if bool((zeros == middle).all()) else zeros
    )


def _narrowed(
    groups: torch.Tensor, codes: torch.Tensor, grid: Grid, fmt: Format
) -> tuple[torch.Tensor, Grid]:
    """The same with scales that are positive and, in groups, bfloat16. Codes stay where the sign does: rounding moves a
    level by less than a fiftieth of a step of 4 bits."""
    turned = Grid(grid.scales.abs(), grid.zeros)
    # Fitting can turn a scale round, rarely: the codes of such a group are of the other sign.
    again = nearest_codes(groups, turned, fmt.bits)
    codes = torch.where((grid.scales < 0).unsqueeze(-1), again, codes)
    if fmt.group == AXIS:
        return codes, turned
    return codes, Grid(turned.scales.to(torch.bfloat16).to(torch.float32), grid.zeros)


def dequantise(layer: CompressedLayer, room: torch.Tensor | None = None) -> torch.Tensor:
    """The `rows x columns` float32 weights that the stored codes stand for.

    `room` is a float32 vector to put them into where it has as many numbers as there are codes.
    """
    if layer.scales is None:
        return layer.codes.to(torch.float32)
    count = layer.codes.numel()
    if room is None or len(room) < count:
        room = torch.empty(count, device=layer.codes.device)
    weights = room[:count].view(layer.codes.shape)
    zeros = None if layer.zero_points is None else layer.zero_points.to(torch.float32).unsqueeze(-1)
    middle, scales = 1 << layer.format.bits - 1, layer.scales.unsqueeze(-1)
    # A few rows at a time: they stay in the processor's cache, and the whole is there only once.
    step = max(1, CACHED_WEIGHTS // max(1, layer.codes[0].numel()))
    for start in range(0, layer.rows, step):
        part = slice(start, start + step)
        own = weights[part].copy_(layer.codes[part])
        own -= middle if zeros is None else zeros[part]
        own *= scales[part]
    return weights.reshape(layer.rows, -1)[:, : layer.columns].contiguous()


def _as_float(weight: torch.Tensor, fmt: Format) -> torch.Tensor:
    if fmt.bits == 32:
        return weight.to(torch.float32).clone()
    half = weight.to(torch.float16)
    if bool((torch.isfinite(weight) & ~torch.isfinite(half)).any()):
        rows, columns = weight.shape
        raise ConfigError(f"layer of {rows} x {columns}: weights exceed fp16's range; choose an int8 format")
    return half
