"""What would make a trial feasible: enough, no more than enough, and nothing where nothing is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from toggle_edge.pipeline.blocking import alone, shortfalls

Rows = dict[str, NDArray[np.float64]]
values = st.one_of(st.floats(-1, 1), st.just(float("nan")))


@st.composite
def problems(draw: st.DrawFn) -> tuple[Rows, int]:
    probes = draw(st.integers(1, 8))
    rows = {
        name: np.array(draw(st.lists(values, min_size=probes, max_size=probes)))
        for name in draw(st.sampled_from([("a",), ("a", "b"), ("a", "b", "c")]))
    }
    return rows, draw(st.integers(1, probes))


def satisfied(rows: Rows, weaker: dict[str, float]) -> int:
    """On how many probes every property holds once thresholds are that much weaker."""
    shifted = [row + weaker.get(name, 0.0) for name, row in rows.items()]
    return int(np.all([row >= 0 for row in shifted], axis=0).sum())


@given(problems())
@settings(deadline=None, max_examples=100)
def test_all_changes_together_suffice(problem: tuple[Rows, int]) -> None:
    rows, required = problem
    found = shortfalls(rows, required)
    assert (found == {}) == (satisfied(rows, {}) >= required)
    assert all(by > 0 for by in found.values())
    winnable = int((~np.isnan(list(rows.values())).any(axis=0)).sum())
    assert (np.inf in found.values()) == (winnable < required), "a probe that is unset is never won"
    if winnable >= required:
        assert satisfied(rows, found) >= required


@given(problems())
@settings(deadline=None, max_examples=100)
def test_a_change_alone_is_the_least_that_suffices(problem: tuple[Rows, int]) -> None:
    rows, required = problem
    assume(satisfied(rows, {}) < required)
    found = alone(rows, required)
    for name, by in found.items():
        assert satisfied(rows, {name: by}) >= required
        assert satisfied(rows, {name: by * (1 - 1e-9) - 1e-12}) < required
    for name in set(rows) - set(found):
        assert satisfied(rows, {name: 10.0}) < required


def test_a_property_that_holds_at_its_coverage_is_not_enough_where_another_fails_elsewhere() -> None:
    """Each fails on two probes of five, other ones: of three that must hold only one does."""
    rows = {"a": np.array([-0.1, -0.2, 1, 1, 1]), "b": np.array([1, 1, -0.3, -0.4, 1])}
    assert alone(rows, 3) == {"a": pytest.approx(0.2), "b": pytest.approx(0.4)}
    assert shortfalls(rows, 3) == {"a": pytest.approx(0.2)}
    assert alone(rows, 4) == {}
    assert shortfalls(rows, 4) == {"a": pytest.approx(0.2), "b": pytest.approx(0.3)}
