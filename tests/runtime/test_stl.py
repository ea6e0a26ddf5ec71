"""Semantics of single formulas; their text is in test_parser.py, laws over random ones are in tests/laws."""

import tracemalloc

import numpy as np
import pytest
from toggle_runtime.stl import (
    Always,
    FormulaError,
    Historically,
    Predicate,
    UnsetError,
    Until,
    horizon,
    lookback,
    parse,
    relaxed,
    robustness,
    robustness_bounds,
    robustness_series,
    signals_of,
)

A = Predicate("a", "<=", 1.0)
RECOVERY = "always ((jsd > 0.3) implies eventually[0,4] (jsd <= 0.1))"


def value_of(text, **signals):
    """Robustness and step of one formula on one trace, as Python numbers."""
    value, step = robustness(parse(text), {name: np.array(row, dtype=float) for name, row in signals.items()})
    return float(value), int(step)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Predicate("a", "==", 1.0), "comparison"),
        (lambda: Predicate("a", "<=", float("nan")), "finite"),
        (lambda: Always(A, (3, 1)), "interval"),
        (lambda: Always(A, (-1, 1)), "interval"),
        (lambda: Historically(A, (3, 1)), "interval"),
        (lambda: Until(A, A, (-1, 1)), "interval"),
    ],
)
def test_a_node_that_means_nothing_cannot_be_made(make, message):
    with pytest.raises(FormulaError, match=message):
        make()


def test_what_can_be_known_without_a_trace():
    formula = parse(RECOVERY + " and always[0,3] eventually[1,2] (context >= 0.7)")
    assert signals_of(formula) == {"jsd", "context"}
    assert horizon(formula) == 5
    assert horizon(parse(RECOVERY)) == 4
    assert horizon(parse("always a <= 1")) == 0
    assert str(A) == repr(A) == "a <= 1.0"


@pytest.mark.parametrize(
    ("text", "steps", "back"),
    [
        ("historically a <= 1", 0, 0),
        ("historically[0,0] a <= 1", 0, 0),
        ("always historically[0,2] a <= 1", 2, 0),
        ("always[1,4] once[0,2] a <= 1", 5, 1),
        ("always[2,4] once[0,2] a <= 1", 4, 0),
        ("historically always[2,5] a <= 1", 5, 0),
        ("always historically[1,3] always[2,2] a <= 1", 4, 0),
        ("historically[1,3] a <= 1", 3, 3),
        ("a <= 1 and once[0,2] b <= 1", 2, 2),
        ("a <= 1 until b <= 1", 0, 0),
        ("a <= 1 until[2,5] b <= 1", 5, 0),
        ("always[0,3] a <= 1 until[2,5] b <= 1", 7, 0),
        ("always[0,3] a <= 1 until b <= 1", 3, 0),
        ("always[0,3] a <= 1 until[0,0] b <= 1", 3, 0),
        ("a <= 1 until once[0,4] b <= 1", 4, 0),
        ("a <= 1 until[2,5] once[0,4] b <= 1", 7, 2),
        ("once[0,4] a <= 1 until b <= 1", 4, 4),
        ("always[0,3] a <= 1 until once[0,4] b <= 1", 7, 0),
    ],
)
def test_steps_that_a_formula_needs_and_steps_that_it_looks_back(text, steps, back):
    assert (horizon(parse(text)), lookback(parse(text))) == (steps, back)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("always (jsd <= 0.25)", "always (jsd <= 0.3)"),
        ("always (context >= 0.7)", "always (context >= 0.56)"),
        ("not (jsd > 0.25)", "not (jsd > 0.3)"),
        ("not (jsd <= 0.25)", "not (jsd <= 0.2)"),
        (RECOVERY, "always ((jsd > 0.36) implies eventually[0,4] (jsd <= 0.12))"),
        ("historically[0,1] (jsd <= 0.25)", "historically[0,1] (jsd <= 0.3)"),
        ("once (jsd <= 0.25)", "once (jsd <= 0.3)"),
        ("(jsd <= 0.25) until[1,2] (context >= 0.7)", "(jsd <= 0.3) until[1,2] (context >= 0.56)"),
        ("not ((jsd <= 0.25) until (context >= 0.5))", "not ((jsd <= 0.2) until (context >= 0.6))"),
        ("(a <= -1) and (b >= -1)", "(a <= -0.8) and (b >= -1.2)"),
    ],
)
def test_relaxing_weakens_the_whole_formula(text, expected):
    assert relaxed(parse(text), 0.2) == parse(expected)
    assert relaxed(parse(text), 0.0) == parse(text)


