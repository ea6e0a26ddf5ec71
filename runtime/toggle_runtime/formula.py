"""Formulas of Signal Temporal Logic: values, text, and what can be known of them without a trace.

Four primitives (`Predicate`, `Not`, `And`, `Always`) carry everything; `or`, `implies` and `eventually` are
built from them, so that semantics is written four times and not seven. `toggle_runtime.parser` reads their
text. Standard library only, Python 3.8.
"""

import math
from dataclasses import dataclass
from typing import FrozenSet, Optional, Tuple

__all__ = [
    "LOWER",
    "UPPER",
    "Always",
    "And",
    "Formula",
    "FormulaError",
    "Interval",
    "Not",
    "Predicate",
    "either",
    "eventually",
    "horizon",
    "implies",
    "relaxed",
    "signals_of",
]

Interval = Tuple[int, int]
"""Steps from the current one, both ends included."""

UPPER = ("<=", "<")
LOWER = (">=", ">")


class FormulaError(ValueError):
    """A formula's text cannot be read; the message points at the column."""


class Formula:
    """Base of the four nodes. `str` is text that parses back to an equal formula."""

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
    """`operand` at every step of the interval; without one, at every later step at which it is defined."""

    operand: Formula
    interval: Optional[Interval] = None

    def __post_init__(self) -> None:
        if self.interval is not None and not 0 <= self.interval[0] <= self.interval[1]:
            raise FormulaError(f"interval: expected 0 <= a <= b, got {list(self.interval)}")


def either(left: Formula, right: Formula) -> Formula:
    """`left or right`."""
    return Not(And(Not(left), Not(right)))


def implies(left: Formula, right: Formula) -> Formula:
    """`left implies right`."""
    return either(Not(left), right)


def eventually(operand: Formula, interval: Optional[Interval] = None) -> Formula:
    """`operand` at some step of the interval."""
    return Not(Always(Not(operand), interval))


def signals_of(formula: Formula) -> FrozenSet[str]:
    """Names of the signals that the formula reads."""
    if isinstance(formula, Predicate):
        return frozenset([formula.signal])
    return frozenset().union(*(signals_of(child) for child in _children(formula)))


def horizon(formula: Formula) -> int:
    """Steps after the current one that must exist; an unbounded operator adds none of its own."""
    if isinstance(formula, Predicate):
        return 0
    reach = formula.interval[1] if isinstance(formula, Always) and formula.interval else 0
    return reach + max(horizon(child) for child in _children(formula))


def relaxed(formula: Formula, factor: float) -> Formula:
    """Weaken every threshold by `factor` times its size, in the direction that weakens the whole formula.

    At factor 0.2 an upper bound of 0.25 becomes 0.3 and a lower bound of 0.7 becomes 0.56; on the left of
    `implies` and under `not` the directions swap. Thresholds are rounded to 12 digits, so that they read as
    meant. Raises ValueError unless factor is finite and >= 0.
    """
    if not (math.isfinite(factor) and factor >= 0):
        raise ValueError(f"factor: expected a finite number >= 0, got {factor!r}")
    return _relaxed(formula, factor) if factor else formula


def _relaxed(formula: Formula, factor: float) -> Formula:
    if isinstance(formula, Predicate):
        step = factor * abs(formula.threshold)
        moved = formula.threshold + (step if formula.is_upper else -step)
        return Predicate(formula.signal, formula.comparison, float(f"{moved:.12g}"))
    if isinstance(formula, Not):
        # A negation is weakened by strengthening what it negates.
        return Not(_relaxed(formula.operand, -factor))
    if isinstance(formula, And):
        return And(_relaxed(formula.left, factor), _relaxed(formula.right, factor))
    if isinstance(formula, Always):
        return Always(_relaxed(formula.operand, factor), formula.interval)
    raise TypeError(f"expected a formula, got {type(formula).__name__}")


def _children(formula: Formula) -> Tuple[Formula, ...]:
    if isinstance(formula, And):
        return (formula.left, formula.right)
    if isinstance(formula, (Not, Always)):
        return (formula.operand,)
    return ()


def _text(formula: Formula) -> str:
    if isinstance(formula, Predicate):
        return f"{formula.signal} {formula.comparison} {float(formula.threshold)!r}"
    if isinstance(formula, And):
        return f"({_text(formula.left)}) and ({_text(formula.right)})"
    if isinstance(formula, Always):
        return f"always{_bounds(formula.interval)} ({_text(formula.operand)})"
    return _negation_text(formula.operand) if isinstance(formula, Not) else object.__repr__(formula)


def _negation_text(inner: Formula) -> str:
    """Text of `not inner`, under the name of the operator that was built from it."""
    if isinstance(inner, Always) and isinstance(inner.operand, Not):
        return f"eventually{_bounds(inner.interval)} ({_text(inner.operand.operand)})"
    if isinstance(inner, And) and isinstance(inner.left, Not) and isinstance(inner.right, Not):
        left, right = _text(inner.left.operand), _text(inner.right.operand)
        # `(not (a)) or (b)` reads better as `(a) implies (b)`.
        return f"{left[4:]} implies ({right})" if left.startswith("not ") else f"({left}) or ({right})"
    return f"not ({_text(inner)})"


def _bounds(interval: Optional[Interval]) -> str:
    return "" if interval is None else f"[{interval[0]},{interval[1]}]"
