"""Exact bounds beside scipy's distributions, and their coverage by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from toggle_edge.statistics import clopper_pearson_lower, least_samples, order_statistic_interval


def test_59_of_59_bound_the_share_at_95_percent():
    assert clopper_pearson_lower(59, 59) == pytest.approx(0.05 ** (1 / 59))
    assert clopper_pearson_lower(59, 59) >= 0.95
    assert clopper_pearson_lower(58, 58) < 0.95


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.data(), st.integers(1, 8), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_clopper_pearson_solves_its_definition(probes, data, statements, confidence):
    satisfied = data.draw(st.integers(1, probes))
    bound = clopper_pearson_lower(satisfied, probes, confidence, statements)
    # At the bound, as many successes or more have exactly the allowed probability.
    assert stats.binom.sf(satisfied - 1, probes, bound) == pytest.approx((1 - confidence) / statements)
    assert bound <= satisfied / probes
    assert clopper_pearson_lower(satisfied, probes, confidence, statements + 1) < bound


def test_no_evidence_bounds_nothing():
    assert clopper_pearson_lower(0, 0) == clopper_pearson_lower(0, 59) == 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((60, 59), "expected 0 to 59 probes, got 60"),
        ((-1, 59), "got -1"),
        ((5, 9, 1.0), "confidence"),
        ((5, 9, math.nan), "confidence"),
        ((5, 9, 0.95, 0), "statements"),
    ],
)
def test_impossible_counts_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        clopper_pearson_lower(*arguments)


@pytest.mark.parametrize(("quantile", "least"), [(0.5, 6), (0.95, 72), (0.05, 72), (0.99, 368)])
def test_too_few_samples_give_no_interval(quantile, least):
    assert least_samples(quantile) == least
    assert order_statistic_interval(range(least - 1), quantile) is None
    assert order_statistic_interval(range(least), quantile) is not None
    assert order_statistic_interval([], quantile) is None


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.sampled_from([0.1, 0.5, 0.9]), st.sampled_from([0.8, 0.95]))
def test_ranks_are_the_narrowest_with_each_tail_below_its_half(n, quantile, confidence):
    interval = order_statistic_interval(range(1, n + 1), quantile, confidence)
    tail = (1 - confidence) / 2
    lower = max([r for r in range(1, n + 1) if stats.binom.cdf(r - 1, n, quantile) <= tail], default=None)
    upper = min([r for r in range(1, n + 1) if stats.binom.sf(r - 1, n, quantile) <= tail], default=None)
    assert interval == (None if lower is None or upper is None else (lower, upper))


def test_order_statistics_cover_as_they_promise():
    rng = np.random.default_rng(1)
    hits = [
        low <= math.log(2) <= high
        for low, high in (order_statistic_interval(rng.exponential(size=40), 0.5) for _ in range(1000))
    ]
    assert np.mean(hits) > 0.94


def test_the_order_of_samples_does_not_matter():
    samples = list(np.random.default_rng(2).normal(size=20))
    assert order_statistic_interval(samples, 0.5) == order_statistic_interval(sorted(samples), 0.5)


def test_what_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match="finite"):
        order_statistic_interval([1.0, math.nan], 0.5)
    with pytest.raises(ValueError, match="quantile"):
        order_statistic_interval([1.0], 1.0)
