"""Text and semantics of single formulas; laws over random ones are in tests/laws."""

import numpy as np
import pytest
from toggle_runtime.stl import (
    Always,
    And,
    FormulaError,
    Not,
    Predicate,
    UnsetError,
    either,
    eventually,
    horizon,
    implies,
    parse,
    relaxed,
    robustness,
    signals_of,
)

A, B, C = Predicate("a", "<=", 1.0), Predicate("b", ">", 2.0), Predicate("c", "<", -0.5)
RECOVERY = "always ((jsd > 0.3) implies eventually[0,4] (jsd <= 0.1))"


def value_of(text, **signals):
    """Robustness and step of one formula on one trace, as Python numbers."""
    value, step = robustness(parse(text), {name: np.array(row, dtype=float) for name, row in signals.items()})
    return float(value), int(step)


@pytest.mark.parametrize(
    ("text", "formula"),
    [
        ("a <= 1", A),
        ("(a<=1.0)", A),
        ("not a <= 1", Not(A)),
        ("always a <= 1 and b > 2", And(Always(A), B)),
        ("a <= 1 and b > 2 or c < -.5", either(And(A, B), C)),
        ("a <= 1 or b > 2 and c < -5e-1", either(A, And(B, C))),
        ("a <= 1 or b > 2 implies c < -0.5", implies(either(A, B), C)),
        ("a <= 1 and b > 2 and c < -0.5", And(And(A, B), C)),
        ("always[0,3] a <= 1", Always(A, (0, 3))),
        ("always [ 2 : 2 ] (a <= 1)", Always(A, (2, 2))),
        ("eventually[1,3] b > 2", eventually(B, (1, 3))),
        ("always eventually a <= 1", Always(eventually(A))),
        ("always\n\t(a <= 1)", Always(A)),
    ],
)
def test_text_is_read_with_rtamts_precedence(text, formula):
    assert parse(text) == formula
    assert parse(str(formula)) == formula


@pytest.mark.parametrize(
    ("text", "column", "expectation"),
    [
        ("", 1, "expected a signal"),
        ("always", 7, "expected a signal"),
        ("always (jsd <= x)", 16, "a finite number on the right of '<='"),
        ("0.25 >= jsd", 1, "a signal on the left"),
        ("jsd", 4, "expected a comparison"),
        ("jsd = 1", 5, "got '='"),
        ("jsd <= 1e999", 8, "finite number"),
        ("jsd <= nan", 8, "finite number"),
        ("(jsd <= 1", 10, "expected ')'"),
        ("jsd <= 1)", 9, "or the end, got ')'"),
        ("a <= 1 until b > 2", 8, "got 'until'"),
        ("a <= 1 implies b > 2 implies c < 0", 22, "does not chain"),
        ("always[3,1] a <= 1", 7, "a <= b"),
        ("always[0,1.5] a <= 1", 10, "whole number"),
        ("always[-1,2] a <= 1", 8, "whole number"),
        ("always[0,] a <= 1", 10, "whole number"),
        ("always[0;2] a <= 1", 9, "got ';'"),
        ("not and", 5, "expected a signal"),
        ("always <= 2", 8, "expected a signal"),
        ("a <= 1 b > 2", 8, "'and', 'or', 'implies' or the end"),
    ],
)
def test_an_error_points_at_its_column(text, column, expectation):
    with pytest.raises(FormulaError) as caught:
        parse(text)
    message, _, caret = str(caught.value).split("\n")
    assert f"column {column}:" in message
    assert expectation in message
    assert caret.index("^") == column + 1  # two spaces of indentation


@pytest.mark.parametrize(
    "text",
    ["(" * 5000 + "a <= 1" + ")" * 5000, "not " * 5000 + "a <= 1", " or ".join(["a <= 1"] * 5000)],
)
def test_a_formula_made_to_exhaust_the_stack_is_refused(text):
    with pytest.raises(FormulaError, match="at most"):
        parse(text)


def test_the_largest_formula_survives_every_function():
    for text in ("not " * 40 + "a <= 1", " or ".join(["a <= 1"] * 41), "eventually " * 40 + "a <= 1"):
        formula = parse(text)
        assert parse(str(formula)) == formula
        assert hash(relaxed(formula, 0.1)) != hash(formula)
        assert robustness(formula, {"a": np.zeros(3)})[0] == 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Predicate("a", "==", 1.0), "comparison"),
        (lambda: Predicate("a", "<=", float("nan")), "finite"),
        (lambda: Always(A, (3, 1)), "interval"),
        (lambda: Always(A, (-1, 1)), "interval"),
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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("always (jsd <= 0.25)", "always (jsd <= 0.3)"),
        ("always (context >= 0.7)", "always (context >= 0.56)"),
        ("not (jsd > 0.25)", "not (jsd > 0.3)"),
        ("not (jsd <= 0.25)", "not (jsd <= 0.2)"),
        (RECOVERY, "always ((jsd > 0.36) implies eventually[0,4] (jsd <= 0.12))"),
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
    ],
)
def test_robustness_and_where_it_is_attained(text, value, step):
    assert value_of(text, a=[0.25, 0.5, 1.0, 0.75, 1.0]) == (value, step)


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


@pytest.mark.parametrize(
    "text",
    [
        "((a <= 1.0) or (b > 2.0)) or (c < -0.5)",
        "(eventually (a <= 1.0)) or (b > 2.0)",
        "(eventually[0,3] (a <= 1.0)) implies (always (b > 2.0))",
        "not ((a <= 1.0) and (b > 2.0))",
    ],
)
def test_derived_operators_print_under_their_names(text):
    assert str(parse(text)) == text
    assert repr(parse(text)) == text
