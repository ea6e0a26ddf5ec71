"""Random formulas as nested tuples, their text, and their meaning by definition: shares no code with ours."""

from hypothesis import strategies as st

SIGNALS = ("a", "b")
UNARY = ("always", "eventually", "historically", "once")

# Multiples of 1/8 collide often, so that ties are met; the others test arithmetic.
numbers = st.one_of(
    st.integers(-16, 16).map(lambda n: n / 8),
    st.floats(-4, 4, allow_subnormal=False).map(lambda x: round(x, 6)),
)
intervals = st.one_of(
    st.none(), st.tuples(st.integers(0, 2), st.integers(0, 2)).map(lambda p: (p[0], p[0] + p[1]))
)


def nodes(
    thresholds=numbers,
    comparisons=("<=", "<", ">=", ">"),
    temporal=(*UNARY, "until"),
    boolean=("not", "and", "or", "implies"),
    windows=intervals,
    past_windows=None,
    until_windows=None,
    max_leaves=4,
):
    """Trees: ("predicate", signal, comparison, threshold), (operator, operands…) for the boolean ones, and
    (operator, interval or None, operands…) for the temporal ones."""
    leaves = st.tuples(
        st.just("predicate"), st.sampled_from(SIGNALS), st.sampled_from(comparisons), thresholds
    )

    def extend(children):
        options = []
        for kind in temporal:
            own = {"historically": past_windows, "once": past_windows, "until": until_windows}.get(kind)
            operands = [children] * (2 if kind == "until" else 1)
            options.append(st.tuples(st.just(kind), windows if own is None else own, *operands))
        pairs = [name for name in boolean if name != "not"]
        if pairs:
            options.append(st.tuples(st.sampled_from(pairs), children, children))
        if "not" in boolean:
            options.append(st.tuples(st.just("not"), children))
        return st.one_of(options)

    return st.recursive(leaves, extend, max_leaves=max_leaves)


def text_of(node):
    """Text with RTAMT's `[a:b]`; ours reads that too."""
    kind = node[0]
    if kind == "predicate":
        return f"{node[1]} {node[2]} {node[3]!r}"
    if kind == "not":
        return f"not ({text_of(node[1])})"
    if kind in ("and", "or", "implies"):
        return f"({text_of(node[1])}) {kind} ({text_of(node[2])})"
    bounds = "" if node[1] is None else f"[{node[1][0]}:{node[1][1]}]"
    if kind == "until":
        return f"({text_of(node[2])}) until{bounds} ({text_of(node[3])})"
    return f"{kind}{bounds} ({text_of(node[2])})"


def operands_of(node):
    return [child for child in node[1:] if isinstance(child, tuple) and isinstance(child[0], str)]


def signals_of(node):
    return {node[1]} if node[0] == "predicate" else set().union(*map(signals_of, operands_of(node)))


def parts_of(node):
    """The tree and every tree in it."""
    return [node] + [part for child in operands_of(node) for part in parts_of(child)]


def series(node, trace):
    """Robustness at every step by definition, None where the formula is not defined."""
    length = len(trace["a"])
    kind = node[0]
    if kind == "predicate":
        rows = [float(value) for value in trace[node[1]]]
        return [node[3] - value if node[2] in ("<=", "<") else value - node[3] for value in rows]
    operands = [series(child, trace) for child in operands_of(node)]
    if kind in ("not", "and", "or", "implies"):
        combine = {
            "not": lambda x: -x,
            "and": min,
            "or": max,
            "implies": lambda x, y: max(-x, y),
        }[kind]
        return [None if None in values else combine(*values) for values in zip(*operands, strict=True)]
    if kind == "until":
        return [_until(*operands, node[1], t) for t in range(length)]
    return [_window(kind, operands[0], node[1], t) for t in range(length)]


def _window(kind, operand, interval, t):
    best = min if kind in ("always", "historically") else max
    sign = 1 if kind in ("always", "eventually") else -1
    if interval is None:
        side = operand[t:] if sign > 0 else operand[: t + 1]
        return best([value for value in side if value is not None], default=None)
    steps = [t + sign * offset for offset in range(interval[0], interval[1] + 1)]
    if min(steps) < 0 or max(steps) >= len(operand) or any(operand[step] is None for step in steps):
        return None
    return best(operand[step] for step in steps)


def _until(left, right, interval, t):
    """The best witness; before it `left` must hold, at it `right` alone."""
    length = len(left)
    if interval is not None:
        end = t + interval[1]
        before = range(t, max(t + 1, end))
        if end >= length or any(left[step] is None for step in before):
            return None
        if any(right[step] is None for step in range(t + interval[0], end + 1)):
            return None
    held, values = float("inf"), []
    for step in range(t, length if interval is None else end + 1):
        if interval is None and left[step] is None:
            break
        witness = right[step] is not None and (interval is None or step >= t + interval[0])
        if witness:
            values.append(min(held, right[step]))
        if left[step] is not None:
            held = min(held, left[step])
    return max(values, default=None)
