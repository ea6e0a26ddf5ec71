"""Laws of the semantics over random formulas and traces, and a brute-force oracle that shares no code."""

import numpy as np
import pytest
from formulas import SIGNALS, intervals, nodes, numbers, operands_of, parts_of, series, signals_of, text_of
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from toggle_runtime.stl import (
    UnsetError,
    horizon,
    lookback,
    parse,
    relaxed,
    robustness,
    robustness_bounds,
    robustness_series,
)

laws = settings(max_examples=70, deadline=None)
positive = st.integers(1, 16).map(lambda n: n / 8)
states = nodes(temporal=(), max_leaves=2)
future = nodes(temporal=("always", "eventually", "until"))


def traces(least=1, most=9):
    return st.integers(least, most).flatmap(
        lambda length: st.fixed_dictionaries(
            {name: st.lists(numbers, min_size=length, max_size=length).map(np.array) for name in SIGNALS}
        )
    )


seeds = st.integers(0, 2**32 - 1)


def drawn(seed, trace):
    """Another trace of the same length, with many ties; far cheaper than to draw every value."""
    rows = np.random.default_rng(seed).integers(-16, 17, size=(len(SIGNALS), len(trace["a"]))) / 8
    return dict(zip(SIGNALS, rows, strict=True))


def value_of(text, trace):
    try:
        return float(robustness(parse(text), trace)[0])
    except UnsetError:
        return None


def bounds_of(interval):
    return "" if interval is None else f"[{interval[0]},{interval[1]}]"


@settings(max_examples=250, deadline=None)
@given(nodes(), traces())
def test_brute_force_oracle(node, trace):
    assert value_of(text_of(node), trace) == series(node, trace)[0]


@settings(max_examples=100, deadline=None)
@given(nodes(windows=st.one_of(intervals, st.just((3, 20)))), st.integers(20, 60), seeds)
def test_brute_force_oracle_on_longer_traces(node, length, seed):
    rows = np.random.default_rng(seed).integers(-16, 17, size=(2, length)) / 8
    trace = dict(zip(SIGNALS, rows, strict=True))
    assert value_of(text_of(node), trace) == series(node, trace)[0]


@laws
@given(nodes(), traces())
def test_the_horizon_is_the_least_that_gives_a_value(node, trace):
    formula = parse(text_of(node))
    enough = lookback(formula) == 0 and len(trace["a"]) > horizon(formula)
    assert enough == (series(node, trace)[0] is not None)


@laws
@given(nodes())
def test_lookback_is_the_first_step_that_has_a_value_on_any_trace(node):
    values = series(node, {name: np.zeros(60) for name in SIGNALS})
    assert lookback(parse(text_of(node))) == next(t for t, value in enumerate(values) if value is not None)


@laws
@given(nodes(), traces())
def test_some_comparison_has_the_value_at_the_named_step(node, trace):
    assume(series(node, trace)[0] is not None)
    value, step = robustness(parse(text_of(node)), trace)
    margins = [
        abs(float(trace[part[1]][step]) - part[3]) for part in parts_of(node) if part[0] == "predicate"
    ]
    assert abs(float(value)) in margins


@laws
@given(nodes())
def test_printed_text_reads_back(node):
    formula = parse(text_of(node))
    assert parse(str(formula)) == formula
    assert str(parse(str(formula))) == str(formula)


@laws
@given(nodes(), nodes(), intervals, traces())
def test_duality(left, right, interval, trace):
    x, y, bounds = text_of(left), text_of(right), bounds_of(interval)
    for first, second in [
        (f"not not ({x})", x),
        (f"not (({x}) and ({y}))", f"(not ({x})) or (not ({y}))"),
        (f"not (({x}) or ({y}))", f"(not ({x})) and (not ({y}))"),
        (f"({x}) implies ({y})", f"(not ({x})) or ({y})"),
        (f"not always{bounds} ({x})", f"eventually{bounds} not ({x})"),
        (f"not historically{bounds} ({x})", f"once{bounds} not ({x})"),
        (f"always (not historically{bounds} ({x}))", f"always (once{bounds} not ({x}))"),
        (f"always (always ({x}))", f"always ({x})"),
        (f"always (historically ({x}))", f"always (historically (historically ({x})))"),
        (f"always (({x}) and ({y}))", f"always (({y}) and ({x}))"),
    ]:
        assert value_of(first, trace) == value_of(second, trace)


