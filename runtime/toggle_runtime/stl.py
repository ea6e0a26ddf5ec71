"""Quantitative semantics of the formulas, on finite traces: the one implementation, on host and device.

Robustness follows Donzé and Maler, "Robust Satisfaction of Temporal Logic over Real-Valued Signals" (2010):
a predicate's margin, negated, then minima over `and` and time. `>= 0` is satisfied.

Each operator asks its operands for exactly the steps that it needs, at all of which they are defined (see
`toggle_runtime.spans`), so that no value is ever made up beyond either end of a trace.
"""

from typing import Dict, Mapping, NamedTuple

import numpy as np
from numpy.typing import NDArray

from toggle_runtime.formula import (
    Always,
    And,
    Formula,
    FormulaError,
    Historically,
    Interval,
    Not,
    Predicate,
    Until,
    either,
    eventually,
    implies,
    once,
    relaxed,
    signals_of,
    with_predicates,
)
from toggle_runtime.parser import parse
from toggle_runtime.spans import horizon, lookback, reach_of, span_of, unset_reason
from toggle_runtime.windows import (
    Attained,
    lesser,
    prefix_least,
    steps_of,
    suffix_least,
    suffix_until,
    window_least,
    window_until,
)

__all__ = [
    "Always",
    "And",
    "Formula",
    "FormulaError",
    "Historically",
    "Interval",
    "Not",
    "Predicate",
    "RobustnessBounds",
    "UnsetError",
    "Until",
    "either",
    "eventually",
    "horizon",
    "implies",
    "lookback",
    "once",
    "parse",
    "relaxed",
    "robustness",
    "robustness_bounds",
    "robustness_series",
    "signals_of",
]


Floats = NDArray[np.float64]
Steps = NDArray[np.int64]


class UnsetError(ValueError):
    """The trace cannot give the formula a value; the message says why."""


class RobustnessBounds(NamedTuple):
    """Least and most robustness, float64, and the step at which the least is attained, int64."""

    least: Floats
    most: Floats
    step: Steps


def robustness(formula: Formula, trace: Mapping[str, Floats]) -> Attained:
    """Robustness at step 0, and the step at which it is attained.

    `trace` maps each signal to `(..., T)`, all of one shape; the results have shape `(...)`, float64 and
    int64. Of several steps that attain the value, the temporal operators name the first, `and` the left
    operand's, and `until` that of its earliest witness and there the left operand's. A row in which any used
    signal is NaN or infinite, at any step, has robustness NaN, and the step is the first such one. Inputs are
    not changed.

    Raises UnsetError when a used signal is missing or empty, when shapes differ, or when the formula has no
    value at step 0 of a trace of this length.
    """
    rows = _rows(formula, trace)
    return _at_first_step(formula, rows, _finite(rows))


def robustness_bounds(
    formula: Formula, lower: Mapping[str, Floats], upper: Mapping[str, Floats]
) -> RobustnessBounds:
    """The interval that contains the robustness of every trace between `lower` and `upper`, end to end.

    Both map each signal to `(..., T)`, as in `robustness`. Each predicate reads the end that serves it least,
    or most, which is exact for a formula that reads no signal twice and otherwise only wider. A row with a NaN
    or infinite end of any used signal, at any step, has NaN for both bounds, and the step is the first such
    one.

    Raises ValueError where a lower end is above its upper one, UnsetError as `robustness` does.
    """
    low, high = _rows(formula, lower), _rows(formula, upper)
    ends: Dict[str, Floats] = {}
    for name in low:
        if low[name].shape != high[name].shape:
            raise UnsetError(
                f"signal {name!r}: lower ends {low[name].shape}, upper ends {high[name].shape} differ in shape"
            )
        crossed = np.argwhere(low[name] > high[name])
        if crossed.size:
            raise ValueError(
                f"signal {name!r}: expected lower <= upper, got the contrary at {tuple(crossed[0].tolist())}"
            )
        ends[f"{name}, lower"], ends[f"{name}, upper"] = low[name], high[name]

    def reading(least: bool) -> Formula:
        def change(predicate: Predicate, positive: bool) -> Predicate:
            # The margin of an upper bound is least where the signal is greatest.
            end = "upper" if (predicate.is_upper == positive) == least else "lower"
            return Predicate(f"{predicate.signal}, {end}", predicate.comparison, predicate.threshold)

        return with_predicates(formula, change)

    finite = _finite(ends)
    least, step = _at_first_step(reading(least=True), ends, finite)
    most, _ = _at_first_step(reading(least=False), ends, finite)
    # Either end may overflow alone.
    known = np.isfinite(least) & np.isfinite(most)
    return RobustnessBounds(np.where(known, least, np.nan), np.where(known, most, np.nan), step)


