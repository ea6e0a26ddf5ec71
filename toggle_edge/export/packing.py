"""Codes -> bytes, as MatMulNBits and GatherBlockQuantized read them: a little-endian bit stream per group."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toggle_edge.compress.quantise import CompressedLayer
from toggle_edge.config import SCALE_BITS, Format

ALIGNMENT = 64
"""Scales start at a multiple of this in a layer's file, so that an engine may map them."""


def pack_codes(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Pack `... x n` codes of 2, 4 or 8 bits to `... x n*bits/8` bytes, the first code in the lowest bits.

    `n` must be a multiple of `8 / bits`; groups always are.
    """
    per_byte = 8 // bits
    slots = codes.reshape(*codes.shape[:-1], -1, per_byte)
    shifts = np.arange(per_byte, dtype=np.uint8) * bits
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(slots << shifts, axis=-1).astype(np.uint8)
    return packed


def unpack_codes(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """The inverse of `pack_codes`."""
    shifts = np.arange(8 // bits, dtype=np.uint8) * bits
    slots = (packed[..., None] >> shifts) & (2**bits - 1)
    codes: NDArray[np.uint8] = slots.reshape(*packed.shape[:-1], -1).astype(np.uint8)
    return codes


def weight_path(layer: str) -> str:
    """Where a layer's file lies in the artifact."""
    return f"weights/{layer}.bin"


@dataclass(frozen=True, slots=True)
class Container:
    """What a layer takes in its file, in bytes: its weights at the format's bits, and what the container adds to them.

    `padding` fills up the last group of each row, and the codes to where the scales may begin.
    """

    weights: int
    scales: int
    zero_points: int
    padding: int

    @property
    def total(self) -> int:
        return self.weights + self.scales + self.zero_points + self.padding


def container(fmt: Format, rows: int, columns: int) -> Container:
    """The container of a `rows x columns` layer, before there is one. Weights that end within a byte fill it."""
    weights = -(-fmt.bits * rows * columns // 8)
    if fmt.is_float:
        return Container(weights, 0, 0, 0)
    size = fmt.group_size(columns)
    groups = -(-columns // size)
    packed = rows * groups * size * fmt.bits // 8
    zero_points = rows * -(-groups * fmt.bits // 8) if fmt.asymmetric else 0
    padding = packed + -packed % ALIGNMENT - weights
    return Container(weights, rows * groups * SCALE_BITS // 8, zero_points, padding)


def layer_size(fmt: Format, rows: int, columns: int) -> tuple[int, int]:
    """Bytes of a layer's file, and the offset at which its scales start, before there is such a layer."""
    found = container(fmt, rows, columns)
    return found.total, 0 if fmt.is_float else found.weights + found.padding


def layer_bytes(layer: CompressedLayer) -> tuple[bytes, int]:
    """A layer's file, and the offset at which its scales start (0 for fp16, which has none).

    Zero-points, where the format has them, follow the scales: each row's packed, to whole bytes.
    """
    if layer.scales is None:
        return layer.codes.numpy().tobytes(), 0
    packed = pack_codes(layer.codes.numpy(), layer.format.bits).tobytes()
    padding = -len(packed) % ALIGNMENT
    scales = layer.scales.numpy().astype("<f4").tobytes()
    zero_points = b""
    if layer.zero_points is not None:
        per_byte = 8 // layer.format.bits
        rows = np.pad(layer.zero_points.numpy(), ((0, 0), (0, -layer.zero_points.shape[1] % per_byte)))
        zero_points = pack_codes(rows, layer.format.bits).tobytes()
    return packed + bytes(padding) + scales + zero_points, len(packed) + padding