@laws
@given(nodes(), nodes(), nodes(), intervals.filter(bool), traces(1, 12))
def test_distribution_over_a_window(one, two, three, interval, trace):
    x, y, z, bounds = text_of(one), text_of(two), text_of(three), bounds_of(interval)
    for whole, parts in [
        (f"always{bounds} (({x}) and ({y}))", f"(always{bounds} ({x})) and (always{bounds} ({y}))"),
        (f"eventually{bounds} (({x}) or ({y}))", f"(eventually{bounds} ({x})) or (eventually{bounds} ({y}))"),
        (
            f"always historically{bounds} (({x}) and ({y}))",
            f"always ((historically{bounds} ({x})) and (historically{bounds} ({y})))",
        ),
        (f"always once{bounds} (({x}) or ({y}))", f"always ((once{bounds} ({x})) or (once{bounds} ({y})))"),
        (
            f"(({x}) and ({y})) until{bounds} ({z})",
            f"(({x}) until{bounds} ({z})) and (({y}) until{bounds} ({z}))",
        ),
        (
            f"({x}) until{bounds} (({y}) or ({z}))",
            f"(({x}) until{bounds} ({y})) or (({x}) until{bounds} ({z}))",
        ),
    ]:
        assert value_of(whole, trace) == value_of(parts, trace)


@laws
@given(states, states, states, traces())
def test_distribution_without_a_window(one, two, three, trace):
    # Unbounded operators over operands that end at different steps range over different ones.
    x, y, z = text_of(one), text_of(two), text_of(three)
    for whole, parts in [
        (f"always (({x}) and ({y}))", f"(always ({x})) and (always ({y}))"),
        (f"eventually (({x}) or ({y}))", f"(eventually ({x})) or (eventually ({y}))"),
        (f"always historically (({x}) and ({y}))", f"always ((historically ({x})) and (historically ({y})))"),
        (f"(({x}) and ({y})) until ({z})", f"(({x}) until ({z})) and (({y}) until ({z}))"),
        (f"({x}) until (({y}) or ({z}))", f"(({x}) until ({y})) or (({x}) until ({z}))"),
    ]:
        assert value_of(whole, trace) == value_of(parts, trace)


@laws
@given(future, future, st.integers(0, 3), st.integers(0, 3), traces(1, 12))
def test_until_is_what_it_is_made_of(one, two, near, wide, trace):
    x, y, far = text_of(one), text_of(two), near + wide
    nothing = "a >= -1000"
    assert value_of(f"({nothing}) until ({y})", trace) == value_of(f"eventually ({y})", trace)
    assert value_of(f"({nothing}) until[{near},{far}] ({y})", trace) == value_of(
        f"eventually[{near},{far}] ({y})", trace
    )
    if near:
        # `until[0,0]` asks that its left operand be defined, which it does not read.
        rest = f"({x}) until[0,{wide}] ({y})" if wide else y
        assert value_of(f"({x}) until[{near},{far}] ({y})", trace) == value_of(
            f"(always[0,{near - 1}] ({x})) and eventually[{near},{near}] ({rest})", trace
        )


@laws
@given(future, st.integers(0, 4), traces(1, 12))
def test_shifted_in_time(node, shift, trace):
    later = {name: row[shift:] for name, row in trace.items()}
    x = text_of(node)
    assert value_of(f"always[{shift},{shift}] ({x})", trace) == value_of(x, later)


@laws
@given(nodes(temporal=("historically", "once")), traces())
def test_the_past_is_the_future_mirrored(node, trace):
    def mirrored(part):
        kind = {"historically": "always", "once": "eventually"}.get(part[0], part[0])
        return (kind, *(mirrored(child) if child in operands_of(part) else child for child in part[1:]))

    last = len(trace["a"]) - 1
    backward = {name: row[::-1] for name, row in trace.items()}
    assert value_of(f"always[{last},{last}] ({text_of(node)})", trace) == value_of(
        text_of(mirrored(node)), backward
    )


