"""Quantitative semantics of the formulas, on finite traces: the one implementation, on host and device.

Robustness follows Donzé and Maler, "Robust Satisfaction of Temporal Logic over Real-Valued Signals" (2010):
a predicate's margin, negated, then minima over `and` and time. `>= 0` is satisfied.

Finite traces never pass by lack of evidence: an unbounded operator ranges over the steps at which its
operand's whole horizon fits in the trace, a bounded window must fit wholly, and where nothing fits there is
no value at all. With `horizon` steps needed after the current one, a formula is thus defined on the first
`T - horizon` steps of a trace of `T`.
"""

from typing import Dict, Mapping, Tuple

import numpy as np
from numpy.typing import NDArray

from toggle_runtime.formula import (
    Always,
    And,
    Formula,
    FormulaError,
    Interval,
    Not,
    Predicate,
    either,
    eventually,
    horizon,
    implies,
    relaxed,
    signals_of,
)
from toggle_runtime.parser import parse

__all__ = [
    "Always",
    "And",
    "Formula",
    "FormulaError",
    "Interval",
    "Not",
    "Predicate",
    "UnsetError",
    "either",
    "eventually",
    "horizon",
    "implies",
    "parse",
    "relaxed",
    "robustness",
    "signals_of",
]


Floats = NDArray[np.float64]
Steps = NDArray[np.int64]


class UnsetError(ValueError):
    """The trace cannot give the formula a value; the message says why."""


def robustness(formula: Formula, trace: Mapping[str, Floats]) -> Tuple[Floats, Steps]:
    """Robustness at step 0, and the step at which it is attained.

    `trace` maps each signal to `(..., T)`, all of one shape; the results have shape `(...)`, float64 and
    int64. Of several steps that attain the value, `always` and `eventually` name the first, `and` the left
    operand's. A row in which any used signal is NaN or infinite, at any step, has robustness NaN, and the
    step is the first such one. Inputs are not changed.

    Raises UnsetError when a used signal is missing or empty, when shapes differ, or when the trace is shorter
    than the formula's horizon.
    """
    rows = _rows(formula, trace)
    shape = next(iter(rows.values())).shape
    needed = horizon(formula) + 1
    if shape[-1] < needed:
        raise UnsetError(f"the trace has {shape[-1]} steps, the formula needs {needed}: {formula}")
    finite = np.ones(shape, dtype=bool)
    for row in rows.values():
        finite &= np.isfinite(row)
    for row in rows.values():
        row[~finite] = 0.0  # such rows are overwritten below; NaN must not reach the comparisons on the way
    with np.errstate(over="ignore"):
        value, step = _evaluate(formula, rows)
    whole = finite.all(axis=-1)
    # A margin may overflow although both of its sides are finite.
    value = np.where(whole & np.isfinite(value[..., 0]), value[..., 0], np.nan)
    return value, np.where(whole, step[..., 0], np.argmin(finite, axis=-1))


def _rows(formula: Formula, trace: Mapping[str, Floats]) -> Dict[str, Floats]:
    """Copies of the used signals, as float64."""
    rows: Dict[str, Floats] = {}
    for name in sorted(signals_of(formula)):
        if name not in trace:
            raise UnsetError(
                f"signal {name!r} is missing; the trace has {', '.join(sorted(trace)) or 'none'}"
            )
        rows[name] = np.array(trace[name], dtype=np.float64)
        if rows[name].ndim == 0 or rows[name].shape[-1] == 0:
            raise UnsetError(f"signal {name!r} is empty")
    if len({row.shape for row in rows.values()}) > 1:
        shapes = ", ".join(f"{name!r} {row.shape}" for name, row in rows.items())
        raise UnsetError(f"signals of one trace differ in shape: {shapes}")
    return rows


def _evaluate(formula: Formula, rows: Mapping[str, Floats]) -> Tuple[Floats, Steps]:
    """Value and attaining step at every step at which the formula is defined: `(..., T - horizon)`."""
    if isinstance(formula, Predicate):
        row = rows[formula.signal]
        value = formula.threshold - row if formula.is_upper else row - formula.threshold
        return value, np.broadcast_to(np.arange(row.shape[-1]), row.shape)
    if isinstance(formula, Not):
        value, step = _evaluate(formula.operand, rows)
        return -value, step
    if isinstance(formula, And):
        left, left_step = _evaluate(formula.left, rows)
        right, right_step = _evaluate(formula.right, rows)
        both = min(left.shape[-1], right.shape[-1])
        left, right = left[..., :both], right[..., :both]
        step = np.where(left <= right, left_step[..., :both], right_step[..., :both])
        return np.minimum(left, right), step
    if isinstance(formula, Always):
        value, step = _evaluate(formula.operand, rows)
        index = _suffix_argmin(value) if formula.interval is None else _window_argmin(value, formula.interval)
        return np.take_along_axis(value, index, axis=-1), np.take_along_axis(step, index, axis=-1)
    raise TypeError(f"expected a formula, got {type(formula).__name__}")


def _suffix_argmin(value: Floats) -> Steps:
    """At each step, the first index of the least value from there to the end."""
    length = value.shape[-1]
    least = np.minimum.accumulate(value[..., ::-1], axis=-1)[..., ::-1]
    # A step that is the least of its own suffix is so for every earlier step, back to the previous such one.
    attained = np.where(value == least, np.arange(length), length)
    return np.minimum.accumulate(attained[..., ::-1], axis=-1)[..., ::-1]


def _window_argmin(value: Floats, interval: Interval) -> Steps:
    """At each step at which the window fits, the index of the first least value in it."""
    first, last = interval
    windows = np.lib.stride_tricks.sliding_window_view(value, last - first + 1, axis=-1)[..., first:, :]
    index: Steps = np.argmin(windows, axis=-1) + np.arange(first, first + windows.shape[-2])
    return index