@pytest.mark.parametrize("factor", [-0.1, float("nan"), float("inf")])
def test_a_factor_that_does_not_relax_is_refused(factor):
    with pytest.raises(ValueError, match="factor"):
        relaxed(A, factor)


@pytest.mark.parametrize(
    ("text", "value", "step"),
    [
        ("a <= 0.5", 0.25, 0),
        ("always (a <= 0.5)", -0.5, 2),
        ("always[0,1] (a <= 0.5)", 0.0, 1),
        ("eventually (a >= 0.75)", 0.25, 2),
        ("eventually[3,4] (a >= 0.75)", 0.25, 4),
        ("not always (a <= 0.5)", 0.5, 2),
        ("always (a >= 0.25) and always (a <= 2)", 0.0, 0),
        ("always (a <= 1) and always (a >= 0.25)", 0.0, 2),
        ("always (a >= 0 and a <= 0.75)", -0.25, 2),
        ("always eventually[0,1] (a <= 0.25)", -0.5, 3),
        ("eventually always (a >= 0.5)", 0.5, 4),
        ("historically (a <= 0.5)", 0.25, 0),
        ("always once[0,1] (a <= 0.5)", -0.25, 3),
        ("always once[1,1] (a >= 0.75)", -0.5, 0),
        ("eventually[4,4] historically (a <= 0.5)", -0.5, 2),
        ("eventually[4,4] historically[0,1] (a <= 0.5)", -0.5, 4),
        ("eventually[3,3] once (a >= 1)", 0.0, 2),
        ("(a <= 0.5) until (a >= 0.75)", 0.0, 1),
        ("(a <= 0.5) until[0,2] (a >= 0.75)", 0.0, 1),
        ("(a <= 0.75) until[1,2] (a >= 0.75)", 0.25, 1),
        ("(a <= 0.25) until (a >= 1)", -0.25, 1),
        ("(a <= 0.25) until[0,0] (a >= 1)", -0.75, 0),
        ("(a <= 0.25) until[1,1] (a >= 0.5)", 0.0, 0),
        ("(a <= 5) until[3,4] (a >= 2)", -1.0, 4),
        ("(a <= 5) until (a >= 0.75)", 0.25, 2),
        ("(a <= 5) until[3,4] (a <= 1)", 0.25, 3),
        ("(a <= 1.25) until (a >= 1)", 0.0, 2),
        ("(a <= 0.5) until (a >= 0.25)", 0.25, 0),
        ("always ((a <= 1) until[0,1] (a >= 0.5))", 0.0, 1),
    ],
)
def test_robustness_and_where_it_is_attained(text, value, step):
    assert value_of(text, a=[0.25, 0.5, 1.0, 0.75, 1.0]) == (value, step)


def test_what_is_left_of_until_must_hold_before_its_right_side_is_defined():
    # The first possible witness is step 1, and at step 0 `a` is too high by 1.
    assert value_of("(a <= 1) until (once[1,1] (b >= 1))", a=[2, 0, 0], b=[9, 9, 9]) == (-1.0, 0)
    assert value_of("(a <= 1) until[1,1] (once[1,1] (b >= 1))", a=[2, 0, 0], b=[9, 9, 9]) == (-1.0, 0)


