"""RTAMT as a second monitor, kept away from its traps.

Left alone RTAMT (0.4) clips windows at the end of a trace, returns +inf for one that is too short, skips NaN
in a running minimum, and appends to the lists it is given. So every trace is checked first, every unbounded
operator gets explicit bounds, and RTAMT sees copies.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

from toggle_runtime.signals import Trace
from toggle_runtime.stl import (
    Always,
    And,
    Formula,
    Not,
    Predicate,
    UnsetError,
    horizon,
    implies,
    parse,
    signals_of,
)

from toggle_edge.errors import CertificationError

with warnings.catch_warnings():
    # RTAMT's pinned antlr4 4.7 imports `typing.io` on import.
    warnings.filterwarnings("ignore", message="typing.io is deprecated", category=DeprecationWarning)
    import rtamt

__all__ = ["Monitor", "attains", "bounded"]

_FITS = "fits_"
"""Signals that we add: +inf at the steps at which that many later ones exist, -inf at the others."""


def bounded(formula: Formula, length: int) -> Formula:
    """The formula with explicit bounds, of equal robustness at step 0 of a trace of `length` steps.

    An unbounded operator over an operand of horizon h gets `[0, length - 1 - h]`. Nested in another temporal
    operator such a window reaches past the steps at which the operand is defined, and RTAMT would clip it:
    there the operand is guarded by the signal `fits_h`.
    """
    if isinstance(formula, Not):
        return Not(bounded(formula.operand, length))
    if isinstance(formula, And):
        return And(bounded(formula.left, length), bounded(formula.right, length))
    if not isinstance(formula, Always):
        return formula
    operand = bounded(formula.operand, length)
    if formula.interval is not None:
        return Always(operand, formula.interval)
    needed = horizon(formula.operand)
    if needed:
        operand = implies(Predicate(f"{_FITS}{needed}", ">=", 0.0), operand)
    return Always(operand, (0, length - 1 - needed))


class Monitor:
    """Evaluates formulas with RTAMT; keeps what it parsed, by formula and trace length."""

    def __init__(self) -> None:
        self._parsed: dict[tuple[str, int], tuple[rtamt.StlDiscreteTimeSpecification, list[str]]] = {}

    def robustness(self, text: str, trace: Trace) -> float:
        """Robustness at step 0. Raises UnsetError with the reason when the trace gives the formula no value,
        CertificationError when RTAMT cannot judge what passed the checks."""
        formula = parse(text)
        data, length = _checked(formula, trace)
        try:
            specification, guards = self._specification(text, formula, length)
            for guard in guards:
                last = length - 1 - int(guard.removeprefix(_FITS))
                data[guard] = [math.inf if step <= last else -math.inf for step in range(length)]
            if length == 1:
                # RTAMT needs two time stamps; bounds of [0, 0] keep the second step out of the value.
                data = {name: row * 2 for name, row in data.items()}
            result = specification.evaluate({"time": list(range(max(2, length))), **data})
        except Exception as exc:  # RTAMT raises its own and, on surprises, any
            raise CertificationError(f"RTAMT cannot evaluate {text!r} on {length} steps: {exc}") from exc
        value = float(result[0][1])
        if not math.isfinite(value):
            raise UnsetError(f"RTAMT gives {value} for {text!r}")
        return value

    def _specification(
        self, text: str, formula: Formula, length: int
    ) -> tuple[rtamt.StlDiscreteTimeSpecification, list[str]]:
        if (text, length) not in self._parsed:
            explicit = bounded(formula, length)
            specification = rtamt.StlDiscreteTimeSpecification()
            for signal in sorted(signals_of(explicit)):
                specification.declare_var(signal, "float")
            # Undeclared, RTAMT warns about its output through the root logger and so configures logging.
            specification.declare_var("out", "float")
            specification.spec = f"out = {explicit}"
            specification.parse()
            guards = sorted(signals_of(explicit) - signals_of(formula))
            self._parsed[text, length] = specification, guards
        return self._parsed[text, length]


def attains(text: str, trace: Trace, step: int, value: float, tolerance: float) -> bool:
    """Whether some comparison of the formula has this margin at this step, with the sign that counts."""
    formula = parse(text)
    if not 0 <= step < len(trace.answer):
        return False
    return any(
        abs(sign * _margin(predicate, float(trace.signals[predicate.signal][step])) - value) <= tolerance
        for predicate, sign in _predicates(formula, 1)
    )


def _margin(predicate: Predicate, value: float) -> float:
    return predicate.threshold - value if predicate.comparison[0] == "<" else value - predicate.threshold


def _predicates(formula: Formula, sign: int) -> Iterator[tuple[Predicate, int]]:
    if isinstance(formula, Predicate):
        yield formula, sign
    elif isinstance(formula, Not):
        yield from _predicates(formula.operand, -sign)
    elif isinstance(formula, And):
        yield from _predicates(formula.left, sign)
        yield from _predicates(formula.right, sign)
    elif isinstance(formula, Always):
        yield from _predicates(formula.operand, sign)


def _checked(formula: Formula, trace: Trace) -> tuple[dict[str, list[float]], int]:
    """Copies of the used signals as lists, and their common length. Raises UnsetError."""
    length = len(trace.answer)
    rows: dict[str, list[float]] = {}
    for name in sorted(signals_of(formula)):
        if name not in trace.signals:
            raise UnsetError(f"signal {name!r} is missing")
        if name == "factual" and not any(trace.answer):
            raise UnsetError("signal 'factual' has no answer step")
        rows[name] = [float(value) for value in trace.signals[name]]
        if len(rows[name]) != length:
            raise UnsetError(f"signal {name!r} has {len(rows[name])} steps, the answer mask {length}")
        for step, value in enumerate(rows[name]):
            if not math.isfinite(value):
                raise UnsetError(f"signal {name!r} is {value} at step {step}")
    if length <= horizon(formula):
        raise UnsetError(f"the trace has {length} steps, the formula needs {horizon(formula) + 1}")
    return rows, length
