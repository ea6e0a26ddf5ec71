"""Each quantiser against its own formula, computed another way; and what holds for all of them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from toggle_edge.compress import quantise as module
from toggle_edge.compress.calibration import InputStatistics
from toggle_edge.compress.grids import Grid
from toggle_edge.compress.hqq import GROWTH, PENALTY, POWER, ROUNDS, settled, shrink
from toggle_edge.compress.importance import DAMPING
from toggle_edge.compress.quantise import QUANTISERS, dequantise, quantise
from toggle_edge.config import AXIS, Format
from toggle_edge.errors import ConfigError

SYMMETRIC_ONLY = {"lsq", "seq"}


def heavy(rows: int, columns: int, seed: int) -> torch.Tensor:
    """Weights with outliers: Student's t with 4 degrees of freedom."""
    return torch.from_numpy(np.random.default_rng(seed).standard_t(4, (rows, columns))).float()


def seen(columns: int, seed: int) -> InputStatistics:
    inputs = torch.randn(3 * columns, columns, generator=torch.Generator().manual_seed(seed)).double()
    inputs *= torch.linspace(0.2, 3, columns)
    gram = inputs.T @ inputs / len(inputs)
    return InputStatistics(len(inputs), gram.diagonal().clone(), gram.float())


def squared(weight: torch.Tensor, fmt: Format, quantiser: str, statistics: InputStatistics | None) -> float:
    restored = dequantise(quantise(weight, fmt, statistics, quantiser=quantiser))
    return float((restored - weight).double().square().mean())


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("group", [32, AXIS])
@pytest.mark.parametrize(
    "quantiser", sorted(set(QUANTISERS) - {"gptq"})
)  # its errors are of outputs: test_gptq.py
def test_every_quantisers_error_falls_strictly_with_bits(
    quantiser: str, group: int, asymmetric: bool
) -> None:
    if asymmetric and quantiser in SYMMETRIC_ONLY:
        pytest.skip("this quantiser has no zero-point")
    weight, statistics = heavy(16, 96, 0), seen(96, 0)
    errors = [
        squared(weight, Format(bits, group, asymmetric), quantiser, statistics) for bits in range(2, 17)
    ]
    assert all(later < 0.75 * earlier for earlier, later in itertools.pairwise(errors))


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(QUANTISERS)),
    st.integers(2, 16),
    st.sampled_from([16, 64, AXIS]),
    st.booleans(),
    st.integers(1, 80),
    st.integers(0, 50),
)
def test_codes_and_zero_points_are_within_range_and_padding_is_zero(
    quantiser: str, bits: int, group: int, asymmetric: bool, columns: int, seed: int
) -> None:
    fmt = Format(bits, group, asymmetric and quantiser not in SYMMETRIC_ONLY)
    layer = quantise(heavy(3, columns, seed) + 1, fmt, seen(columns, seed), quantiser=quantiser)
    size = fmt.group_size(columns)
    assert layer.codes.shape == (3, -(-columns // size), size)
    assert layer.codes.dtype == (torch.uint8 if bits <= 8 else torch.uint16)
    assert int(layer.codes.int().max()) < 2**bits
    assert layer.scales is not None
    assert layer.scales.dtype == torch.float32
    assert bool(((layer.scales != 0) & layer.scales.isfinite()).all())
    zeros = torch.full(layer.scales.shape, 2 ** (bits - 1))
    if layer.zero_points is not None:
        zeros = layer.zero_points.int()
        assert fmt.asymmetric == (layer.zero_points.dtype == layer.codes.dtype)
        assert fmt.asymmetric or quantiser == "seq"
        assert 0 <= int(zeros.min()) <= int(zeros.max()) < 2**bits
    padding = layer.codes.int().flatten(1)[:, columns:]
    assert bool((padding == zeros[:, -1:]).all())


@pytest.mark.parametrize("quantiser", sorted(QUANTISERS))
def test_a_large_layer_is_encoded_in_parts_to_the_same_end(
    quantiser: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, statistics = heavy(7, 40, 1), seen(40, 1)
    whole = quantise(weight, Format(3, 16), statistics, quantiser=quantiser)
    monkeypatch.setattr(module, "CHUNK_WEIGHTS", 100)
    parts = quantise(weight, Format(3, 16), statistics, quantiser=quantiser)
    assert whole.scales is not None
    assert parts.scales is not None
    assert torch.equal(whole.codes, parts.codes)
    assert torch.allclose(whole.scales, parts.scales, rtol=1e-5)


@pytest.mark.parametrize("text", ["int4-g32", "int12-axis", "int3-g32-asym"])
@pytest.mark.parametrize("quantiser", sorted(QUANTISERS))
def test_a_damaged_group_stays_damaged_and_the_others_do_not(quantiser: str, text: str) -> None:
    fmt = Format.parse(text)
    if fmt.asymmetric and quantiser in SYMMETRIC_ONLY:
        pytest.skip("this quantiser has no zero-point")
    weight = heavy(2, 64, 2)
    weight[1, 40] = torch.nan
    restored = dequantise(quantise(weight, fmt, seen(64, 2), quantiser=quantiser))
    assert bool(restored[1, 40].isnan())
    assert bool(restored[0].isfinite().all())
    if fmt.group != AXIS:
        assert bool(restored[1, :32].isfinite().all())


@pytest.mark.parametrize("quantiser", sorted(QUANTISERS))
def test_zeros_only_and_one_column_only(quantiser: str) -> None:
    assert torch.equal(
        dequantise(quantise(torch.zeros(2, 32), Format(4, 32), seen(32, 0), quantiser=quantiser)),
        torch.zeros(2, 32),
    )
    narrow = dequantise(quantise(torch.tensor([[1.5], [-2.0]]), Format(8, AXIS), quantiser=quantiser))
    assert torch.allclose(narrow, torch.tensor([[1.5], [-2.0]]), rtol=0.01)


def test_an_unknown_quantiser_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match="one of rtn, lsq, seq, hqq, importance, gptq, got 'awq'"):
        quantise(heavy(1, 16, 0), Format(4, 16), quantiser="awq")


@pytest.mark.parametrize("quantiser", sorted(SYMMETRIC_ONLY))
def test_a_format_that_a_quantiser_does_not_have_is_refused(quantiser: str) -> None:
    with pytest.raises(
        ConfigError, match=f"{quantiser}: has no zero-point, .* choose int4-g16, or one of rtn"
    ):
        quantise(heavy(1, 16, 0), Format(4, 16, True), quantiser=quantiser)


def test_statistics_of_another_width_are_refused() -> None:
    with pytest.raises(ConfigError, match="statistics of 16 inputs, got 32"):
        quantise(heavy(1, 16, 0), Format(4, 16), seen(32, 0), quantiser="importance")


# rtn with zero-points


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 8), st.floats(-3, 3), st.integers(0, 50))
def test_a_zero_point_never_makes_a_group_worse(bits: int, shift: float, seed: int) -> None:
    weight = heavy(4, 64, seed) + shift
    errors = [
        (dequantise(quantise(weight, Format(bits, 16, asymmetric))) - weight)
        .square()
        .reshape(4, 4, 16)
        .sum(-1)
        for asymmetric in (False, True)
    ]
    assert bool((errors[1] <= errors[0] * (1 + 1e-5) + 1e-9).all())


