"""Formulas of Signal Temporal Logic: values, text, and what can be known of them without a trace.

Six primitives (`Predicate`, `Not`, `And`, `Always`, `Historically`, `Until`) carry everything; `or`, `implies`,
`eventually` and `once` are built from them, so that semantics is written six times and not ten.
`toggle_runtime.parser` reads their text, `toggle_runtime.spans` knows where they are defined. Standard library
only, Python 3.8.
"""

import math
from dataclasses import dataclass
from typing import Callable, FrozenSet, Optional, Tuple

__all__ = [
    "LOWER",
    "UPPER",
    "Always",
    "And",
    "Formula",
    "FormulaError",
    "Historically",
    "Interval",
    "Not",
    "Predicate",
    "Until",
    "either",
    "eventually",
    "implies",
    "once",
    "operands_of",
    "relaxed",
    "signals_of",
    "with_predicates",
]

Interval = Tuple[int, int]
"""Steps from the current one, forward or, for the past operators, back; both ends included."""

UPPER = ("<=", "<")
LOWER = (">=", ">")


class FormulaError(ValueError):
    """A formula's text cannot be read; the message points at the column."""


class Formula:
    """Base of the six nodes. `str` is text that parses back to an equal formula."""

    def __str__(self) -> str:
        return _text(self)

    __repr__ = __str__


@dataclass(frozen=True, repr=False)
class Predicate(Formula):
    """`signal comparison threshold`, as in `jsd <= 0.25`. Robustness does not tell `<` from `<=`."""

    signal: str
    comparison: str
    threshold: float

    def __post_init__(self) -> None:
        if self.comparison not in UPPER + LOWER:
            raise FormulaError(f"comparison: expected one of {UPPER + LOWER}, got {self.comparison!r}")
        if not math.isfinite(self.threshold):
            raise FormulaError(
                f"threshold of {self.signal!r}: expected a finite number, got {self.threshold!r}"
            )

    @property
    def is_upper(self) -> bool:
        """Whether the threshold bounds the signal from above."""
        return self.comparison in UPPER


@dataclass(frozen=True, repr=False)
class Not(Formula):
    operand: Formula


@dataclass(frozen=True, repr=False)
class And(Formula):
    left: Formula
    right: Formula


@dataclass(frozen=True, repr=False)
class Always(Formula):
    """`operand` at every step of the interval; without one, at every step from now on at which it is defined."""

    operand: Formula
    interval: Optional[Interval] = None

    def __post_init__(self) -> None:
        _check(self.interval)


@dataclass(frozen=True, repr=False)
class Historically(Formula):
    """`operand` at every step of the interval back; without one, at every step up to now at which it is defined."""

    operand: Formula
    interval: Optional[Interval] = None

    def __post_init__(self) -> None:
        _check(self.interval)


@dataclass(frozen=True, repr=False)
class Until(Formula):
    """`right` at some step of the interval, the witness, and `left` at every step from now to before it."""

    left: Formula
    right: Formula
    interval: Optional[Interval] = None

    def __post_init__(self) -> None:
        _check(self.interval)


def either(left: Formula, right: Formula) -> Formula:
    """`left or right`."""
    return Not(And(Not(left), Not(right)))


def implies(left: Formula, right: Formula) -> Formula:
    """`left implies right`."""
    return either(Not(left), right)


def eventually(operand: Formula, interval: Optional[Interval] = None) -> Formula:
    """`operand` at some step of the interval."""
    return Not(Always(Not(operand), interval))


def once(operand: Formula, interval: Optional[Interval] = None) -> Formula:
    """`operand` at some step of the interval back."""
    return Not(Historically(Not(operand), interval))


def operands_of(formula: Formula) -> Tuple[Formula, ...]:
    """The formulas that this one is made of directly, none for a predicate."""
    if isinstance(formula, (And, Until)):
        return (formula.left, formula.right)
    if isinstance(formula, (Not, Always, Historically)):
        return (formula.operand,)
    return ()


