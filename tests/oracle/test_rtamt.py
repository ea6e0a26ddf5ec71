"""Our semantics beside RTAMT's, and the traps of RTAMT that the monitor has to keep away from."""

import logging
import os
import warnings
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from formulas import SIGNALS, UNARY, nodes, operands_of, parts_of, series, signals_of, text_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toggle_runtime.signals import Trace, exact_trace
from toggle_runtime.stl import FormulaError, UnsetError, lookback, parse, robustness, robustness_bounds

from toggle_edge.certify.monitor import Monitor, attains, bounded

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="typing.io is deprecated", category=DeprecationWarning)
    import rtamt

DOCUMENT = Path(__file__).parents[2] / "docs" / "stl.md"
EXHAUSTIVE = os.environ.get("TOGGLE_EDGE_EXHAUSTIVE") == "1"
"""Set it to 1 to draw 10,000 formulas and traces instead of 500: some two minutes on one core."""

# Every example parses text with antlr in pure Python, some milliseconds each.
oracle = settings(max_examples=60, deadline=None)

comparisons = st.tuples(
    st.sampled_from("ab"), st.sampled_from(("<=", "<", ">=", ">")), st.integers(-8, 8).map(lambda n: n / 4)
).map(lambda parts: f"{parts[0]} {parts[1]} {parts[2]!r}")
rows = st.integers(2, 9).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(-16, 16).map(lambda i: i / 8), min_size=n, max_size=n)] * 2)
)


def up_to(begin, width):
    return st.tuples(st.integers(0, begin), st.integers(0, width)).map(lambda p: (p[0], p[0] + p[1]))


short_windows = st.one_of(st.none(), up_to(2, 2), up_to(3, 20))
# RTAMT takes cubic time for `until` over a window, so that long ones are left to the other operators.
trees = nodes(
    windows=st.one_of(short_windows, up_to(20, 200)),
    past_windows=short_windows,
    until_windows=short_windows,
)


@st.composite
def any_formula(draw):
    """Any tree; most of those that look back before step 0 in a window that begins late enough."""
    node = draw(trees)
    begin = lookback(parse(text_of(node)))
    around = draw(st.sampled_from([None, *["always", "eventually"] * 4]))
    if begin == 0 or around is None:
        return node
    return around, (begin, begin + draw(st.sampled_from([0, 1, 9]))), node


COMPARABLE = "RTAMT alone judges as we do"
LEFT_OUT = BROKEN, SHORT, BACKWARD, CLIPPED, ONE_STEP = (
    "a used signal is NaN or infinite somewhere",
    "the trace is shorter than the formula needs",
    "the formula looks back beyond the first step",
    "RTAMT clips a window under an unbounded operator",
    "the trace has one step",
)
"""What RTAMT alone judges otherwise, or refuses; docs/stl.md shows what each gives there and here."""


@st.composite
def any_trace(draw):
    # Drawn directly, every fourth trace would have one step.
    longest = draw(st.sampled_from([30] * 5 + [1] + [300] * 14))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    length = int(generator.integers(1, longest + 1))
    rows = generator.normal(size=(2, length))
    if draw(st.booleans()):
        rows = np.round(rows * 8) / 8  # many ties
    poison = draw(st.sampled_from([None] * 30 + [np.nan, np.inf]))
    if poison is not None:
        rows[generator.integers(2), generator.integers(length)] = poison
    return dict(zip(SIGNALS, rows, strict=True))


def kind_of(node, trace):
    """Which kind of draw this is, by the definition of the operators."""
    if series(node, trace)[0] is None:
        return BACKWARD if lookback(parse(text_of(node))) else SHORT
    if not all(np.isfinite(trace[name]).all() for name in signals_of(node)):
        return BROKEN
    if len(trace["a"]) == 1:
        return ONE_STEP
    unbounded = [part for part in parts_of(node) if part[0] in (*UNARY, "until") and part[1] is None]
    clipped = any(None in series(operand, trace) for part in unbounded for operand in operands_of(part))
    return CLIPPED if clipped else COMPARABLE


