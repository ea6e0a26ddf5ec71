"""Dominance, hypervolume and rank correlation against brute force."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from toggle_edge.pareto import hypervolume, kendall_tau, non_dominated

# A coarse grid, so that ties and duplicates occur all the time.
GRID = st.integers(0, 6).map(float)
SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 4))
COSTS = SHAPES.flatmap(lambda shape: arrays(np.float64, shape, elements=GRID))
LAWS = settings(deadline=None, max_examples=100)


def dominates(a: np.ndarray, b: np.ndarray) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def inclusion_exclusion(points: np.ndarray, reference: np.ndarray) -> float:
    """The union of boxes [point, reference], from the volumes of all intersections."""
    total = 0.0
    for size in range(1, len(points) + 1):
        for subset in itertools.combinations(points, size):
            sides = np.clip(reference - np.max(subset, axis=0), 0.0, None)
            total += (-1) ** (size + 1) * float(np.prod(sides))
    return total


@LAWS
@given(COSTS)
def test_the_front_is_what_nothing_dominates(costs: np.ndarray) -> None:
    expected = [not any(dominates(other, point) for other in costs) for point in costs]
    assert non_dominated(costs).tolist() == expected


@LAWS
@given(COSTS, st.randoms(use_true_random=False))
def test_the_front_does_not_depend_on_the_order(costs: np.ndarray, random: object) -> None:
    order = list(range(len(costs)))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert non_dominated(costs[order]).tolist() == non_dominated(costs)[order].tolist()


@LAWS
@given(COSTS, st.data())
def test_a_dominated_point_changes_nothing(costs: np.ndarray, data: st.DataObject) -> None:
    worse = costs[data.draw(st.integers(0, len(costs) - 1))] + 1.0
    extended = np.vstack([costs, worse])
    reference = np.full(costs.shape[1], 7.0)
    assert non_dominated(extended).tolist() == [*non_dominated(costs).tolist(), False]
    assert hypervolume(extended, reference) == pytest.approx(hypervolume(costs, reference))


@LAWS
@given(COSTS)
def test_hypervolume_is_the_union_of_boxes(costs: np.ndarray) -> None:
    reference = np.full(costs.shape[1], 5.0)
    assert hypervolume(costs, reference) == pytest.approx(inclusion_exclusion(costs, reference), abs=1e-9)


@LAWS
@given(COSTS)
def test_only_the_front_has_volume(costs: np.ndarray) -> None:
    reference = np.full(costs.shape[1], 7.0)
    front = costs[non_dominated(costs)]
    assert hypervolume(front, reference) == pytest.approx(hypervolume(costs, reference))


def test_a_nan_point_is_neither_on_the_front_nor_in_its_way() -> None:
    costs = [[math.nan, 0.0], [2.0, 2.0], [3.0, 3.0]]
    assert non_dominated(costs).tolist() == [False, True, False]
    assert hypervolume(costs, [4.0, 4.0]) == 4.0


def test_duplicates_are_all_kept_and_infinity_is_merely_bad() -> None:
    assert non_dominated([[1.0, 1.0], [1.0, 1.0], [0.0, math.inf]]).tolist() == [True, True, True]
    assert non_dominated(np.empty((0, 2))).tolist() == []


@pytest.mark.parametrize(
    ("costs", "reference"),
    [([1.0, 2.0], [3.0]), ([[1.0, 2.0]], [3.0]), ([[1.0]], [math.inf]), ([[-math.inf]], [1.0]), ([[]], [])],
)
def test_hypervolume_refuses_what_has_no_volume(costs: list[Any], reference: list[float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        hypervolume(costs, reference)


@LAWS
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=9))
def test_kendall_tau_b_from_its_definition(pairs: list[tuple[int, int]]) -> None:
    x, y = [float(a) for a, _ in pairs], [float(b) for _, b in pairs]
    signs = [
        (np.sign(a[0] - b[0]), np.sign(a[1] - b[1]))
        for a, b in itertools.combinations(zip(x, y, strict=True), 2)
    ]
    scale = math.sqrt(sum(a != 0 for a, _ in signs) * sum(b != 0 for _, b in signs))
    tau = kendall_tau(x, y)
    if scale == 0:
        assert tau is None
    else:
        assert tau == pytest.approx(sum(a * b for a, b in signs) / scale)


@pytest.mark.parametrize("y", [[1.0], [1.0, math.nan], [1.0, math.inf]])
def test_kendall_tau_refuses_gaps(y: list[float]) -> None:
    with pytest.raises(ValueError, match="tau: expected"):
        kendall_tau([1.0, 2.0], y)