def signals_of(formula: Formula) -> FrozenSet[str]:
    """Names of the signals that the formula reads."""
    if isinstance(formula, Predicate):
        return frozenset([formula.signal])
    return frozenset().union(*(signals_of(operand) for operand in operands_of(formula)))


def with_predicates(
    formula: Formula, change: Callable[[Predicate, bool], Predicate], positive: bool = True
) -> Formula:
    """The formula with `change(predicate, positive)` in place of each predicate.

    `positive` says whether a larger margin of the predicate can only raise the formula's robustness; under an
    odd number of negations it can only lower it.
    """
    if isinstance(formula, Predicate):
        return change(formula, positive)
    below = not positive if isinstance(formula, Not) else positive
    operands = [with_predicates(operand, change, below) for operand in operands_of(formula)]
    if isinstance(formula, Not):
        return Not(*operands)
    if isinstance(formula, And):
        return And(*operands)
    if isinstance(formula, (Always, Historically)):
        return type(formula)(operands[0], formula.interval)
    if isinstance(formula, Until):
        return Until(operands[0], operands[1], formula.interval)
    raise TypeError(f"expected a formula, got {type(formula).__name__}")


def relaxed(formula: Formula, factor: float) -> Formula:
    """Weaken every threshold by `factor` times its size, in the direction that weakens the whole formula.

    At factor 0.2 an upper bound of 0.25 becomes 0.3 and a lower bound of 0.7 becomes 0.56; on the left of
    `implies` and under `not` the directions swap. Thresholds are rounded to 12 digits, so that they read as
    meant. Raises ValueError unless factor is finite and >= 0.
    """
    if not (math.isfinite(factor) and factor >= 0):
        raise ValueError(f"factor: expected a finite number >= 0, got {factor!r}")

    def weaker(predicate: Predicate, positive: bool) -> Predicate:
        step = factor * abs(predicate.threshold)
        moved = predicate.threshold + (step if predicate.is_upper == positive else -step)
        return Predicate(predicate.signal, predicate.comparison, float(f"{moved:.12g}"))

    return with_predicates(formula, weaker) if factor else formula


def _check(interval: Optional[Interval]) -> None:
    if interval is not None and not 0 <= interval[0] <= interval[1]:
        raise FormulaError(f"interval: expected 0 <= a <= b, got {list(interval)}")


def _text(formula: Formula) -> str:
    if isinstance(formula, Predicate):
        return f"{formula.signal} {formula.comparison} {float(formula.threshold)!r}"
    if isinstance(formula, And):
        return f"({_text(formula.left)}) and ({_text(formula.right)})"
    if isinstance(formula, Until):
        return f"({_text(formula.left)}) until{_bounds(formula.interval)} ({_text(formula.right)})"
    if isinstance(formula, (Always, Historically)):
        word = "always" if isinstance(formula, Always) else "historically"
        return f"{word}{_bounds(formula.interval)} ({_text(formula.operand)})"
    return _negation_text(formula.operand) if isinstance(formula, Not) else object.__repr__(formula)


def _negation_text(inner: Formula) -> str:
    """Text of `not inner`, under the name of the operator that was built from it."""
    if isinstance(inner, (Always, Historically)) and isinstance(inner.operand, Not):
        word = "eventually" if isinstance(inner, Always) else "once"
        return f"{word}{_bounds(inner.interval)} ({_text(inner.operand.operand)})"
    if isinstance(inner, And) and isinstance(inner.left, Not) and isinstance(inner.right, Not):
        left, right = _text(inner.left.operand), _text(inner.right.operand)
        # `(not (a)) or (b)` reads better as `(a) implies (b)`.
        return f"{left[4:]} implies ({right})" if left.startswith("not ") else f"({left}) or ({right})"
    return f"not ({_text(inner)})"


def _bounds(interval: Optional[Interval]) -> str:
    return "" if interval is None else f"[{interval[0]},{interval[1]}]"