def robustness_series(formula: Formula, trace: Mapping[str, Floats]) -> Floats:
    """Robustness at every step, `(..., T)` float64, signals as in `robustness`: for people to look at.

    NaN at the steps at which the formula has no value on a trace of this length, all of them if it is too short,
    and at those whose value can depend on a step at which a used signal is NaN or infinite. For a formula that
    does not look back, the value at step t is that of `robustness` on the trace from t on.

    Raises UnsetError when a used signal is missing or empty, or when shapes differ.
    """
    rows = _used(formula, trace)
    finite = _finite(rows)
    length = _length(rows)
    series = np.full(finite.shape, np.nan)
    span = span_of(formula)
    if length < span.least:
        return series
    for row in rows.values():
        row[~finite] = 0.0
    first, last = span.within(length)
    with np.errstate(over="ignore"):
        value, _ = _evaluate(formula, rows, first, last)
    # Of so many steps up to each one how many are not finite, so that a window's number is a difference.
    spoilt = np.cumsum(~finite, axis=-1)
    spoilt = np.concatenate([np.zeros_like(spoilt[..., :1]), spoilt], axis=-1)
    begin, end = reach_of(formula)
    steps = np.arange(first, last + 1)
    low = np.clip(steps + begin, 0, length).astype(np.int64)
    high = np.clip(steps + end + 1, 0, length).astype(np.int64)
    known = (spoilt[..., high] == spoilt[..., low]) & np.isfinite(value)
    series[..., first : last + 1] = np.where(known, value, np.nan)
    return series


def _rows(formula: Formula, trace: Mapping[str, Floats]) -> Dict[str, Floats]:
    """Copies of the used signals, as float64. Raises UnsetError where they give the formula no value."""
    rows = _used(formula, trace)
    reason = unset_reason(formula, _length(rows))
    if reason:
        raise UnsetError(reason)
    return rows


def _used(formula: Formula, trace: Mapping[str, Floats]) -> Dict[str, Floats]:
    """Copies of the used signals, as float64, all of one shape."""
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


def _length(rows: Mapping[str, Floats]) -> int:
    return int(next(iter(rows.values())).shape[-1])


def _finite(rows: Mapping[str, Floats]) -> NDArray[np.bool_]:
    finite: NDArray[np.bool_] = np.logical_and.reduce([np.isfinite(row) for row in rows.values()])
    return finite


def _at_first_step(formula: Formula, rows: Mapping[str, Floats], finite: NDArray[np.bool_]) -> Attained:
    """Value at step 0, NaN for a row that is not finite throughout. Changes such steps of `rows`."""
    if not finite.all():
        for row in rows.values():
            row[~finite] = 0.0  # NaN must not reach the comparisons on the way; overwritten below
    with np.errstate(over="ignore"):
        value, step = _evaluate(formula, rows, 0, 0)
    whole = finite.all(axis=-1)
    # A margin may overflow although both of its sides are finite.
    value = np.where(whole & np.isfinite(value[..., 0]), value[..., 0], np.nan)
    return value, np.where(whole, step[..., 0], np.argmin(finite, axis=-1))


def _evaluate(formula: Formula, rows: Mapping[str, Floats], first: int, last: int) -> Attained:
    """Value and attaining step at the steps `first` to `last`, at all of which the formula is defined."""
    if isinstance(formula, Predicate):
        row = rows[formula.signal][..., first : last + 1]
        value = formula.threshold - row if formula.is_upper else row - formula.threshold
        return value, np.broadcast_to(np.arange(first, last + 1), row.shape)
    if isinstance(formula, Not):
        value, step = _evaluate(formula.operand, rows, first, last)
        return -value, step
    if isinstance(formula, And):
        return lesser(_evaluate(formula.left, rows, first, last), _evaluate(formula.right, rows, first, last))
    if isinstance(formula, Until):
        return _until(formula, rows, first, last)
    if isinstance(formula, Always):
        if formula.interval is not None:
            near, far = formula.interval
            return window_least(_evaluate(formula.operand, rows, first + near, last + far), far - near + 1)
        begin, end = span_of(formula.operand).within(_length(rows))
        operand = _evaluate(formula.operand, rows, max(first, begin), end)
        if first == last:
            return window_least(operand, operand[0].shape[-1])
        # Steps before the operand's first see all of it.
        return steps_of(suffix_least(operand), np.arange(first, last + 1) - max(first, begin))
    if isinstance(formula, Historically):
        if formula.interval is not None:
            near, far = formula.interval
            return window_least(_evaluate(formula.operand, rows, first - far, last - near), far - near + 1)
        begin, end = span_of(formula.operand).within(_length(rows))
        operand = _evaluate(formula.operand, rows, begin, min(last, end))
        return steps_of(prefix_least(operand), np.arange(first, last + 1) - begin)
    raise TypeError(f"expected a formula, got {type(formula).__name__}")


def _until(formula: Until, rows: Mapping[str, Floats], first: int, last: int) -> Attained:
    if formula.interval is None:
        length = _length(rows)
        begin, end = span_of(formula.right).within(length)
        end = min(end, span_of(formula.left).within(length)[1])
        value, step = _evaluate(formula.right, rows, max(first, begin), end)
        # Steps before the first possible witness are none.
        index = np.arange(first, end + 1) - max(first, begin)
        value, step = steps_of((value, step), index)
        right = np.where(index < 0, -np.inf, value), step
        reached = suffix_until(_evaluate(formula.left, rows, first, end), right)
        return steps_of(reached, np.arange(last - first + 1))
    near, far = formula.interval
    right = _evaluate(formula.right, rows, first + near, last + far)
    if far == 0:
        return right
    left = _evaluate(formula.left, rows, first, last + far - 1)
    # One step longer, for `right` to be as long; the last step's value is not read.
    along = steps_of(left, np.arange(near, last - first + far + 1))
    reached = window_until(along, right, far - near + 1)
    if near == 0:
        return reached
    return lesser(window_least(steps_of(left, np.arange(last - first + near)), near), reached)