def trace_of(**signals):
    steps = len(next(iter(signals.values())))
    arrays = {name: np.array(row, dtype=float) for name, row in signals.items()}
    return exact_trace(arrays, np.ones(steps, dtype=bool), {})


def monitored(text, trace, monitor=None):
    """What the second monitor says of an exact trace: one number, since both ends are equal."""
    least, most = (monitor or Monitor()).robustness(text, trace)
    assert least == most
    return least


def rtamt_alone(text, **signals):
    """RTAMT as its documentation shows it: the text and the lists as they are."""
    specification = rtamt.StlDiscreteTimeSpecification()
    for name in (*SIGNALS, "out"):
        specification.declare_var(name, "float")
    specification.spec = f"out = {text}"
    specification.parse()
    length = len(next(iter(signals.values())))
    return specification.evaluate({"time": list(range(length)), **signals})[0][1]


@pytest.mark.timeout(7200 if EXHAUSTIVE else 300)
def test_random_formulas_agree_with_rtamt():
    kinds, operators = Counter(), Counter()

    @settings(
        max_examples=10_000 if EXHAUSTIVE else 500, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(any_formula(), any_trace())
    def agree(node, signals):
        text, trace, kind = text_of(node), trace_of(**signals), kind_of(node, signals)
        kinds[kind] += 1
        if kind in (SHORT, BACKWARD, BROKEN):
            with pytest.raises(UnsetError):
                monitored(text, trace)
            if kind == BROKEN:
                assert np.isnan(robustness(parse(text), signals)[0])
            else:
                with pytest.raises(UnsetError):
                    robustness(parse(text), signals)
            return
        value, step = map(float, robustness(parse(text), signals))
        assert monitored(text, trace) == pytest.approx(value, rel=0, abs=1e-9)
        assert attains(text, trace, int(step), value, 0.0)
        if kind == COMPARABLE:
            operators.update({part[0] for part in parts_of(node)})
            lists = {name: row.tolist() for name, row in signals.items()}
            assert rtamt_alone(text, **lists) == pytest.approx(value, rel=0, abs=1e-9)

    agree()
    for name, count in (kinds + operators).most_common():
        print(f"{count:6d} {name}")
    assert set(kinds) <= {COMPARABLE, *LEFT_OUT}
    assert kinds[COMPARABLE] >= 0.6 * kinds.total()
    assert min(operators[name] for name in (*UNARY, "until", "not", "and", "or", "implies")) >= 1


@oracle
@given(any_formula(), any_trace(), st.integers(0, 2**32 - 1))
def test_intervals_agree_with_rtamt(node, signals, seed):
    if kind_of(node, signals) not in (COMPARABLE, CLIPPED):
        return
    generator = np.random.default_rng(seed)
    widths = {name: generator.choice([0.0, 0.1, 2.0], size=row.shape) for name, row in signals.items()}
    upper = {name: row + widths[name] for name, row in signals.items()}
    text = text_of(node)
    bounds = robustness_bounds(parse(text), signals, upper)
    trace = Trace(signals, upper, np.ones(len(signals["a"]), dtype=bool))
    least, most = Monitor().robustness(text, trace)
    assert least == pytest.approx(float(bounds.least), rel=0, abs=1e-9)
    assert most == pytest.approx(float(bounds.most), rel=0, abs=1e-9)
    assert attains(text, trace, int(bounds.step), float(bounds.least), 0.0)


@oracle
@given(
    nodes(windows=up_to(2, 2), temporal=("always", "eventually", "until")),
    rows,
)
def test_bounded_text_needs_no_help_from_our_parser(node, pair):
    # Long enough that no window is clipped, so that RTAMT may read the text as it stands.
    a, b = (row + [0.5] * 30 for row in pair)
    value, _ = robustness(parse(text_of(node)), trace_of(a=a, b=b).signals)
    assert rtamt_alone(text_of(node), a=list(a), b=list(b)) == value


@oracle
@given(
    st.lists(
        st.tuples(st.sampled_from(("", "not ", "always[0,1] ", "eventually[1,2] ", "once ")), comparisons),
        min_size=2,
        max_size=4,
    ),
    st.lists(st.sampled_from(("and", "or", "until[0,1]")), min_size=3, max_size=3).filter(
        lambda operators: ("until[0,1]",) * 2 not in pairwise(operators)  # it does not chain
    ),
    st.booleans(),
    rows,
)
def test_text_without_parentheses_means_the_same(terms, operators, with_implies, pair):
    words = [terms[0][0] + terms[0][1]]
    for index, (prefix, comparison) in enumerate(terms[1:]):
        operator = "implies" if with_implies and index == len(terms) - 2 else operators[index]
        words += [operator, prefix + comparison]
    text = " ".join(words)
    a, b = (row + [0.5] * 5 for row in pair)
    assert rtamt_alone(text, a=list(a), b=list(b)) == robustness(parse(text), trace_of(a=a, b=b).signals)[0]


def documented_cases():
    """Rows of the table in docs/stl.md, as (case, formula, signals, RTAMT alone, here)."""
    table = DOCUMENT.read_text(encoding="utf-8").split("## RTAMT alone, and here")[1]
    lines = [line for line in table.splitlines() if line.startswith("|")]
    for line in lines[2:]:
        case, formula, trace, alone, here = (cell.strip() for cell in line.strip("|").split("|"))
        signals = dict(part.split("=") for part in trace.split(";"))
        yield pytest.param(
            formula.strip("`"),
            {
                name.strip(): [float(value) for value in row.split(",") if value.strip()]
                for name, row in signals.items()
            },
            alone,
            here,
            id=case,
        )


@pytest.mark.parametrize(("text", "signals", "alone", "here"), list(documented_cases()))
def test_the_documented_cases_are_as_documented(text, signals, alone, here):
    try:
        got = rtamt_alone(text, **{name: list(row) for name, row in signals.items()})
    except (UnboundLocalError, TypeError):  # RTAMT does not check what it is given
        got = "error"
    assert got == alone if alone == "error" else got == pytest.approx(float(alone), nan_ok=True)
    steps = len(signals["a"])
    trace = exact_trace(
        {name: np.array(row) for name, row in signals.items()},
        np.ones(steps, dtype=bool),
        {},
    )
    if here == "refused":
        with pytest.raises(FormulaError):
            parse(text)
        return
    if here != "UNSET":
        assert robustness(parse(text), trace.signals)[0] == float(here)
        assert monitored(text, trace) == float(here)
        return
    with pytest.raises(UnsetError):
        monitored(text, trace)
    try:
        value, _ = robustness(parse(text), trace.signals)
    except UnsetError:
        return
    assert np.isnan(value)


def test_a_nested_window_past_the_end_is_guarded():
    # By definition the inner `always[0,2]` exists at steps 0 and 1 only. RTAMT would take its clipped rests.
    text, row = "always eventually always[0,2] (a <= 0.5)", [1.0, 0.0, 1.0, 0.0, 0.0]
    assert robustness(parse(text), {"a": np.array(row)})[0] == -0.5
    assert monitored(text, trace_of(a=row)) == -0.5
    assert rtamt_alone(text, a=list(row)) == 0.5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("always (a <= 1)", "always[0,47] (a <= 1.0)"),
        (
            "always eventually[0,4] (a <= 1)",
            "always[0,43] ((within_0_43 >= 0.0) implies (eventually[0,4] (a <= 1.0)))",
        ),
        ("always historically (a <= 1)", "always[0,47] (historically[0,47] (a <= 1.0))"),
        ("always once[1,2] (a <= 1)", "always[0,47] ((within_2_47 >= 0.0) implies (once[1,2] (a <= 1.0)))"),
        (
            "always historically always[3,3] (a <= 1)",
            "always[0,47] (historically[0,47] ((within_0_44 >= 0.0) implies (always[3,3] (a <= 1.0))))",
        ),
        ("(a <= 1) until (b <= 1)", "(a <= 1.0) until (b <= 1.0)"),
        (
            "(always[0,2] (a <= 1)) until (once[0,1] (b <= 1))",
            "(always[0,2] (a <= 1.0)) until ((once[0,1] (b <= 1.0)) and (within_1_45 >= 0.0))",
        ),
        ("(a <= 1) until[2,3] (b <= 1)", "(a <= 1.0) until[2,3] (b <= 1.0)"),
        (
            "always (a <= 1 until[1,3] once[0,4] b <= 1)",
            "always[0,44] ((within_3_44 >= 0.0) implies ((a <= 1.0) until[1,3] (once[0,4] (b <= 1.0))))",
        ),
    ],
)
def test_unbounded_operators_are_told_their_steps(text, expected):
    assert str(bounded(parse(text), 48)) == expected


