"""Comparisons of pairs beside scipy's tests, their error rates by simulation, and what survives among many."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from toggle_edge.statistics import (
    IMPROVED,
    INCONCLUSIVE,
    NO_DIFFERENCE,
    REGRESSED,
    Comparison,
    compare_pairs,
    pairs_needed,
    settled,
)

positive = st.floats(0.5, 2.0)


def pairs_of(seed: int, pairs: int, ratio: float, noise: float) -> tuple[list[float], list[float]]:
    """Pairs that share what the machine did meanwhile, which is much more than they differ by themselves."""
    random = np.random.default_rng(seed)
    together = random.lognormal(0.0, 0.3, pairs)
    own = random.lognormal(0.0, noise, (2, pairs))
    return (together * own[0]).tolist(), (together * ratio * own[1]).tolist()


@pytest.mark.parametrize(
    ("ratio", "verdict"), [(1.1, REGRESSED), (1 / 1.1, IMPROVED), (1.0, NO_DIFFERENCE), (1.03, INCONCLUSIVE)]
)
def test_each_verdict(ratio: float, verdict: str) -> None:
    found = compare_pairs(*pairs_of(1, 30, ratio, 0.01))
    assert found.verdict == verdict
    assert found.ratio == pytest.approx(ratio, rel=0.01)
    assert (found.reason is None) == (verdict != INCONCLUSIVE)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(positive, positive), min_size=6, max_size=15), st.floats(0.0, 0.2))
def test_turning_the_pairs_round_turns_the_verdict_round(
    pairs: list[tuple[float, float]], min_effect: float
) -> None:
    before, after = [list(each) for each in zip(*pairs, strict=True)]
    found = compare_pairs(before, after, min_effect=min_effect)
    turned = compare_pairs(after, before, min_effect=min_effect)
    opposite = {REGRESSED: IMPROVED, IMPROVED: REGRESSED}
    assert found.ci95 is not None
    assert turned.ci95 is not None
    assert turned.ratio == pytest.approx(1 / found.ratio)
    assert turned.ci95 == pytest.approx((1 / found.ci95[1], 1 / found.ci95[0]))
    borders = (1.0 + min_effect, 1.0 / (1.0 + min_effect))
    if not any(end == pytest.approx(border) for end in found.ci95 for border in borders):
        assert turned.verdict == opposite.get(found.verdict, found.verdict)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(6, 12))
def test_the_interval_is_what_the_signed_rank_test_does_not_reject(seed: int, pairs: int) -> None:
    before, after = pairs_of(seed, pairs, 1.02, 0.02)
    found = compare_pairs(before, after)
    assert found.ci95 is not None
    shifts = np.log(after) - np.log(before)
    for end, inwards in ((found.ci95[0], 1), (found.ci95[1], -1)):
        within = stats.wilcoxon(shifts - math.log(end) - inwards * 1e-9, method="exact").pvalue
        beyond = stats.wilcoxon(shifts - math.log(end) + inwards * 1e-9, method="exact").pvalue
        assert beyond <= 0.05 < within


def test_the_p_value_is_that_of_all_sign_flips() -> None:
    before, after = pairs_of(4, 9, 1.03, 0.02)
    shifts = np.log(after) - np.log(before)
    ranks = stats.rankdata(np.abs(shifts))
    seen = abs(float(np.sign(shifts) @ ranks))
    sums = [abs(float(np.array(signs) @ ranks)) for signs in itertools.product((-1, 1), repeat=9)]
    expected = np.mean([each >= seen - 1e-9 for each in sums])
    assert compare_pairs(before, after).p_value == pytest.approx(expected)


def test_the_same_twice_is_no_difference_and_too_few_pairs_are_inconclusive() -> None:
    same = compare_pairs([1.0, 2.0, 3.0] * 3, [1.0, 2.0, 3.0] * 3)
    assert (same.verdict, same.ratio, same.p_value) == (NO_DIFFERENCE, 1.0, 1.0)
    few = compare_pairs([1.0] * 5, [2.0] * 5)
    assert (few.verdict, few.ci95, few.reason) == (INCONCLUSIVE, None, "needs at least 6 pairs, has 5")
    assert compare_pairs([1.0] * 6, [2.0] * 6).verdict == REGRESSED


def test_errors_are_as_rare_as_promised() -> None:
    alarms = truths = 0
    for seed in range(400):
        found = compare_pairs(*pairs_of(seed, 12, 1.0, 0.05), min_effect=0.0)
        alarms += found.verdict in (REGRESSED, IMPROVED)
        truths += found.ci95 is not None and found.ci95[0] <= 1.0 <= found.ci95[1]
    assert 0.02 <= alarms / 400 <= 0.08
    assert 0.92 <= truths / 400 <= 0.98


def test_as_many_pairs_as_are_said_to_be_needed_decide_more_often_than_not() -> None:
    undecided = [compare_pairs(*pairs_of(seed, 10, 1.05, 0.03)) for seed in range(60)]
    wanted = [pairs_needed(each) for each in undecided if each.verdict == INCONCLUSIVE]
    known = [each for each in wanted if each is not None]
    assert known
    assert all(each > 10 for each in known)
    needed = int(np.median(known))
    decided = [compare_pairs(*pairs_of(seed, needed, 1.05, 0.03)) for seed in range(1000, 1060)]
    assert sum(each.verdict != INCONCLUSIVE for each in decided) > 30
    assert "more pairs would decide" in str(next(e.reason for e in undecided if e.reason))


@pytest.mark.parametrize(
    ("before", "after", "min_effect"),
    [
        ([1.0], [1.0, 2.0], 0.03),
        ([], [], 0.03),
        ([1.0], [0.0], 0.03),
        ([1.0], [math.nan], 0.03),
        ([1.0], [1.0], -0.1),
        ([1.0], [1.0], math.nan),
    ],
)
def test_what_cannot_be_compared_is_refused(
    before: list[float], after: list[float], min_effect: float
) -> None:
    with pytest.raises(ValueError, match="expected"):
        compare_pairs(before, after, min_effect=min_effect)


def comparison(verdict: str, p_value: float) -> Comparison:
    return Comparison(verdict, 1.1, (1.05, 1.15), p_value, 9, 0.03)


def test_among_many_only_what_stands_out_is_believed() -> None:
    # Adjusted by hand: p times how many, over its place in order, never above that of a larger p.
    raw = {"a": 0.001, "b": 0.012, "c": 0.04, "d": 0.9}
    found = settled({name: comparison(REGRESSED, p) for name, p in raw.items()})
    adjusted = {name: each.p_value for name, each in found.items()}
    assert adjusted == pytest.approx({"a": 0.004, "b": 0.024, "c": 0.04 * 4 / 3, "d": 0.9})
    assert [each.verdict for each in found.values()] == [REGRESSED, REGRESSED, INCONCLUSIVE, INCONCLUSIVE]
    assert "among 4 comparisons" in str(found["c"].reason)
    assert settled({}) == {}


def test_what_claims_nothing_is_left_alone() -> None:
    found = settled({"a": comparison(NO_DIFFERENCE, 0.8), "b": comparison(INCONCLUSIVE, 0.6)})
    assert [each.verdict for each in found.values()] == [NO_DIFFERENCE, INCONCLUSIVE]
