"""At which steps of a finite trace a formula is defined, known from the formula and the trace's length alone.

A predicate is defined on the whole trace and a bounded window must lie wholly within its operand's steps. An
unbounded operator takes those of its operand's steps that lie on its side, and needs at least one. What cannot
be evaluated is thus undefined, and never true by default. Standard library only, Python 3.8.
"""

import math
from dataclasses import dataclass
from typing import Tuple

from toggle_runtime.formula import (
    Always,
    And,
    Formula,
    Historically,
    Not,
    Predicate,
    Until,
    operands_of,
)

__all__ = ["Span", "horizon", "lookback", "reach_of", "span_of", "unset_reason"]


@dataclass(frozen=True)
class Span:
    """Defined from step `first` on, up to `rest` steps before the last, on traces of at least `least` steps."""

    first: int
    rest: int
    least: int

    def within(self, length: int) -> Tuple[int, int]:
        """First and last step at which it is defined on a trace of `length >= least` steps."""
        return self.first, length - 1 - self.rest


def span_of(formula: Formula) -> Span:
    """Where the formula is defined."""
    if isinstance(formula, Predicate):
        return Span(0, 0, 1)
    spans = [span_of(operand) for operand in operands_of(formula)]
    first, rest, least = (max(getattr(s, name) for s in spans) for name in ("first", "rest", "least"))
    if isinstance(formula, Always):
        if formula.interval is None:
            return Span(0, rest, least)
        first, rest = max(0, first - formula.interval[0]), rest + formula.interval[1]
    elif isinstance(formula, Historically):
        if formula.interval is None:
            return Span(first, 0, least)
        first, rest = first + formula.interval[1], max(0, rest - formula.interval[0])
    elif isinstance(formula, Until):
        left, right = spans
        if formula.interval is None:
            # A witness lies where both are defined, and none may be assumed of `left` before it is.
            return Span(left.first, rest, max(least, first + rest + 1))
        begin, end = formula.interval
        first = max(left.first, right.first - begin)
        rest = max(left.rest + max(0, end - 1), right.rest + end)
    elif not isinstance(formula, (Not, And)):
        raise TypeError(f"expected a formula, got {type(formula).__name__}")
    return Span(first, rest, max(least, first + rest + 1))


def reach_of(formula: Formula) -> Tuple[float, float]:
    """First and last step, relative to the current one, on which the value can depend; infinite where unbounded.

    Steps between them that an operator leaves out count as well.
    """
    if isinstance(formula, Predicate):
        return 0, 0
    reaches = [reach_of(operand) for operand in operands_of(formula)]
    begin, end = min(first for first, _ in reaches), max(last for _, last in reaches)
    if isinstance(formula, (Always, Historically, Until)):
        near, far = formula.interval or (0, math.inf)
        if isinstance(formula, Historically):
            return begin - far, end - near
        # What is left of `until` counts from the current step on, however late its window begins.
        return begin + (near if isinstance(formula, Always) else 0), end + far
    return begin, end


def horizon(formula: Formula) -> int:
    """Steps that must follow the first one: a trace of `horizon + 1` steps has a value where any trace has."""
    return span_of(formula).least - 1


def lookback(formula: Formula) -> int:
    """Steps before the first at which the formula is defined; unless 0, no trace gives it a value at step 0."""
    return span_of(formula).first


def unset_reason(formula: Formula, length: int) -> str:
    """Why a trace of `length` steps gives the formula no value at step 0; empty where it gives one."""
    if lookback(formula):
        operator = str(_backward(formula)).split(" (")[0]
        return f"`{operator}` looks back beyond the first step: write always (…) around it: {formula}"
    if length <= horizon(formula):
        return f"the trace has {length} steps, the formula needs {horizon(formula) + 1}: {formula}"
    return ""


def _backward(formula: Formula) -> Formula:
    """The outermost operator with a window into the past that takes step 0 away."""
    inner = formula.operand if isinstance(formula, Not) else formula
    if isinstance(inner, Historically) and inner.interval and inner.interval[1]:
        # Printed with its negation, it has the name that it was written under.
        return formula if isinstance(inner.operand, Not) else inner
    return _backward(next(operand for operand in operands_of(formula) if lookback(operand)))
