"""Least values, and those of `until`, over windows of steps, with the step at which each is attained.

Windows are doubled until they are wide enough: a window of `W` steps takes `O(T log W)` time and `O(T)` memory.
numpy only, Python 3.8.
"""

from typing import Callable, Tuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Attained", "lesser", "prefix_least", "steps_of", "suffix_least", "window_least", "window_until"]

Floats = NDArray[np.float64]
Steps = NDArray[np.int64]
Attained = Tuple[Floats, Steps]
"""A value for every step, and the step of the trace at which it is attained; both `(..., N)`."""

_Parts = Tuple[Attained, ...]


def lesser(one: Attained, other: Attained) -> Attained:
    """Step by step the smaller of two, `one` where they are equal."""
    keep = one[0] <= other[0]
    return np.where(keep, one[0], other[0]), np.where(keep, one[1], other[1])


def steps_of(operand: Attained, index: Steps) -> Attained:
    """The operand at these indices; its first and last step stand for those outside."""
    value, step = operand
    return np.take(value, index, axis=-1, mode="clip"), np.take(step, index, axis=-1, mode="clip")


def window_least(operand: Attained, width: int) -> Attained:
    """At each of `N - width + 1` steps the first least value of the `width` steps from there."""
    value, step = operand
    if width == value.shape[-1]:
        index = np.argmin(value, axis=-1)[..., None]
        return np.take_along_axis(value, index, axis=-1), np.take_along_axis(step, index, axis=-1)
    return _whole(_doubled(_least_of, (operand,), width)[0], width)


def suffix_least(operand: Attained) -> Attained:
    """At each step the first least value from there to the end."""
    return _doubled(_least_of, (operand,), operand[0].shape[-1])[0]


def prefix_least(operand: Attained) -> Attained:
    """At each step the first least value from the beginning to there."""
    backward = operand[0][..., ::-1], operand[1][..., ::-1]
    (value, step), *_ = _doubled(_least_of_backward, (backward,), operand[0].shape[-1])
    return value[..., ::-1], step[..., ::-1]


def window_until(left: Attained, right: Attained, width: int) -> Attained:
    """At each of `N - width + 1` steps `left until right`, over witnesses among the `width` steps from there.

    That is the greatest over the witnesses of the lesser of `right` there and `left` at the steps before; of
    several equal ones the earliest. `left` at the last step of a window is not read.
    """
    return _whole(_doubled(_until_of, (right, left), width)[0], width)


def suffix_until(left: Attained, right: Attained) -> Attained:
    """At each step `left until right`, over witnesses from there to the end."""
    return _doubled(_until_of, (right, left), right[0].shape[-1])[0]


def _least_of(one: _Parts, other: _Parts) -> _Parts:
    return (lesser(one[0], other[0]),)


def _least_of_backward(one: _Parts, other: _Parts) -> _Parts:
    return (lesser(other[0], one[0]),)


def _until_of(one: _Parts, other: _Parts) -> _Parts:
    """`until` over two windows that overlap or touch: a later witness needs `left` all through the first.

    Witnesses that lie in both are counted twice, the second time at no more than their value.
    """
    (right, left), (later_right, later_left) = one, other
    later = lesser(left, later_right)
    keep = right[0] >= later[0]
    reached = np.where(keep, right[0], later[0]), np.where(keep, right[1], later[1])
    return reached, lesser(left, later_left)


def _doubled(merge: Callable[[_Parts, _Parts], _Parts], parts: _Parts, width: int) -> _Parts:
    """`merge` over the `width` steps from each one, at the end over those that there are."""
    reach = 1
    while reach < min(width, parts[0][0].shape[-1]):
        shift = min(reach, width - reach)
        here = tuple((value[..., :-shift], step[..., :-shift]) for value, step in parts)
        there = tuple((value[..., shift:], step[..., shift:]) for value, step in parts)
        # A step without another window ahead of it has reached the end already.
        parts = tuple(
            (
                np.concatenate([value, last_value[..., -shift:]], axis=-1),
                np.concatenate([step, last_step[..., -shift:]], axis=-1),
            )
            for (value, step), (last_value, last_step) in zip(merge(here, there), parts)
        )
        reach += shift
    return parts


def _whole(operand: Attained, width: int) -> Attained:
    """Those steps from which `width` steps exist."""
    count = operand[0].shape[-1] - width + 1
    return operand[0][..., :count], operand[1][..., :count]
