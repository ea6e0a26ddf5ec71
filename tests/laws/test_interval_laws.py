"""Laws of the intervals: the truth lies inside, whatever was kept, and keeping more never lies further away."""

import itertools
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reductions import (
    TOLERANCE,
    UNCAPPED,
    cosine,
    cosine_within,
    divergence,
    heads_joined,
    random_attention,
    random_hidden,
    random_logits,
    random_outputs,
    softmax,
)
from toggle_runtime.attention_rows import cosine_bounds, reduce_attention
from toggle_runtime.directions import direction_bounds, reduce_directions
from toggle_runtime.distributions import divergence_bounds, reduce_distributions
from toggle_runtime.intervals import bounds_of
from toggle_runtime.reduction import Limits, reduce_baseline, reduced_bytes
from toggle_runtime.reduction_files import read_reduced, write_reduced
from toggle_runtime.signals import SIGNALS, trace_of

EXHAUSTIVE = os.environ.get("TOGGLE_EDGE_EXHAUSTIVE") == "1"
"""Set it to 1 for 10,000 cases of each kind instead of some hundreds: some four minutes on one core."""

laws = settings(max_examples=60, deadline=None)
seeds = st.integers(0, 2**32 - 1)
floats = st.floats(-(2.0**60), 2.0**60, width=32)
weights = st.floats(0, 1, width=32)


def rows_of(values, least=1, most=12):
    return st.integers(least, most).flatmap(
        lambda n: st.tuples(*[st.lists(values, min_size=n, max_size=n)] * 2)
    )


def contains(bounds, truth):
    lower, upper = bounds
    return (lower - TOLERANCE <= truth).all() and (truth <= upper + TOLERANCE).all()


def entropy(share):
    inner = np.clip(share, 1e-300, 1 - 1e-16)
    return -(inner * np.log2(inner) + (1 - inner) * np.log2(1 - inner))


