"""Laws of the semantics over random formulas and traces, and a brute-force oracle that shares no code."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from toggle_runtime.stl import UnsetError, horizon, parse, relaxed, robustness

SIGNALS = ("a", "b")
laws = settings(max_examples=100, deadline=None)

# Multiples of 1/8 collide often, so that ties are met; the others test arithmetic.
numbers = st.one_of(
    st.integers(-16, 16).map(lambda n: n / 8),
    st.floats(-4, 4, allow_subnormal=False).map(lambda x: round(x, 6)),
)
positive = st.integers(1, 16).map(lambda n: n / 8)
intervals = st.one_of(
    st.none(), st.tuples(st.integers(0, 2), st.integers(0, 2)).map(lambda p: (p[0], p[0] + p[1]))
)


def nodes(
    thresholds=numbers, comparisons=("<=", "<", ">=", ">"), unary=("not",), binary=("and", "or", "implies")
):
    """Formulas as nested tuples, the oracle's own representation."""
    leaves = st.tuples(
        st.just("predicate"), st.sampled_from(SIGNALS), st.sampled_from(comparisons), thresholds
    )

    def extend(children):
        temporal = st.tuples(st.sampled_from(("always", "eventually")), intervals, children)
        both = st.tuples(st.sampled_from(binary), children, children)
        options = [temporal, both]
        if unary:
            options.append(st.tuples(st.sampled_from(unary), children))
        return st.one_of(options)

    return st.recursive(leaves, extend, max_leaves=4)


def traces(least=1, most=9):
    return st.integers(least, most).flatmap(
        lambda length: st.fixed_dictionaries(
            {name: st.lists(numbers, min_size=length, max_size=length).map(np.array) for name in SIGNALS}
        )
    )


def text_of(node):
    if node[0] == "predicate":
        return f"{node[1]} {node[2]} {node[3]!r}"
    if node[0] == "not":
        return f"not ({text_of(node[1])})"
    if node[0] in ("always", "eventually"):
        bounds = "" if node[1] is None else f"[{node[1][0]}:{node[1][1]}]"
        return f"{node[0]}{bounds} ({text_of(node[2])})"
    return f"({text_of(node[1])}) {node[0]} ({text_of(node[2])})"


def oracle(node, trace, t):
    """Robustness at step t by definition, None where the formula is not defined."""
    length = len(trace["a"])
    if node[0] == "predicate":
        if t >= length:
            return None
        value = float(trace[node[1]][t])
        return node[3] - value if node[2] in ("<=", "<") else value - node[3]
    if node[0] == "not":
        value = oracle(node[1], trace, t)
        return None if value is None else -value
    if node[0] in ("always", "eventually"):
        if node[1] is None:
            window = [oracle(node[2], trace, step) for step in range(t, length)]
            window = [value for value in window if value is not None]
        else:
            window = [oracle(node[2], trace, step) for step in range(t + node[1][0], t + node[1][1] + 1)]
        if not window or None in window:
            return None
        return min(window) if node[0] == "always" else max(window)
    left, right = oracle(node[1], trace, t), oracle(node[2], trace, t)
    if left is None or right is None:
        return None
    return {"and": min(left, right), "or": max(left, right), "implies": max(-left, right)}[node[0]]


def value_of(text, trace):
    try:
        return float(robustness(parse(text), trace)[0])
    except UnsetError:
        return None


@laws
@given(nodes(), traces())
def test_brute_force_oracle(node, trace):
    assert value_of(text_of(node), trace) == oracle(node, trace, 0)


@laws
@given(nodes(), traces())
def test_the_horizon_is_the_least_that_gives_a_value(node, trace):
    formula = parse(text_of(node))
    assert (len(trace["a"]) > horizon(formula)) == (oracle(node, trace, 0) is not None)


@laws
@given(nodes(), traces())
def test_some_comparison_has_the_value_at_the_named_step(node, trace):
    formula = parse(text_of(node))
    if len(trace["a"]) <= horizon(formula):
        return
    value, step = robustness(formula, trace)

    def margins(part):
        if part[0] == "predicate":
            return [abs(float(trace[part[1]][step]) - part[3])]
        return [
            margin for child in part[1:] if child and isinstance(child[0], str) for margin in margins(child)
        ]

    assert abs(float(value)) in margins(node)


@laws
@given(nodes())
def test_printed_text_reads_back(node):
    formula = parse(text_of(node))
    assert parse(str(formula)) == formula
    assert str(parse(str(formula))) == str(formula)


@laws
@given(nodes(), nodes(), intervals, traces())
def test_identities(left, right, interval, trace):
    x, y = text_of(left), text_of(right)
    bounds = "" if interval is None else f"[{interval[0]},{interval[1]}]"
    for first, second in [
        (f"not not ({x})", x),
        (f"not (({x}) and ({y}))", f"(not ({x})) or (not ({y}))"),
        (f"not (({x}) or ({y}))", f"(not ({x})) and (not ({y}))"),
        (f"({x}) implies ({y})", f"(not ({x})) or ({y})"),
        (f"always{bounds} ({x})", f"not eventually{bounds} not ({x})"),
        (f"always (always ({x}))", f"always ({x})"),
        (f"always (({x}) and ({y}))", f"always (({y}) and ({x}))"),
    ]:
        assert value_of(first, trace) == value_of(second, trace)


@laws
@given(nodes(), traces(), st.data())
def test_robustness_moves_no_further_than_the_signals(node, trace, data):
    change = data.draw(traces(len(trace["a"]), len(trace["a"])))
    before = value_of(text_of(node), trace)
    if before is None:
        return
    after = value_of(text_of(node), {name: row + change[name] for name, row in trace.items()})
    assert abs(after - before) <= max(np.abs(row).max() for row in change.values()) + 1e-12


@laws
@given(nodes(comparisons=("<=", "<"), unary=(), binary=("and", "or")), traces(), st.data())
def test_raising_a_signal_never_helps_an_upper_bound(node, trace, data):
    rises = data.draw(traces(len(trace["a"]), len(trace["a"])))
    before = value_of(text_of(node), trace)
    if before is not None:
        assert (
            value_of(text_of(node), {name: row + abs(rises[name]) for name, row in trace.items()}) <= before
        )


@laws
@given(nodes(thresholds=positive), traces(), st.floats(0.001, 0.5))
def test_relaxing_never_lowers_robustness(node, trace, factor):
    formula = parse(text_of(node))
    if len(trace["a"]) > horizon(formula):
        assert robustness(relaxed(formula, factor), trace)[0] >= robustness(formula, trace)[0]


@laws
@given(nodes(), traces(), st.integers(0, 8), st.sampled_from([np.nan, np.inf, -np.inf]))
def test_a_broken_step_never_becomes_a_number(node, trace, step, poison):
    formula = parse(text_of(node))
    if len(trace["a"]) <= horizon(formula):
        return
    rows = {name: row.copy() for name, row in trace.items()}
    used = min(_signals(node))
    rows[used][step % len(rows[used])] = poison
    assert np.isnan(robustness(formula, rows)[0])


def _signals(node):
    if node[0] == "predicate":
        return {node[1]}
    return {name for child in node[1:] if child and isinstance(child[0], str) for name in _signals(child)}