def test_weights_on_one_side_have_all_codes_to_themselves() -> None:
    weight = torch.arange(16.0).reshape(1, 16)
    layer = quantise(weight, Format(4, 16, True))
    assert torch.equal(dequantise(layer), weight)
    assert layer.zero_points is not None
    assert layer.zero_points.tolist() == [[0]]


# importance


def least_weighted_error(row: NDArray[np.float64], weights: NDArray[np.float64], bits: int) -> float:
    """By brute force: the best of 4,000 scales of either sign."""
    half = 2 ** (bits - 1)
    largest = np.abs(row).max() / half
    scales = np.concatenate([np.linspace(0.2, 2.5, 4000), -np.linspace(0.2, 2.5, 4000)])[:, None] * largest
    codes = np.clip(np.round(row / scales), -half, half - 1)
    return float((weights * (codes * scales - row) ** 2).sum(-1).min())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_importance_finds_nearly_the_best_scale(bits: int) -> None:
    weight, statistics = heavy(40, 16, bits), seen(16, bits)
    squares = statistics.mean_square.numpy()
    importance = squares / squares.mean() + DAMPING
    restored = dequantise(quantise(weight, Format(bits, 16), statistics, quantiser="importance")).numpy()
    ours = (importance * (restored - weight.numpy()) ** 2).sum(-1)
    least = np.array([least_weighted_error(row, importance, bits) for row in weight.double().numpy()])
    plain = dequantise(quantise(weight, Format(bits, 16))).numpy()
    rounded = (importance * (plain - weight.numpy()) ** 2).sum(-1)
    assert (ours >= least * (1 - 1e-3)).all()
    assert (ours <= rounded * (1 + 1e-4)).all()
    assert ours.sum() < 1.1 * least.sum()
    assert ours.sum() < 0.9 * rounded.sum()