@pytest.mark.parametrize(
    ("vocabulary", "cases"), [(512, 4000), (4096, 3000), (32_000, 2000), (128_256, 1000)]
)
def test_random_divergences_are_inside_and_no_wider_than_proved(vocabulary, cases):
    generator = np.random.default_rng(vocabulary)
    batch, narrow = 20, 0
    for _ in range((cases if EXHAUSTIVE else 40) // batch):
        first, second = random_logits(generator, batch, vocabulary)
        part = reduce_distributions(first, 1e-3, 1024)
        lower, upper = divergence_bounds(part, second)
        assert contains((lower, upper), divergence(first, second))
        chances = softmax(second)
        kept = np.repeat(np.arange(batch), part.counts)
        chances[kept, part.ids] = 0
        theirs, ours = part.tail, chances.sum(axis=1).astype(np.float64)
        both = theirs + ours
        proved = both / 2 * entropy(theirs / np.where(both > 0, both, 1))
        assert (upper - lower <= proved + 1e-6).all()
        small = (theirs <= 1e-3) & (ours <= 1e-3)
        narrow += int(small.sum())
        assert (upper - lower)[small].max(initial=0) <= 0.006
    assert narrow > 0


def test_random_attention_rows_are_inside():
    generator = np.random.default_rng(1)
    cases = 10_000 if EXHAUSTIVE else 480
    done = 0
    while done < cases:
        layers, heads, steps = 4, int(generator.integers(1, 9)), 10
        keys = int(generator.integers(steps, 200))
        first, second = random_attention(generator, layers, heads, steps, keys)
        part = reduce_attention(
            first, generator.choice([0, 0.1, 0.5]), int(generator.choice([1, 8, 64, 4096]))
        )
        truth = cosine(heads_joined(first), heads_joined(second))
        assert contains(cosine_bounds(part, second), truth)
        done += layers * steps


def test_random_hidden_states_are_inside():
    generator = np.random.default_rng(2)
    cases = 10_000 if EXHAUSTIVE else 500
    for _ in range(cases // 50):
        first, second = random_hidden(generator, (50, int(generator.choice([1, 63, 64, 65, 300, 1024]))))
        assert contains(direction_bounds(reduce_directions(first), second), cosine(first, second))


@laws
@given(rows_of(floats))
def test_cosines_of_states_are_inside_in_rational_arithmetic(pair):
    first, second = (np.array([values], dtype=np.float32) for values in pair)
    lower, upper = direction_bounds(reduce_directions(first), second)
    assert cosine_within(first[0], second[0], lower[0], upper[0])


@laws
@given(rows_of(weights), st.integers(1, 12), st.sampled_from([0.0, 0.3, 1.0]))
def test_cosines_of_attention_are_inside_in_rational_arithmetic(pair, most, share):
    first, second = (np.array(values, dtype=np.float32).reshape(1, 1, 1, -1) for values in pair)
    lower, upper = cosine_bounds(reduce_attention(first, share, most), second)
    assert cosine_within(first.ravel(), second.ravel(), lower[0, 0], upper[0, 0])


@laws
@given(
    rows_of(st.floats(-200, 200, width=32), 2, 30), st.integers(1, 30), st.sampled_from([0.0, 1e-3, 0.5, 1.0])
)
def test_divergences_are_inside_whatever_is_kept(pair, most, tail_mass):
    first, second = (np.array([values], dtype=np.float32) for values in pair)
    bounds = divergence_bounds(reduce_distributions(first, tail_mass, most), second)
    assert contains(bounds, divergence(first, second))


@laws
@given(seeds, st.sampled_from([1, 3, 40]), st.sampled_from([0.0, 1e-3, 0.2]), st.integers(0, 9))
def test_every_signal_is_inside_and_no_less_pessimistic_than_the_whole_baseline(seed, most, share, window):
    baseline, candidate, gold = random_outputs(np.random.default_rng(seed))
    limits = Limits(share, most, share, most, window, UNCAPPED.probe_bytes)
    reduced = reduce_baseline(baseline, gold, 5, SIGNALS, limits)
    answer = np.array([False, True, True, False])
    bounds = bounds_of(reduced, candidate, gold, answer)
    truth = dict(trace_of(baseline, candidate, gold, answer).signals)
    truth.pop("attention_far", None)  # that one is made for another window
    far = np.array([[key < 4 + step - window for key in range(8)] for step in range(4)])
    if far.any():
        both = baseline, candidate
        distant = cosine(*(heads_joined(np.where(far, each.attention, 0)) for each in both))
        truth["attention_far"] = np.where(far.any(axis=1), distant, 1.0).mean(axis=0)
    assert bounds.lower.keys() == bounds.upper.keys() == truth.keys()
    for name, values in truth.items():
        assert (bounds.lower[name] <= values).all(), name
        assert (values <= bounds.upper[name]).all(), name
    assert (bounds.layers["context"] <= cosine(baseline.hidden, candidate.hidden)).all()


@laws
@given(seeds)
def test_keeping_more_never_widens(seed):
    generator = np.random.default_rng(seed)
    first, second = random_logits(generator, 6, 60)
    rows, others = random_attention(generator, 1, 2, 6, 30)
    widths = []
    for most in (1, 4, 16, 60):
        divergences = divergence_bounds(reduce_distributions(first, 0.0, most), second)
        cosines = cosine_bounds(reduce_attention(rows, 0.0, most), others)
        widths.append([divergences[1] - divergences[0], (cosines[1] - cosines[0])[0]])
    for (less_jsd, less_cosine), (more_jsd, more_cosine) in itertools.pairwise(widths):
        assert (more_jsd <= less_jsd + 1e-6).all()
        # What is kept is rounded to 16 bits, what is left out is not.
        assert (more_cosine <= less_cosine + 1e-3).all()


@laws
@given(seeds, st.sampled_from([1.0, 2.0**-40, 2.0**40, 3.7]))
def test_the_scale_of_hidden_states_does_not_matter(seed, scale):
    first, second = random_hidden(np.random.default_rng(seed), (5, 130))
    plain = direction_bounds(reduce_directions(first), second)
    scaled = direction_bounds(reduce_directions(first), (second * np.float32(scale)).astype(np.float32))
    np.testing.assert_allclose(plain, scaled, rtol=0, atol=1e-6)


@laws
@given(seeds, st.integers(0, 3), st.sampled_from([np.nan, np.inf, -np.inf]), st.booleans(), st.data())
def test_what_is_not_finite_is_unknown_at_its_step_and_nowhere_else(seed, step, bad, in_baseline, data):
    generator = np.random.default_rng(seed)
    baseline, candidate, gold = random_outputs(generator)
    part = data.draw(st.sampled_from(["logits", "attention", "hidden"]))
    target = getattr(baseline if in_baseline else candidate, part)
    place = [int(generator.integers(size)) for size in target.shape]
    place[-2] = step
    answer = np.array([True, True, False, False])
    whole = bounds_of(reduce_baseline(baseline, gold, 5, SIGNALS, Limits(window=0)), candidate, gold, answer)
    target[tuple(place)] = bad
    ours = bounds_of(reduce_baseline(baseline, gold, 5, SIGNALS, Limits(window=0)), candidate, gold, answer)
    hit = {
        "logits": {"jsd", "factual"},
        "attention": {"attention", "attention_min", "attention_far"},
        "hidden": {"context", "context_min"} if place[0] == 1 else {"context_min"},
    }[part]
    for name in ours.lower:
        unknown = np.isnan(ours.lower[name])
        assert (unknown == np.isnan(ours.upper[name])).all()
        assert (unknown == ((np.arange(4) == step) & (name in hit))).all(), name
        # Sums of rows of another length are rounded otherwise.
        np.testing.assert_allclose(
            ours.lower[name][~unknown], whole.lower[name][~unknown], rtol=1e-9, atol=1e-9
        )


@laws
@given(seeds, st.sets(st.sampled_from(SIGNALS), min_size=1), st.sampled_from([2, 30, 300]))
def test_the_file_gives_back_the_same_intervals_and_is_no_larger_than_said(
    tmp_path_factory, seed, wanted, most
):
    baseline, candidate, gold = random_outputs(np.random.default_rng(seed))
    limits = Limits(0.0, most, 0.0, most, 3)
    reduced = reduce_baseline(baseline, gold, 5, wanted, limits)
    path = tmp_path_factory.mktemp("reduced") / "baseline.npz"
    write_reduced(path, [reduced])
    assert path.stat().st_size <= reduced_bytes(40, 2, 3, 8, 4, 70, wanted, limits) + 22
    (back,) = read_reduced(path)
    answer = np.ones(4, dtype=bool)
    ours, theirs = (bounds_of(each, candidate, gold, answer) for each in (reduced, back))
    assert ours.lower.keys() == theirs.lower.keys() >= wanted
    for name in ours.lower:
        np.testing.assert_array_equal(ours.lower[name], theirs.lower[name])
        np.testing.assert_array_equal(ours.upper[name], theirs.upper[name])
