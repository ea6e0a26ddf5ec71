"""Pruning is exact: so many of every row's least scores, whatever the size, and a pruned weight stays zero."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toggle_edge.compress.calibration import InputStatistics
from toggle_edge.compress.prune import PRUNERS, magnitude, wanda, zeros_per_row
from toggle_edge.compress.quantise import QUANTISERS, dequantise, quantise
from toggle_edge.config import Format
from toggle_edge.errors import ConfigError

sparsities = st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])


def weights(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def squares(columns: int, seed: int) -> InputStatistics:
    values = torch.rand(columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return InputStatistics(1, 5 * values)


def pruned_by_sorting(row: list[float], scores: list[float], count: int) -> list[float]:
    """The definition, in plain Python: the least scores, of equal ones the first."""
    gone = sorted(range(len(row)), key=lambda index: (scores[index], index))[:count]
    return [0.0 if index in gone else value for index, value in enumerate(row)]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 70), sparsities, st.integers(0, 100), st.booleans())
def test_the_least_scores_of_every_row_are_zero(
    rows: int, columns: int, sparsity: float, seed: int, coarse: bool
) -> None:
    weight = weights(rows, columns, seed)
    if coarse:  # few distinct sizes, so that many are equal
        weight = (weight * 2).round()
    before, seen = weight.clone(), squares(columns, seed)
    by_size, by_input = magnitude(weight, sparsity), wanda(weight, sparsity, seen)
    norms = seen.mean_square.sqrt().float()
    count = zeros_per_row(columns, sparsity)
    assert abs(count - sparsity * columns) <= 0.5
    for row in range(rows):
        values = weight[row].tolist()
        assert by_size[row].tolist() == pruned_by_sorting(values, weight[row].abs().tolist(), count)
        scores = (weight[row].abs() * norms).tolist()
        assert by_input[row].tolist() == pruned_by_sorting(values, scores, count)
    assert torch.equal(weight, before)


@pytest.mark.parametrize("shape", [(2, 6_000_001), (1300, 8192)])
def test_the_count_is_exact_above_ten_million_weights(shape: tuple[int, int]) -> None:
    # Of half-precision weights thousands are equal at the threshold; a quantile of this many is refused by torch.
    weight = weights(*shape, 0).half().float()
    weight[weight == 0] = 1.0
    pruned = magnitude(weight, 0.3)
    assert set((pruned == 0).sum(-1).tolist()) == {zeros_per_row(shape[1], 0.3)}
    kept = torch.where(pruned == 0, torch.inf, pruned.abs()).amin(-1)
    gone = torch.where(pruned == 0, weight.abs(), 0.0).amax(-1)
    assert bool((gone <= kept).all())


def test_without_inputs_wanda_goes_by_size() -> None:
    weight = weights(3, 40, 1)
    assert torch.equal(wanda(weight, 0.4), magnitude(weight, 0.4))
    assert not torch.equal(wanda(weight, 0.4, squares(40, 1)), magnitude(weight, 0.4))


def test_a_damaged_weight_is_not_mended_by_pruning() -> None:
    weight = weights(2, 20, 0)
    weight[0, 5] = torch.nan
    pruned = magnitude(weight, 0.5)
    assert bool(pruned[0, 5].isnan())
    assert (pruned == 0).sum(-1).tolist() == [10, 10]


@pytest.mark.parametrize("sparsity", [-0.1, 0.51, float("nan"), 1.0])
@pytest.mark.parametrize("name", sorted(PRUNERS))
def test_a_share_out_of_range_is_refused(name: str, sparsity: float) -> None:
    with pytest.raises(ConfigError, match=r"expected 0\.0 to 0\.5"):
        PRUNERS[name].prune(weights(2, 8, 0), sparsity, None)


@pytest.mark.parametrize(
    "text", ["int2-g16", "int3-axis", "int4-g32-asym", "int5-axis-asym", "int12-g64", "fp16"]
)
@pytest.mark.parametrize("quantiser", sorted(QUANTISERS))
def test_a_pruned_weight_stays_zero_in_every_format(quantiser: str, text: str) -> None:
    fmt = Format.parse(text)
    if fmt.asymmetric and quantiser in ("lsq", "seq"):
        pytest.skip("this quantiser has no zero-point")
    # Away from zero, where only a zero-point that is itself a code can keep it.
    pruned = magnitude(weights(6, 50, 2) + 1.5, 0.3)
    # Correlated inputs, so that gptq would gladly move a weight that is zero.
    generator = torch.Generator().manual_seed(4)
    mixing = torch.randn(200, 4, generator=generator) @ torch.randn(4, 50, generator=generator)
    mixing += 0.3 * torch.randn(200, 50, generator=generator)
    gram = mixing.T @ mixing / 200
    statistics = InputStatistics(200, gram.diagonal().double(), gram)
    restored = dequantise(quantise(pruned, fmt, statistics, quantiser=quantiser))
    assert bool((restored[pruned == 0] == 0).all())
    assert bool((restored[pruned != 0] != 0).any())