def test_an_input_that_never_came_still_counts_a_little() -> None:
    weight = heavy(4, 32, 0)
    silent = InputStatistics(9, torch.zeros(32, dtype=torch.float64), torch.zeros(32, 32))
    for quantiser in ("importance", "gptq"):
        alike = quantise(weight, Format(4, 32), silent, quantiser=quantiser)
        assert torch.equal(
            dequantise(alike), dequantise(quantise(weight, Format(4, 32), quantiser=quantiser))
        )


# lsq and seq


def paper_lsq(row: NDArray[np.float64], step: float, bits: int) -> NDArray[np.float64]:
    return step * np.round(np.clip(row / step, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1))


def paper_seq(row: NDArray[np.float64], reach: float, bits: int) -> NDArray[np.float64]:
    # The clip keeps the last code in range; .99 does that for 2 bits only.
    count = 2 ** (bits - 1)
    edge = 1 - 1e-9
    return reach * (np.round(np.clip(row / reach, -edge, edge) * count - 0.5) + 0.5) / count


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("name", ["lsq", "seq"])
def test_restored_weights_are_those_of_the_papers_formula_at_the_fitted_step(name: str, bits: int) -> None:
    weight = heavy(6, 48, bits)
    layer = quantise(weight, Format(bits, AXIS), quantiser=name)
    assert layer.scales is not None
    for row, scale, ours in zip(weight.double().numpy(), layer.scales[:, 0], dequantise(layer), strict=True):
        step = float(scale)
        expected = (
            paper_lsq(row, step, bits) if name == "lsq" else paper_seq(row, step * 2 ** (bits - 1), bits)
        )
        assert ours.numpy() == pytest.approx(expected, abs=1e-5 * step * 2**bits)


@pytest.mark.parametrize("bits", [2, 3, 5])
@pytest.mark.parametrize("name", ["lsq", "seq"])
def test_the_fitted_step_is_no_worse_than_its_neighbours_or_its_start(name: str, bits: int) -> None:
    formula = paper_lsq if name == "lsq" else paper_seq
    weight = heavy(6, 48, bits)
    layer = quantise(weight, Format(bits, AXIS), quantiser=name)
    assert layer.scales is not None
    for row, scale in zip(weight.double().numpy(), layer.scales[:, 0], strict=True):
        step = float(scale) * (1 if name == "lsq" else 2 ** (bits - 1))
        error = float(((formula(row, step, bits) - row) ** 2).sum())
        largest = float(np.abs(row).max())
        start = largest / (2 ** (bits - 1) - 1) if name == "lsq" else largest
        for other in (start, step * (1 + 1e-4), step * (1 - 1e-4)):
            assert error <= float(((formula(row, other, bits) - row) ** 2).sum()) * (1 + 1e-4)


def test_three_and_fifteen_bits_differ_as_much_as_they_should() -> None:
    # The range taken for the step leaves the levels -1, 0 and 1 at any width.
    weight = heavy(8, 128, 0)
    three, fifteen = (squared(weight, Format(bits, AXIS), "lsq", None) for bits in (3, 15))
    assert fifteen < 1e-6 * three
    assert len(dequantise(quantise(weight[:1], Format(8, AXIS), quantiser="lsq")).unique()) > 20


