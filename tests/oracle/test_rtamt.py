"""Our semantics beside RTAMT's, and the traps of RTAMT that the monitor has to keep away from."""

import logging
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toggle_runtime.signals import Trace
from toggle_runtime.stl import UnsetError, horizon, parse, robustness

from toggle_edge.certify.monitor import Monitor, attains, bounded

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="typing.io is deprecated", category=DeprecationWarning)
    import rtamt

# Every example parses text with antlr in pure Python, some milliseconds each.
oracle = settings(max_examples=60, deadline=None)

comparisons = st.tuples(
    st.sampled_from("ab"), st.sampled_from(("<=", "<", ">=", ">")), st.integers(-8, 8).map(lambda n: n / 4)
).map(lambda parts: f"{parts[0]} {parts[1]} {parts[2]!r}")
windows = st.tuples(st.integers(0, 2), st.integers(0, 2)).map(lambda pair: f"[{pair[0]},{pair[0] + pair[1]}]")
rows = st.integers(2, 9).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(-16, 16).map(lambda i: i / 8), min_size=n, max_size=n)] * 2)
)


def formulas(bounds):
    def extend(children):
        return st.one_of(
            children.map(lambda x: f"not ({x})"),
            st.tuples(children, st.sampled_from(("and", "or", "implies")), children).map(
                lambda t: f"({t[0]}) {t[1]} ({t[2]})"
            ),
            st.tuples(st.sampled_from(("always", "eventually")), bounds, children).map(
                lambda t: f"{t[0]}{t[1]} ({t[2]})"
            ),
        )

    return st.recursive(comparisons, extend, max_leaves=4)


def trace_of(**signals):
    steps = len(next(iter(signals.values())))
    arrays = {name: np.array(row, dtype=float) for name, row in signals.items()}
    return Trace(arrays, np.ones(steps, dtype=bool), np.zeros((0, steps)))


def rtamt_alone(text, **signals):
    """RTAMT as its documentation shows it: the text and the lists as they are."""
    specification = rtamt.StlDiscreteTimeSpecification()
    for name in (*signals, "out"):
        specification.declare_var(name, "float")
    specification.spec = f"out = {text}"
    specification.parse()
    length = len(next(iter(signals.values())))
    return specification.evaluate({"time": list(range(length)), **signals})[0][1]


@oracle
@given(formulas(st.one_of(st.just(""), windows)), rows)
def test_any_formula_has_the_same_robustness(text, pair):
    trace = trace_of(a=pair[0], b=pair[1])
    if len(pair[0]) <= horizon(parse(text)):
        for evaluate in (
            lambda: Monitor().robustness(text, trace),
            lambda: robustness(parse(text), trace.signals),
        ):
            with pytest.raises(UnsetError):
                evaluate()
        return
    value, step = robustness(parse(text), trace.signals)
    assert Monitor().robustness(text, trace) == value
    assert attains(text, trace, int(step), float(value), 0.0)


@oracle
@given(formulas(windows), rows)
def test_bounded_text_needs_no_help_from_our_parser(text, pair):
    # Long enough that no window is clipped, so that RTAMT may read the text as it stands.
    a, b = (row + [0.5] * 20 for row in pair)
    value, _ = robustness(parse(text), trace_of(a=a, b=b).signals)
    assert rtamt_alone(text, a=list(a), b=list(b)) == value


@oracle
@given(
    st.lists(
        st.tuples(st.sampled_from(("", "not ", "always[0,1] ", "eventually[1,2] ")), comparisons),
        min_size=2,
        max_size=4,
    ),
    st.lists(st.sampled_from(("and", "or")), min_size=3, max_size=3),
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


def test_a_nested_window_past_the_end_is_guarded():
    # By definition the inner `always[0,2]` exists at steps 0 and 1 only. RTAMT would take its clipped rests.
    text, row = "always eventually always[0,2] (a <= 0.5)", [1.0, 0.0, 1.0, 0.0, 0.0]
    assert robustness(parse(text), {"a": np.array(row)})[0] == -0.5
    assert Monitor().robustness(text, trace_of(a=row)) == -0.5
    assert rtamt_alone(text, a=list(row)) == 0.5


def test_unbounded_operators_get_explicit_bounds():
    assert str(bounded(parse("always (a <= 1)"), 48)) == "always[0,47] (a <= 1.0)"
    assert "always[0,43]" in str(bounded(parse("always eventually[0,4] (a <= 1)"), 48))


def test_nan_is_unset_where_rtamt_alone_passes_it():
    row = [0.1, float("nan"), 0.9, 0.3]
    assert rtamt_alone("always (a <= 0.5)", a=[*row[:2], 0.3]) > 0
    with pytest.raises(UnsetError, match="'a' is nan at step 1"):
        Monitor().robustness("always (a <= 0.5)", trace_of(a=row))


def test_a_short_trace_is_unset_where_rtamt_alone_passes_it():
    assert rtamt_alone("always[3:5] (a <= 0.5)", a=[0.9, 0.9]) == float("inf")
    with pytest.raises(UnsetError, match="2 steps, the formula needs 6"):
        Monitor().robustness("always[3:5] (a <= 0.5)", trace_of(a=[0.9, 0.9]))


def test_missing_and_uneven_signals_are_unset():
    with pytest.raises(UnsetError, match="'b' is missing"):
        Monitor().robustness("b <= 1", trace_of(a=[0.0, 0.0]))
    uneven = Trace({"a": np.zeros(3)}, np.ones(4, dtype=bool), np.zeros((0, 4)))
    with pytest.raises(UnsetError, match="3 steps, the answer mask 4"):
        Monitor().robustness("a <= 1", uneven)
    unanswered = Trace({"factual": np.ones(3)}, np.zeros(3, dtype=bool), np.zeros((0, 3)))
    with pytest.raises(UnsetError, match="no answer step"):
        Monitor().robustness("always (factual >= 0.7)", unanswered)


def test_one_step_is_enough():
    assert Monitor().robustness("always (a <= 0.5)", trace_of(a=[0.25])) == 0.25
    assert Monitor().robustness("eventually always (a <= 0.5)", trace_of(a=[0.75])) == -0.25


def test_traces_stay_as_they_are_and_a_parsed_formula_forgets_them():
    monitor, text = Monitor(), "always[0,2] (a <= 0.5) and eventually (a >= 0.25)"
    traces = [trace_of(a=row) for row in ([0.0, 0.25, 0.5], [0.0, 0.9, 0.5], [0.25, 0.25, 0.25, 0.9])]
    before = [trace.signals["a"].copy() for trace in traces]
    first = [monitor.robustness(text, trace) for trace in traces]
    assert first == [monitor.robustness(text, trace) for trace in traces] == [0.0, 0.5 - 0.9, 0.25]
    for trace, row in zip(traces, before, strict=True):
        np.testing.assert_array_equal(trace.signals["a"], row)


def test_nothing_is_logged(caplog):
    with caplog.at_level(logging.DEBUG):
        Monitor().robustness("always eventually[0,2] (a <= 0.5)", trace_of(a=[0.0] * 5))
    assert caplog.records == []


@pytest.mark.parametrize(
    ("step", "value", "expected"),
    [(1, -0.25, True), (0, -0.25, False), (1, 0.25, False), (-2, -0.25, False), (3, -0.25, False)],
)
def test_attaining_needs_the_step_and_the_sign(step, value, expected):
    assert attains("always (a <= 0.5)", trace_of(a=[0.5, 0.75, 0.0]), step, value, 1e-9) is expected
