"""Packing is a bijection, and its layout is the one that the kernels read (parity tests hold it to onnxruntime)."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toggle_edge.compress.quantise import quantise
from toggle_edge.config import FP16, Format
from toggle_edge.export.packing import ALIGNMENT, layer_bytes, pack_codes, unpack_codes


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([2, 4, 8]), st.integers(1, 4), st.integers(1, 9), st.integers(0, 1000))
def test_packing_is_a_bijection(bits: int, rows: int, octets: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 2**bits, (rows, 8 * octets), dtype=np.uint8)
    packed = pack_codes(codes, bits)
    assert packed.nbytes * 8 == codes.size * bits
    assert (unpack_codes(packed, bits) == codes).all()


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([2, 4, 8]), st.integers(0, 1000))
def test_the_stream_is_little_endian(bits: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 2**bits, 32, dtype=np.uint8)
    stream = int.from_bytes(pack_codes(codes, bits).tobytes(), "little")
    assert [(stream >> (bits * i)) % 2**bits for i in range(32)] == codes.tolist()


def test_a_layers_file_is_codes_then_aligned_scales() -> None:
    layer = quantise(torch.randn(3, 40, generator=torch.Generator().manual_seed(0)), Format(4, 32))
    content, offset = layer_bytes(layer)
    assert layer.scales is not None
    assert offset % ALIGNMENT == 0
    assert content[: 3 * 2 * 16] == pack_codes(layer.codes.numpy(), 4).tobytes()
    assert content[offset:] == layer.scales.numpy().tobytes()


def test_zero_points_follow_the_scales_each_row_in_whole_bytes() -> None:
    weight = torch.randn(3, 90, generator=torch.Generator().manual_seed(0)) + 1
    layer = quantise(weight, Format(4, 32, True))
    content, offset = layer_bytes(layer)
    assert layer.scales is not None
    assert layer.zero_points is not None
    behind = content[offset + layer.scales.numel() * 4 :]
    assert len(content) - offset + 3 * 3 * 16 == layer.format.storage_bytes(3, 90)
    rows = unpack_codes(np.frombuffer(behind, dtype=np.uint8).reshape(3, 2), 4)
    assert rows[:, :3].tolist() == layer.zero_points.tolist()


def test_an_fp16_layers_file_is_its_matrix() -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    assert layer_bytes(quantise(weight, FP16)) == (weight.half().numpy().tobytes(), 0)