@laws
@given(nodes(), traces(), seeds)
def test_robustness_moves_no_further_than_the_signals(node, trace, seed):
    change = drawn(seed, trace)
    before = value_of(text_of(node), trace)
    assume(before is not None)
    after = value_of(text_of(node), {name: row + change[name] for name, row in trace.items()})
    assert abs(after - before) <= max(np.abs(row).max() for row in change.values()) + 1e-12


@laws
@given(nodes(comparisons=("<=", "<"), boolean=("and", "or")), traces(), seeds)
def test_raising_a_signal_never_helps_an_upper_bound(node, trace, seed):
    rises = drawn(seed, trace)
    before = value_of(text_of(node), trace)
    assume(before is not None)
    after = value_of(text_of(node), {name: row + abs(rises[name]) for name, row in trace.items()})
    assert after <= before


@laws
@given(nodes(thresholds=positive), traces(), st.floats(0.001, 0.5))
def test_relaxing_never_lowers_robustness(node, trace, factor):
    formula = parse(text_of(node))
    assume(series(node, trace)[0] is not None)
    assert robustness(relaxed(formula, factor), trace)[0] >= robustness(formula, trace)[0]


@laws
@given(nodes(), traces(), st.integers(0, 8), st.sampled_from([np.nan, np.inf, -np.inf]))
def test_a_broken_step_never_becomes_a_number(node, trace, step, poison):
    formula = parse(text_of(node))
    assume(series(node, trace)[0] is not None)
    rows = {name: row.copy() for name, row in trace.items()}
    step %= len(rows["a"])
    rows[min(signals_of(node))][step] = poison
    value, where = robustness(formula, rows)
    assert np.isnan(value)
    assert where == step
    for ends in [(trace, rows), (rows, trace), (rows, rows)]:
        if not any(np.any(ends[0][name] > ends[1][name]) for name in SIGNALS):
            bounds = robustness_bounds(formula, *ends)
            assert np.isnan([bounds.least, bounds.most]).all()
            assert bounds.step == step