def test_a_formula_that_looks_back_is_unset():
    with pytest.raises(UnsetError, match="looks back beyond the first step, has a value from step 2 on"):
        monitored("historically[0,2] (a <= 1)", trace_of(a=[0.0] * 9))


def test_nan_is_unset_where_rtamt_alone_passes_it():
    row = [0.1, float("nan"), 0.9, 0.3]
    assert rtamt_alone("always (a <= 0.5)", a=[*row[:2], 0.3]) > 0
    with pytest.raises(UnsetError, match="'a' is nan at step 1"):
        monitored("always (a <= 0.5)", trace_of(a=row))


def test_a_short_trace_is_unset_where_rtamt_alone_passes_it():
    assert rtamt_alone("always[3:5] (a <= 0.5)", a=[0.9, 0.9]) == float("inf")
    with pytest.raises(UnsetError, match="2 steps, too few"):
        monitored("always[3:5] (a <= 0.5)", trace_of(a=[0.9, 0.9]))


def test_missing_and_uneven_signals_are_unset():
    with pytest.raises(UnsetError, match="'b' is missing"):
        monitored("b <= 1", trace_of(a=[0.0, 0.0]))
    uneven = exact_trace({"a": np.zeros(3)}, np.ones(4, dtype=bool), {})
    with pytest.raises(UnsetError, match="3 steps, the answer mask 4"):
        monitored("a <= 1", uneven)
    unanswered = exact_trace({"factual": np.ones(3)}, np.zeros(3, dtype=bool), {})
    with pytest.raises(UnsetError, match="no answer step"):
        monitored("always (factual >= 0.7)", unanswered)


