"""GPTQ against its definition by explicit inverses, and never worse than the rounding that it starts from."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from toggle_edge.compress import gptq as module
from toggle_edge.compress.calibration import InputStatistics
from toggle_edge.compress.gptq import compensated, gptq, inverse_factor, rescaled
from toggle_edge.compress.grids import Grid, nearest_codes, restored
from toggle_edge.compress.quantise import dequantise, quantise
from toggle_edge.config import AXIS, Format


def correlated(columns: int, tokens: int, seed: int) -> InputStatistics:
    """Of inputs that share a few directions, as those of language models do."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(tokens, 4, generator=generator) @ torch.randn(4, columns, generator=generator)
    inputs = (shared + torch.randn(tokens, columns, generator=generator)).double()
    gram = inputs.T @ inputs / tokens
    return InputStatistics(tokens, gram.diagonal().clone(), gram.float())


def weights(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def output_error(weight: torch.Tensor, restored: torch.Tensor, statistics: InputStatistics) -> float:
    assert statistics.gram is not None
    difference = (weight - restored).double()
    return float((difference @ statistics.gram.double() * difference).sum())


def by_definition(
    row: NDArray[np.float64], scales: NDArray[np.float64], gram: NDArray[np.float64], bits: int
) -> list[int]:
    """Optimal brain quantisation in a fixed order: the inverse of what is left is inverted anew for every column."""
    half, row = 2 ** (bits - 1), row.copy()
    damped = gram + module.DAMPING * np.mean(np.diag(gram)) * np.eye(len(gram))
    codes = []
    for column in range(len(row)):
        inverse = np.linalg.inv(damped[column:, column:])
        code = np.clip(np.round(row[column] / scales[column]), -half, half - 1) + half
        error = (row[column] - (code - half) * scales[column]) / inverse[0, 0]
        row[column:] -= error * inverse[0]
        codes.append(int(code))
    return codes


@pytest.mark.parametrize("bits", [2, 3, 5])
@pytest.mark.parametrize("block", [4, 128])
def test_codes_are_those_of_the_definition(bits: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    weight, statistics = weights(5, 22, bits), correlated(22, 60, bits)
    assert statistics.gram is not None
    factor = inverse_factor(statistics.gram)
    assert factor is not None
    scales = weight.abs().amax(-1, keepdim=True).expand(-1, 22) / 2 ** (bits - 1) * 0.8
    codes = compensated(weight, Grid(scales, torch.full_like(scales, 2 ** (bits - 1))), factor, bits)
    gram = statistics.gram.double().numpy()
    for row in range(5):
        expected = by_definition(weight[row].double().numpy(), scales[row].double().numpy(), gram, bits)
        assert codes[row].int().tolist() == expected


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from(
        [Format(2, 16), Format(3, AXIS), Format(4, 32), Format(4, 16, True), Format(3, AXIS, True)]
    ),
    st.integers(17, 70),
    st.integers(0, 100),
)
def test_the_output_error_is_never_above_that_of_its_base(fmt: Format, columns: int, seed: int) -> None:
    weight, statistics = weights(4, columns, seed), correlated(columns, 50, seed)
    ours = dequantise(quantise(weight, fmt, statistics, quantiser="gptq"))
    base = dequantise(quantise(weight, fmt, statistics, quantiser="importance"))
    for row in range(4):
        part = slice(row, row + 1)
        assert output_error(weight[part], ours[part], statistics) <= 1.001 * output_error(
            weight[part], base[part], statistics
        )


def test_correlated_inputs_are_made_use_of() -> None:
    weight, statistics = weights(32, 96, 0), correlated(96, 400, 0)
    errors = [
        output_error(
            weight, dequantise(quantise(weight, Format(3, 32), statistics, quantiser=name)), statistics
        )
        for name in ("gptq", "importance", "rtn")
    ]
    assert errors[0] < 0.5 * errors[1] < 0.6 * errors[2]


def test_inputs_without_correlation_leave_nothing_to_gain() -> None:
    weight, squares = weights(6, 40, 1), torch.rand(40, dtype=torch.float64) + 0.5
    statistics = InputStatistics(9, squares, torch.diag(squares).float())
    ours = quantise(weight, Format(4, AXIS), statistics, quantiser="gptq")
    base = quantise(weight, Format(4, AXIS), statistics, quantiser="importance")
    assert output_error(weight, dequantise(ours), statistics) == pytest.approx(
        output_error(weight, dequantise(base), statistics), rel=0.02
    )


def test_a_row_that_gains_nothing_keeps_its_base(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(work: torch.Tensor, grid: Grid, factor: torch.Tensor, bits: int) -> torch.Tensor:
        codes = compensated(work, grid, factor, bits)
        codes[::2] = 2**bits - 1
        return codes

    weight, statistics = weights(4, 32, 2), correlated(32, 80, 2)
    good = quantise(weight, Format(3, AXIS), statistics, quantiser="gptq")
    base = quantise(weight, Format(3, AXIS), statistics, quantiser="importance")
    monkeypatch.setattr(module, "compensated", spoiled)
    kept = quantise(weight, Format(3, AXIS), statistics, quantiser="gptq")
    assert torch.equal(dequantise(kept)[::2], dequantise(base)[::2])
    assert torch.equal(dequantise(kept)[1::2], dequantise(good)[1::2])
    assert not torch.equal(dequantise(good), dequantise(base))


def test_a_refitted_row_has_the_scale_of_least_output_error() -> None:
    groups, statistics = weights(5, 24, 3).reshape(5, 1, 24), correlated(24, 90, 3)
    assert statistics.gram is not None
    start = Grid(groups.abs().amax(-1) / 4, torch.full((5, 1), 4.0))
    codes = nearest_codes(groups, start, 3)
    fitted, error = rescaled(groups, codes, start, statistics.gram)
    best = output_error(groups.flatten(1), restored(codes, fitted).flatten(1), statistics)
    assert float(error.sum()) == pytest.approx(best, rel=1e-4)
    for factor in (0.98, 0.995, 1.005, 1.02):
        moved = Grid(fitted.scales * factor, fitted.zeros)
        assert output_error(groups.flatten(1), restored(codes, moved).flatten(1), statistics) > best


@pytest.mark.parametrize("gram", [None, torch.zeros(32, 32)])
def test_without_correlations_it_is_importance(gram: torch.Tensor | None) -> None:
    weight = weights(3, 32, 0)
    statistics = InputStatistics(5, torch.linspace(0.1, 2, 32, dtype=torch.float64), gram)
    codes, grid = gptq(Format(4, 32), statistics)(weight.reshape(3, 1, 32))
    base = quantise(weight, Format(4, 32), statistics, quantiser="importance")
    assert torch.equal(codes.to(torch.uint8), base.codes)
    assert base.scales is not None
    assert torch.equal(grid.scales, base.scales)


def test_fewer_inputs_than_columns_still_have_a_factor() -> None:
    statistics = correlated(64, 3, 0)
    assert statistics.gram is not None
    factor = inverse_factor(statistics.gram)
    assert factor is not None
    damped = statistics.gram + module.DAMPING * statistics.gram.diagonal().mean() * torch.eye(64)
    assert torch.allclose(factor.T @ factor @ damped, torch.eye(64), atol=1e-2)
    assert inverse_factor(torch.full((2, 2), torch.nan)) is None


@pytest.mark.parametrize("group", [32, AXIS])
@pytest.mark.parametrize("quantiser", ["importance", "gptq"])
def test_the_output_error_falls_strictly_with_bits(quantiser: str, group: int) -> None:
    weight, statistics = weights(16, 64, 5), correlated(64, 300, 5)
    errors = [
        output_error(
            weight,
            dequantise(quantise(weight, Format(bits, group), statistics, quantiser=quantiser)),
            statistics,
        )
        for bits in range(2, 10)
    ]
    assert all(later < 0.8 * earlier for earlier, later in itertools.pairwise(errors))