@laws
@given(nodes(), st.integers(1, 9), seeds, st.booleans())
def test_a_batch_is_a_loop(node, length, seed, broken):
    formula = parse(text_of(node))
    rows = np.random.default_rng(seed).integers(-16, 17, size=(2, 2, 3, length)) / 8
    if broken:
        rows[0, 1, 2, length // 2] = np.nan
    trace = dict(zip(SIGNALS, rows, strict=True))
    try:
        value, step = robustness(formula, trace)
        bounds = robustness_bounds(formula, trace, {name: row + 0.25 for name, row in trace.items()})
    except UnsetError:
        assume(False)
    assert value.shape == step.shape == bounds.least.shape == bounds.most.shape == bounds.step.shape == (2, 3)
    for index in np.ndindex(2, 3):
        alone = {name: row[index] for name, row in trace.items()}
        np.testing.assert_array_equal([value[index], step[index]], robustness(formula, alone))
        np.testing.assert_array_equal(
            [part[index] for part in bounds],
            robustness_bounds(formula, alone, {name: row + 0.25 for name, row in alone.items()}),
        )


@settings(max_examples=100, deadline=None)
@given(nodes(), traces(), seeds)
def test_the_bounds_contain_every_trace_between(node, trace, seed):
    formula = parse(text_of(node))
    assume(series(node, trace)[0] is not None)
    widths = drawn(seed, trace)
    upper = {name: row + abs(widths[name]) for name, row in trace.items()}
    least, most, step = robustness_bounds(formula, trace, upper)
    # A hundred traces at once, one in three of their values at an end.
    shares = np.random.default_rng(seed).uniform(-0.25, 1.25, size=(2, 100, len(trace["a"]))).clip(0, 1)
    between = {
        name: np.clip(row + share * (upper[name] - row), row, upper[name])
        for (name, row), share in zip(trace.items(), shares, strict=True)
    }
    values, _ = robustness(formula, between)
    assert least <= values.min()
    assert values.max() <= most
    margins = [
        abs(float(end[part[1]][step]) - part[3])
        for part in parts_of(node)
        if part[0] == "predicate"
        for end in (trace, upper)
    ]
    assert abs(float(least)) in margins


@laws
@given(nodes(), traces())
def test_the_bounds_of_a_known_trace_are_its_robustness(node, trace):
    formula = parse(text_of(node))
    assume(series(node, trace)[0] is not None)
    value, step = robustness(formula, trace)
    assert robustness_bounds(formula, trace, trace) == (value, value, step)


@laws
@given(nodes(comparisons=("<=", "<"), boolean=("and", "or")), traces(), seeds)
def test_without_negation_the_ends_are_attained(node, trace, seed):
    widths = drawn(seed, trace)
    formula = parse(text_of(node))
    assume(series(node, trace)[0] is not None)
    upper = {name: row + abs(widths[name]) for name, row in trace.items()}
    bounds = robustness_bounds(formula, trace, upper)
    assert bounds.least == robustness(formula, upper)[0]
    assert bounds.most == robustness(formula, trace)[0]


@laws
@given(nodes(), traces(), st.integers(0, 8))
def test_ends_in_the_wrong_order_are_refused(node, trace, step):
    assume(series(node, trace)[0] is not None)
    name = min(signals_of(node))
    upper = {other: row.copy() for other, row in trace.items()}
    upper[name][step % len(upper[name])] -= 0.5
    with pytest.raises(ValueError, match="lower <= upper"):
        robustness_bounds(parse(text_of(node)), trace, upper)


def values_of(node, trace):
    """The oracle's value at every step, NaN where there is none."""
    return np.array([np.nan if value is None else value for value in series(node, trace)])


@settings(max_examples=100, deadline=None)
@given(nodes(), traces())
def test_the_series_is_the_value_at_every_step(node, trace):
    np.testing.assert_array_equal(robustness_series(parse(text_of(node)), trace), values_of(node, trace))


@laws
@given(future, traces())
def test_the_series_of_the_future_is_robustness_on_what_is_left_of_the_trace(node, trace):
    found = robustness_series(parse(text_of(node)), trace)
    for step, value in enumerate(found):
        rest = {name: row[step:] for name, row in trace.items()}
        expected = value_of(text_of(node), rest)
        assert np.isnan(value) if expected is None else value == expected, step


@settings(max_examples=100, deadline=None)
@given(nodes(), traces(), st.integers(0, 8), seeds, st.sampled_from([np.nan, np.inf, -np.inf]))
def test_a_broken_step_leaves_those_of_the_series_that_cannot_depend_on_it(node, trace, at, seed, poison):
    at = min(at, len(trace["a"]) - 1)
    broken = {name: row.copy() for name, row in trace.items()}
    used = sorted(signals_of(node))
    broken[used[seed % len(used)]][at] = poison
    formula = parse(text_of(node))
    found, whole = robustness_series(formula, broken), values_of(node, trace)
    known = ~np.isnan(found)
    np.testing.assert_array_equal(found[known], whole[known])
    # Whatever stands at the broken step, the values that are left are the same.
    other = {name: row.copy() for name, row in trace.items()}
    for name in used:
        other[name][at] = drawn(seed, trace)[name][at]
    np.testing.assert_array_equal(found[known], values_of(node, other)[known])
    if node[0] == "predicate":
        assert list(np.flatnonzero(~known)) == [at]


@laws
@given(nodes(), st.integers(1, 9), seeds)
def test_a_batch_of_series_is_a_loop(node, length, seed):
    rows = np.random.default_rng(seed).integers(-16, 17, size=(len(SIGNALS), 2, 3, length)) / 8
    rows[0, 1, 2, length // 2] = np.nan
    batch = robustness_series(parse(text_of(node)), dict(zip(SIGNALS, rows, strict=True)))
    assert batch.shape == (2, 3, length)
    for index in np.ndindex(2, 3):
        one = {name: row[index] for name, row in zip(SIGNALS, rows, strict=True)}
        np.testing.assert_array_equal(batch[index], robustness_series(parse(text_of(node)), one))