def test_one_step_is_enough():
    assert monitored("always (a <= 0.5)", trace_of(a=[0.25])) == 0.25
    assert monitored("eventually always (a <= 0.5)", trace_of(a=[0.75])) == -0.25


def test_traces_stay_as_they_are_and_a_parsed_formula_forgets_them():
    monitor, text = Monitor(), "always[0,2] (a <= 0.5) and eventually (a >= 0.25)"
    traces = [trace_of(a=row) for row in ([0.0, 0.25, 0.5], [0.0, 0.9, 0.5], [0.25, 0.25, 0.25, 0.9])]
    before = [trace.signals["a"].copy() for trace in traces]
    first = [monitored(text, trace, monitor) for trace in traces]
    assert first == [monitored(text, trace, monitor) for trace in traces] == [0.0, 0.5 - 0.9, 0.25]
    for trace, row in zip(traces, before, strict=True):
        np.testing.assert_array_equal(trace.signals["a"], row)


def test_nothing_is_logged(caplog):
    with caplog.at_level(logging.DEBUG):
        monitored("always eventually[0,2] (a <= 0.5)", trace_of(a=[0.0] * 5))
    assert caplog.records == []


@pytest.mark.parametrize(
    ("step", "value", "expected"),
    [(1, -0.25, True), (0, -0.25, False), (1, 0.25, False), (-2, -0.25, False), (3, -0.25, False)],
)
@pytest.mark.parametrize(
    "text",
    ["always (a <= 0.5)", "not (a > 0.5)", "(a <= 0.5) until (a <= 0.5)", "always historically (a <= 0.5)"],
)
def test_attaining_needs_the_step_and_the_sign(text, step, value, expected):
    assert attains(text, trace_of(a=[0.5, 0.75, 0.0]), step, value, 1e-9) is expected