def test_an_unbounded_operator_stops_where_its_operand_no_longer_fits():
    # The last high values have no window of three steps left: they are not judged, neither failed nor passed.
    assert value_of("always (a > 0.5 implies eventually[0,2] (a <= 0.5))", a=[1, 0, 0, 1, 1])[0] == 0.5
    # A window of two does fit the first of them.
    assert value_of("always (a > 0.5 implies eventually[0,1] (a <= 0.5))", a=[1, 0, 0, 1, 1])[0] == -0.5


@pytest.mark.parametrize(
    ("text", "length", "needed"), [("always[0,5] (a <= 1)", 5, 6), ("always eventually[2,3] a <= 1", 3, 4)]
)
def test_a_trace_that_is_too_short_gives_no_value(text, length, needed):
    with pytest.raises(UnsetError, match=f"has {length} steps, the formula needs {needed}"):
        value_of(text, a=[0.0] * length)
    assert value_of(text, a=[0.0] * needed)[0] == 1.0


@pytest.mark.parametrize(
    ("text", "operator"),
    [
        ("historically[0,2] a <= 1", "historically[0,2]"),
        ("not historically[0,2] a <= 1", "historically[0,2]"),
        ("a <= 1 and always[0,1] once[3,4] a <= 1", "once[3,4]"),
        ("historically once[1,1] a <= 1", "once[1,1]"),
        ("once[1,1] a <= 1 until[0,9] historically[0,2] a <= 1", "once[1,1]"),
        ("a <= 1 until[0,1] historically[0,2] a <= 1", "historically[0,2]"),
    ],
)
def test_looking_back_beyond_the_first_step_gives_no_value_however_long_the_trace(text, operator):
    for length in (1, 3, 50):
        with pytest.raises(UnsetError) as caught:
            value_of(text, a=[0.0] * length)
        expected = f"`{operator}` looks back beyond the first step: write always (…) around it"
        assert str(caught.value).startswith(expected)
    assert abs(value_of(f"always ({text})", a=[0.0] * 50)[0]) == 1.0


def test_a_long_window_takes_the_memory_of_a_short_one():
    rows = np.random.default_rng(0).normal(size=(4, 20_000))

    def peak(text):
        tracemalloc.start()
        robustness(parse(text), {"a": rows})
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    for text in ("eventually always[0,{}] (a <= 1)", "always ((a <= 2) until[3,{}] (a >= 1))"):
        assert peak(text.format(2000)) < 1.5 * peak(text.format(4))


def test_bounds_of_a_recovery():
    lower = {"jsd": np.array([0.0, 0.3, 0.1, 0.0])}
    upper = {"jsd": np.array([0.2, 0.5, 0.2, 0.05])}
    bounds = robustness_bounds(
        parse("always ((jsd > 0.4) implies eventually[0,2] (jsd <= 0.1))"), lower, upper
    )
    # At best jsd ends at 0 as it began; at worst 0.5 is met, and the last step at least recovers by 0.05.
    assert (bounds.least, bounds.most) == (pytest.approx(0.05), pytest.approx(0.1))
    assert bounds.step == 3


def test_bounds_of_a_batch_with_a_broken_end():
    lower, upper = np.zeros((2, 3)), np.ones((2, 3))
    upper[0, 1] = np.inf
    least, most, step = robustness_bounds(parse("always (a <= 0.25)"), {"a": lower}, {"a": upper})
    np.testing.assert_array_equal(least, [np.nan, -0.75])
    np.testing.assert_array_equal(most, [np.nan, 0.25])
    np.testing.assert_array_equal(step, [1, 0])


def test_bounds_of_ends_that_do_not_fit_together():
    formula, row = parse("a <= 0.25 and b <= 1"), np.zeros(3)
    with pytest.raises(ValueError, match=r"'b': expected lower <= upper, got the contrary at \(2,\)"):
        robustness_bounds(formula, {"a": row, "b": np.array([0, 0, 0.5])}, {"a": row, "b": row})
    with pytest.raises(UnsetError, match="differ in shape"):
        robustness_bounds(formula, {"a": row, "b": row}, {"a": np.zeros(4), "b": np.zeros(4)})
    with pytest.raises(UnsetError, match="'b' is missing"):
        robustness_bounds(formula, {"a": row, "b": row}, {"a": row})
    with pytest.raises(UnsetError, match="3 steps, the formula needs 6"):
        robustness_bounds(parse("always[0,5] (a <= 1)"), {"a": row}, {"a": row})


