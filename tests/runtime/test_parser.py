"""Text to formula and back, and the errors that point at a column."""

import numpy as np
import pytest
from toggle_runtime.stl import (
    Always,
    And,
    FormulaError,
    Historically,
    Not,
    Predicate,
    Until,
    either,
    eventually,
    implies,
    once,
    parse,
    relaxed,
    robustness,
)

A, B, C = Predicate("a", "<=", 1.0), Predicate("b", ">", 2.0), Predicate("c", "<", -0.5)


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
        ("historically a <= 1 and b > 2", And(Historically(A), B)),
        ("historically[0:3] a <= 1", Historically(A, (0, 3))),
        ("once b > 2", once(B)),
        ("not once[1,1] b > 2", Not(once(B, (1, 1)))),
        ("always once[0,2] historically a <= 1", Always(once(Historically(A), (0, 2)))),
        ("a <= 1 until b > 2", Until(A, B)),
        ("a <= 1 until[2:5] b > 2", Until(A, B, (2, 5))),
        ("a <= 1 and b > 2 until c < -0.5", And(A, Until(B, C))),
        ("a <= 1 until b > 2 and c < -0.5", And(Until(A, B), C)),
        ("a <= 1 until b > 2 implies c < -0.5", implies(Until(A, B), C)),
        ("not a <= 1 until always b > 2", Until(Not(A), Always(B))),
        ("(a <= 1 until b > 2) until[0,1] c < -0.5", Until(Until(A, B), C, (0, 1))),
        ("(a <= 1 or b > 2) until (a <= 1 until b > 2)", Until(either(A, B), Until(A, B))),
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
        ("a <= 1 since b > 2", 8, "'until' or the end, got 'since'"),
        ("a <= 1 until", 13, "expected a signal"),
        ("a <= 1 until b > 2 until c < 0", 20, "'until' does not chain"),
        ("a <= 1 until[2,1] b > 2", 13, "a <= b"),
        ("once[0,] a <= 1", 8, "whole number"),
        ("historically <= 2", 14, "expected a signal"),
        ("until b > 2", 1, "expected a signal"),
        ("a <= 1 implies b > 2 implies c < 0", 22, "does not chain"),
        ("always[3,1] a <= 1", 7, "a <= b"),
        ("always[0,1.5] a <= 1", 10, "whole number"),
        ("always[-1,2] a <= 1", 8, "whole number"),
        ("always[0,] a <= 1", 10, "whole number"),
        ("always[0;2] a <= 1", 9, "got ';'"),
        ("not and", 5, "expected a signal"),
        ("always <= 2", 8, "expected a signal"),
        ("a <= 1 b > 2", 8, "'and', 'or', 'implies', 'until' or the end"),
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
    [
        "(" * 5000 + "a <= 1" + ")" * 5000,
        "not " * 5000 + "a <= 1",
        " or ".join(["a <= 1"] * 5000),
        "(a <= 1) until " * 5000 + "a <= 1",
    ],
)
def test_a_formula_made_to_exhaust_the_stack_is_refused(text):
    with pytest.raises(FormulaError, match="at most"):
        parse(text)


def test_the_largest_formula_survives_every_function():
    until = "(" * 39 + "a <= 1 until a <= 1" + ") until a <= 1" * 39
    for text in ("not " * 40 + "a <= 1", " or ".join(["a <= 1"] * 41), "eventually " * 40 + "a <= 1", until):
        formula = parse(text)
        assert parse(str(formula)) == formula
        assert hash(relaxed(formula, 0.1)) != hash(formula)
        assert robustness(formula, {"a": np.zeros(3)})[0] == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "((a <= 1.0) or (b > 2.0)) or (c < -0.5)",
        "(eventually (a <= 1.0)) or (b > 2.0)",
        "(eventually[0,3] (a <= 1.0)) implies (always (b > 2.0))",
        "not ((a <= 1.0) and (b > 2.0))",
        "once (a <= 1.0)",
        "always (once[1,3] (historically[0,2] (a <= 1.0)))",
        "not (historically (a <= 1.0))",
        "(a <= 1.0) until[2,5] (not (b > 2.0))",
        "((not (a <= 1.0)) until (b > 2.0)) implies (c < -0.5)",
    ],
)
def test_derived_operators_print_under_their_names(text):
    assert str(parse(text)) == text
    assert repr(parse(text)) == text
