"""RTAMT as a second monitor, kept away from its traps.

Left alone RTAMT (0.4) clips windows at both ends of a trace, returns infinities where nothing is left of one,
skips NaN in a running minimum, and appends to the lists it is given. So every trace is checked first, every
unbounded operator is told its steps, and RTAMT sees copies.

RTAMT knows no intervals. Robustness falls with each signal that a comparison bounds from above, unless it is
negated, and rises with the others; so for the lower end each comparison is given a variable of its own end of its
signal, `jsd_upper` for `jsd <= 0.25`, and for the upper end the other one.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping

from toggle_runtime.signals import Trace
from toggle_runtime.stl import (
    Always,
    And,
    Formula,
    Historically,
    Not,
    Predicate,
    UnsetError,
    Until,
    implies,
    parse,
    signals_of,
)

from toggle_edge.errors import CertificationError

with warnings.catch_warnings():
    # RTAMT's pinned antlr4 4.7 imports `typing.io` on import.
    warnings.filterwarnings("ignore", message="typing.io is deprecated", category=DeprecationWarning)
    import rtamt

__all__ = ["Monitor", "attains", "bounded", "reading"]

_LOWER, _UPPER = "_lower", "_upper"
"""What the variables of a signal's ends are called after it."""

_WITHIN = "within_"
"""Signals that we add: `within_2_9` is +inf from step 2 to step 9, both included, and -inf at the others."""

Steps = tuple[int, int]


def bounded(formula: Formula, length: int) -> Formula:
    """The formula with its steps made explicit, of equal robustness at step 0 of a trace of `length` steps.

    An unbounded operator whose operand is defined up to step `e` gets `[0, e]`. Nested in another temporal
    operator, or over one that looks back, such a window reaches steps at which the operand is not defined, and
    RTAMT would take what it has clipped there: so the operand is guarded by a signal `within_b_e`. `until`
    stays unbounded, since RTAMT takes cubic time for a long window of it, and only its witnesses are guarded.

    Raises UnsetError when the formula has no value at step 0. Shares no code with `toggle_runtime.spans`.
    """
    explicit, (first, _) = _explicit(formula, length)
    if first > 0:
        raise UnsetError(f"looks back beyond the first step, has a value from step {first} on: {formula}")
    return explicit


def _explicit(formula: Formula, length: int) -> tuple[Formula, Steps]:
    """The formula with its steps made explicit, and the first and last step at which it is defined."""
    explicit, (first, last) = _made_explicit(formula, length)
    if first > last:
        raise UnsetError(f"the trace has {length} steps, too few for: {formula}")
    return explicit, (first, last)


def _made_explicit(formula: Formula, length: int) -> tuple[Formula, Steps]:
    whole = (0, length - 1)
    if isinstance(formula, Predicate):
        return formula, whole
    if isinstance(formula, Not):
        operand, steps = _explicit(formula.operand, length)
        return Not(operand), steps
    if isinstance(formula, (Always, Historically)):
        operand, (first, last) = _explicit(formula.operand, length)
        ahead = isinstance(formula, Always)
        if formula.interval is not None:
            near, far = formula.interval
            fitting = (
                (max(0, first - near), last - far) if ahead else (first + far, min(length - 1, last + near))
            )
            return type(formula)(operand, formula.interval), fitting
        if (first, last) != whole:
            operand = implies(_within(first, last), operand)
        window, fitting = ((0, last), (0, last)) if ahead else ((0, length - 1 - first), (first, length - 1))
        return type(formula)(operand, window), fitting
    if isinstance(formula, (And, Until)):
        left, (left_first, left_last) = _explicit(formula.left, length)
        right, (right_first, right_last) = _explicit(formula.right, length)
        both = max(left_first, right_first), min(left_last, right_last)
        if isinstance(formula, And):
            return And(left, right), both
        if formula.interval is not None:
            near, far = formula.interval
            before = max(far - 1, 0)
            fitting = max(left_first, right_first - near), min(left_last - before, right_last - far)
            return Until(left, right, formula.interval), fitting
        if both != whole:
            right = And(right, _within(*both))
        return Until(left, right), (left_first, both[1])
    raise TypeError(f"expected a formula, got {type(formula).__name__}")


def _within(first: int, last: int) -> Formula:
    return Predicate(f"{_WITHIN}{first}_{last}", ">=", 0.0)