def test_missing_empty_or_uneven_signals_give_no_value():
    with pytest.raises(UnsetError, match="'b' is missing; the trace has a"):
        value_of("a <= 1 and b <= 1", a=[1.0])
    with pytest.raises(UnsetError, match="'a' is empty"):
        value_of("a <= 1", a=[])
    with pytest.raises(UnsetError, match="differ in shape"):
        value_of("a <= 1 and b <= 1", a=[1.0], b=[1.0, 2.0])
    with pytest.raises(UnsetError, match="'a' is empty"):
        robustness(A, {"a": np.float64(1.0)})


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("text", ["always (a <= 1)", "eventually (a <= 1)", "a <= 1", "not (a <= 1)"])
def test_one_broken_step_unsets_its_row_and_no_other(text, poison):
    rows = np.zeros((3, 4))
    rows[1, 2] = poison
    value, step = robustness(parse(text), {"a": rows, "unused": np.full((3, 4), np.nan)})
    assert np.isnan(value).tolist() == [False, True, False]
    assert step[1] == 2


def test_a_margin_that_overflows_is_no_value():
    value, _ = robustness(Predicate("a", "<=", 1e308), {"a": np.array([-1e308])})
    assert np.isnan(value)


def test_bounds_of_which_one_overflows_are_no_values():
    lower, upper = {"a": np.array([-1e308])}, {"a": np.array([0.0])}
    for text in ("a <= 1e308", "a >= 1e308"):
        bounds = robustness_bounds(parse(text), lower, upper)
        assert np.isnan([bounds.least, bounds.most]).all()


def test_the_input_is_left_alone():
    rows = np.array([[0.1, np.nan], [0.3, 0.2]])
    before = rows.copy()
    robustness(parse("always[0,1] (a <= 1)"), {"a": rows})
    np.testing.assert_array_equal(rows, before)


def test_leading_axes_are_a_batch():
    rows = np.random.default_rng(0).normal(size=(2, 3, 7))
    value, step = robustness(parse(RECOVERY), {"jsd": rows})
    assert value.shape == step.shape == (2, 3)
    assert value.dtype == np.float64
    for index in np.ndindex(2, 3):
        assert (value[index], step[index]) == robustness(parse(RECOVERY), {"jsd": rows[index]})


def test_a_series_has_gaps_where_there_is_no_value():
    jsd = np.array([0.1, 0.4, 0.1, np.nan, 0.1, 0.2])
    of = {"jsd": jsd}
    np.testing.assert_allclose(robustness_series(parse("jsd <= 0.25"), of), 0.25 - jsd)
    found = robustness_series(parse("eventually[0,1] (jsd <= 0.25)"), of)
    np.testing.assert_allclose(found, [0.15, 0.15, np.nan, np.nan, 0.15, np.nan])
    found = robustness_series(parse("always (jsd <= 0.25)"), of)
    np.testing.assert_allclose(found, [np.nan] * 4 + [0.05, 0.05])
    found = robustness_series(parse("historically (jsd <= 0.25)"), of)
    np.testing.assert_allclose(found, [0.15, -0.15, -0.15] + [np.nan] * 3)
    assert np.isnan(robustness_series(parse("always[0,9] (jsd <= 0.25)"), of)).all()
    np.testing.assert_array_equal(jsd, [0.1, 0.4, 0.1, np.nan, 0.1, 0.2])
    with pytest.raises(UnsetError, match="'context' is missing"):
        robustness_series(parse("context >= 0.7"), of)


def test_a_margin_that_overflows_is_a_gap():
    found = robustness_series(parse("a <= 1e308"), {"a": np.array([0.0, -1e308])})
    np.testing.assert_array_equal(found, [1e308, np.nan])