def test_two_bits_stretched_have_the_papers_four_levels_and_no_zero() -> None:
    weight = torch.tensor([[-1.0, -0.9, -0.3, -0.2, 0.2, 0.3, 0.9, 1.0] * 4])
    layer = quantise(weight, Format(2, 32), quantiser="seq")
    restored = dequantise(layer)
    assert layer.scales is not None
    reach = 2 * float(layer.scales[0, 0])
    assert restored.unique().tolist() == pytest.approx(
        [level * reach for level in (-0.75, -0.25, 0.25, 0.75)]
    )


def test_a_group_with_a_pruned_weight_has_whole_steps() -> None:
    weight = heavy(1, 64, 3)
    weight[0, 5] = 0.0
    layer = quantise(weight, Format(2, 32), quantiser="seq")
    assert layer.zero_points is not None
    assert layer.zero_points.tolist() == [[2.0, 1.5]]
    assert float(dequantise(layer)[0, 5]) == 0.0


# hqq


def half_quadratic_scales(row: NDArray[np.float64], scale: float, zero: float, bits: int) -> list[float]:
    """The loop in plain numpy: nearest codes, the auxiliary error, the scale by least squares; every scale passed."""
    penalty, found = PENALTY, []
    for _ in range(ROUNDS):
        step = np.clip(np.round(row / scale) + zero, 0, 2**bits - 1) - zero
        difference = row - step * scale
        size = np.abs(difference)
        power = np.where(size > 0, np.maximum(size, 1e-8) ** (POWER - 1), 0.0)
        error = np.sign(difference) * np.maximum(size - power / penalty, 0)
        scale = float(((row - error) * step).sum() / (step**2).sum())
        penalty *= GROWTH
        found.append(scale)
    return found


def power_error(row: NDArray[np.float64], scale: float, zero: float, bits: int) -> float:
    code = np.clip(np.round(row / scale) + zero, 0, 2**bits - 1)
    return float((np.abs(row - (code - zero) * scale) ** POWER).sum())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_hqq_is_the_best_of_what_the_loop_passes(bits: int) -> None:
    weight = heavy(8, 32, bits) / 1.1 + 0.4
    low, span = weight.amin(-1, keepdim=True), weight.amax(-1, keepdim=True) - weight.amin(-1, keepdim=True)
    start = Grid(span / (2**bits - 1), (-low / span * (2**bits - 1)).round())
    grid = settled(weight.reshape(8, 1, 32), start, bits)
    assert torch.equal(grid.zeros, start.zeros)
    for row in range(8):
        values, zero = weight[row].double().numpy(), float(start.zeros[row, 0])
        first = float(start.scales[row, 0])
        passed = [first, *half_quadratic_scales(values, first, zero, bits)]
        least = min(power_error(values, scale, zero, bits) for scale in passed)
        ours = power_error(values, float(grid.scales[row, 0]), zero, bits)
        assert ours == pytest.approx(least, rel=1e-3)
    assert not torch.equal(grid.scales, start.scales)


@pytest.mark.parametrize("asymmetric", [False, True])
def test_hqq_lowers_the_power_error_and_lets_outliers_go(asymmetric: bool) -> None:
    weight, fmt = heavy(32, 64, 7), Format(3, AXIS, asymmetric)
    ours, plain = (dequantise(quantise(weight, fmt, quantiser=name)) for name in ("hqq", "rtn"))
    powers = [(each - weight).abs().pow(POWER).sum(-1) for each in (ours, plain)]
    assert bool((powers[0] <= powers[1] * (1 + 1e-5)).all())
    assert float(powers[0].sum()) < float(powers[1].sum())
    assert float((ours - weight).square().sum()) > float((plain - weight).square().sum())


def test_shrinking_is_a_soft_threshold() -> None:
    values = torch.tensor([-2.0, -0.01, 0.0, 0.01, 2.0])
    found = shrink(values, 10.0)
    expected = 2.0 - 2.0 ** (POWER - 1) / 10
    assert found.tolist() == pytest.approx([-expected, 0.0, 0.0, 0.0, expected])
    assert math.isnan(float(shrink(torch.tensor(math.nan), 10.0)))
