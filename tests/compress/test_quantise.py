"""A compressed layer is its codes and scales; dequantising is one function that everybody shares."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toggle_edge.compress.quantise import dequantise, quantise
from toggle_edge.config import AXIS, FP16, FP32, Format
from toggle_edge.errors import ConfigError

integer_formats = st.builds(Format, st.sampled_from([2, 4, 8]), st.sampled_from([16, 32, 64]))


def weights(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30, deadline=None)
@given(integer_formats, st.integers(1, 5), st.integers(1, 130), st.integers(0, 100))
def test_every_weight_is_its_code_times_its_groups_scale(
    fmt: Format, rows: int, columns: int, seed: int
) -> None:
    layer = quantise(weights(rows, columns, seed), fmt)
    assert layer.scales is not None
    restored = dequantise(layer)
    assert restored.shape == (rows, columns)
    for row in range(rows):
        for column in range(columns):
            group, place = divmod(column, fmt.group)
            code = int(layer.codes[row, group, place])
            assert 0 <= code < 2**fmt.bits
            expected = (code - 2 ** (fmt.bits - 1)) * layer.scales[row, group]
            assert restored[row, column] == expected


@settings(max_examples=20, deadline=None)
@given(integer_formats, st.integers(0, 100))
def test_no_group_is_further_off_than_plain_rounding(fmt: Format, seed: int) -> None:
    weight = weights(4, 64, seed)
    grouped = weight.reshape(4, -1, min(fmt.group, 64))
    half = 2 ** (fmt.bits - 1)
    scale = grouped.abs().amax(-1, keepdim=True) / half
    plain = (grouped / scale).round().clamp(-half, half - 1) * scale
    ours = dequantise(quantise(weight, fmt)).reshape(grouped.shape)
    assert bool(((ours - grouped).square().sum(-1) <= (plain - grouped).square().sum(-1) + 1e-9).all())


def test_more_bits_and_smaller_groups_are_closer() -> None:
    weight = weights(64, 256, 0)
    errors = [
        float((dequantise(quantise(weight, Format.parse(text))) - weight).square().mean())
        for text in ("int2-g64", "int4-g64", "int4-g32", "int8-g64", "fp16")
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 5 * errors[1] > 25 * errors[3]


def test_the_longer_side_of_the_range_goes_where_the_largest_weight_is() -> None:
    # Only a negative scale can store +2 with two bits, whose codes stand for -2, -1, 0 and 1 scales.
    weight = torch.tensor([[2.0, 1.0, 0.0, -1.0] * 4])
    assert torch.equal(dequantise(quantise(weight, Format(2, 16))), weight)


def test_a_group_of_zeros_stays_zero() -> None:
    assert torch.equal(dequantise(quantise(torch.zeros(2, 32), Format(4, 32))), torch.zeros(2, 32))


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 8), st.integers(1, 4), st.integers(1, 130), st.integers(0, 100))
def test_per_axis_a_whole_row_shares_one_scale(bits: int, rows: int, columns: int, seed: int) -> None:
    weight = weights(rows, columns, seed)
    layer = quantise(weight, Format(bits, AXIS))
    assert layer.scales is not None
    assert layer.scales.shape == (rows, 1)
    levels = dequantise(layer) / layer.scales
    assert bool((levels - levels.round()).abs().max() < 1e-3)
    assert int(levels.abs().max().round()) <= 2 ** (bits - 1)


def test_per_axis_error_falls_strictly_with_bits() -> None:
    weight = weights(32, 128, 3)
    errors = [
        float((dequantise(quantise(weight, Format(bits, AXIS))) - weight).square().mean())
        for bits in range(2, 9)
    ]
    assert all(later < earlier for earlier, later in itertools.pairwise(errors))


def test_fp32_keeps_everything_and_is_a_copy() -> None:
    weight = weights(3, 7, 1)
    layer = quantise(weight, FP32)
    assert torch.equal(dequantise(layer), weight)
    weight.zero_()
    assert float(layer.codes.abs().max()) > 0


def test_fp16_keeps_half_precision_weights_exactly() -> None:
    weight = weights(3, 7, 1).half().float()
    assert torch.equal(dequantise(quantise(weight, FP16)), weight)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("text", ["int4-g32", "int8-axis", "fp16", "fp32"])
def test_a_damaged_weight_stays_damaged_and_its_neighbours_do_not(value: float, text: str) -> None:
    weight = weights(2, 64, 3)
    weight[1, 3] = value
    fmt = Format.parse(text)
    back = dequantise(quantise(weight, fmt))
    assert not bool(torch.isfinite(back[1, 3]))
    assert bool(torch.isfinite(back[0]).all())
    if text == "int4-g32":
        assert bool(torch.isfinite(back[1, 32:]).all())
        assert not bool(torch.isfinite(back[1, :32]).any())


def test_a_weight_beyond_half_precision_is_refused_for_fp16_only() -> None:
    weight = torch.full((1, 32), 1e6)
    with pytest.raises(ConfigError, match="fp16's range"):
        quantise(weight, FP16)
    assert torch.allclose(dequantise(quantise(weight, Format(8, 32))), weight)