class Monitor:
    """Evaluates formulas with RTAMT; keeps what it parsed, by formula and trace length."""

    def __init__(self) -> None:
        self._parsed: dict[tuple[str, int], rtamt.StlDiscreteTimeSpecification] = {}

    def robustness(self, text: str, trace: Trace) -> tuple[float, float]:
        """Lower and upper end of the robustness at step 0, equal for an exact trace.

        Raises UnsetError with the reason when the trace gives the formula no value, CertificationError when RTAMT
        cannot judge what passed the checks."""
        formula = parse(text)
        data, length = _checked(formula, trace)
        least = self._evaluated(text, reading(formula, least=True), data, length)
        if all(data[name + _LOWER] == data[name + _UPPER] for name in signals_of(formula)):
            return least, least
        return least, self._evaluated(text, reading(formula, least=False), data, length)

    def _evaluated(self, text: str, formula: Formula, ends: Mapping[str, list[float]], length: int) -> float:
        explicit = bounded(formula, length)
        data = {name: list(ends[name]) for name in signals_of(formula)}
        try:
            specification = self._specification(str(formula), explicit, length)
            for guard in signals_of(explicit) - signals_of(formula):
                first, last = map(int, guard.removeprefix(_WITHIN).split("_"))
                data[guard] = [math.inf if first <= step <= last else -math.inf for step in range(length)]
            if length == 1:
                # RTAMT needs two time stamps; a second step equal to the first changes no value.
                data = {name: row * 2 for name, row in data.items()}
            result = specification.evaluate({"time": list(range(max(2, length))), **data})
        except Exception as exc:  # RTAMT raises its own and, on surprises, any
            raise CertificationError(f"RTAMT cannot evaluate {text!r} on {length} steps: {exc}") from exc
        value = float(result[0][1])
        if not math.isfinite(value):
            raise UnsetError(f"RTAMT gives {value} for {text!r}")
        return value

    def _specification(self, text: str, explicit: Formula, length: int) -> rtamt.StlDiscreteTimeSpecification:
        if (text, length) not in self._parsed:
            specification = rtamt.StlDiscreteTimeSpecification()
            for signal in sorted(signals_of(explicit)):
                specification.declare_var(signal, "float")
            # Undeclared, RTAMT warns about its output through the root logger and so configures logging.
            specification.declare_var("out", "float")
            specification.spec = f"out = {explicit}"
            specification.parse()
            self._parsed[text, length] = specification
        return self._parsed[text, length]


def reading(formula: Formula, *, least: bool, positive: bool = True) -> Formula:
    """The formula over the ends of its signals that give its least robustness, or its most."""
    if isinstance(formula, Predicate):
        from_above = formula.comparison[0] == "<"
        end = _UPPER if (from_above == positive) == least else _LOWER
        return Predicate(formula.signal + end, formula.comparison, formula.threshold)
    if isinstance(formula, Not):
        return Not(reading(formula.operand, least=least, positive=not positive))
    if isinstance(formula, (Always, Historically)):
        return type(formula)(reading(formula.operand, least=least, positive=positive), formula.interval)
    if isinstance(formula, (And, Until)):
        left = reading(formula.left, least=least, positive=positive)
        right = reading(formula.right, least=least, positive=positive)
        return And(left, right) if isinstance(formula, And) else Until(left, right, formula.interval)
    raise TypeError(f"expected a formula, got {type(formula).__name__}")


def attains(text: str, trace: Trace, step: int, value: float, tolerance: float) -> bool:
    """Whether some comparison of the formula has this margin at this step, with the sign that counts and at the end
    of its signal that gives the least robustness."""
    formula = parse(text)
    if not 0 <= step < len(trace.answer):
        return False
    return any(
        abs(sign * _margin(predicate, _end(predicate, sign, trace, step)) - value) <= tolerance
        for predicate, sign in _predicates(formula, 1)
    )


def _end(predicate: Predicate, sign: int, trace: Trace, step: int) -> float:
    rises = (predicate.comparison[0] == "<") != (sign > 0)
    ends = trace.lower if rises else trace.upper
    return float(ends[predicate.signal][step])


def _margin(predicate: Predicate, value: float) -> float:
    return predicate.threshold - value if predicate.comparison[0] == "<" else value - predicate.threshold


def _predicates(formula: Formula, sign: int) -> Iterator[tuple[Predicate, int]]:
    if isinstance(formula, Predicate):
        yield formula, sign
    elif isinstance(formula, Not):
        yield from _predicates(formula.operand, -sign)
    elif isinstance(formula, (And, Until)):
        yield from _predicates(formula.left, sign)
        yield from _predicates(formula.right, sign)
    elif isinstance(formula, (Always, Historically)):
        yield from _predicates(formula.operand, sign)


def _checked(formula: Formula, trace: Trace) -> tuple[dict[str, list[float]], int]:
    """Copies of both ends of the used signals as lists, and their common length. Raises UnsetError."""
    length = len(trace.answer)
    rows: dict[str, list[float]] = {}
    for name in sorted(signals_of(formula)):
        if name not in trace.lower or name not in trace.upper:
            raise UnsetError(f"signal {name!r} is missing")
        if name == "factual" and not any(trace.answer):
            raise UnsetError("signal 'factual' has no answer step")
        for end, signals in ((_LOWER, trace.lower), (_UPPER, trace.upper)):
            row = [float(value) for value in signals[name]]
            if len(row) != length:
                raise UnsetError(f"signal {name!r} has {len(row)} steps, the answer mask {length}")
            for step, value in enumerate(row):
                if not math.isfinite(value):
                    raise UnsetError(f"signal {name!r} is {value} at step {step}")
            rows[name + end] = row
        if any(a > b for a, b in zip(rows[name + _LOWER], rows[name + _UPPER], strict=True)):
            raise CertificationError(f"signal {name!r}: expected lower ends that are at most the upper ones")
    return rows, length
