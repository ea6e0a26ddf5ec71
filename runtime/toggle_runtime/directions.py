"""Hidden states of the baseline, reduced to directions: intervals of their cosine with the candidate's states.

The cosine depends on directions only, so that a state x is kept as a vector x' near its direction, 8 bits an entry
with a scale for each 64 of them, and as the share s = |x - x'| / |x|. The angle between x and x' is then at most
phi = arcsin(s), since |x - x'| is at least the distance of x from the line through x', which is |x| sin(angle), and
s < 1 puts x and x' on the same side.

Angles between directions obey the triangle inequality. With theta the angle between x' and the candidate's state c,
which the device computes, the angle between x and c lies between |theta - phi| and theta + phi, so that

    cos(min(pi, theta + phi)) <= cos(x, c) <= cos(max(0, theta - phi)).

The width is at most 2 sin(theta) sin(phi): it vanishes for a candidate that is close to its baseline, which a bound
from the norm of the error alone, 2 s, does not. Both ends are monotone in the computed cosine and in s, so that
widening these by their rounding widens the interval. With s of 1 or more nothing is known: -1 to 1.

A scale per 64 entries, and not one per vector, because a language model's states have a few entries a hundred times
the others, which would leave one scale nothing for the rest.
"""

from dataclasses import dataclass
from typing import Tuple

import numpy as np
from numpy.typing import NDArray

from toggle_runtime.arrays import SignalsError
from toggle_runtime.rounding import all_finite, float32_above, slack

Floats = NDArray[np.float64]

BLOCK = 64


@dataclass(frozen=True)
class Directions:
    """The baseline's hidden states, `... x width`, as directions.

    `codes` is `... x width` int8, `scales` is `... x ceil(width / 64)` float32, `error` is `...` float32: an
    upper bound of s of the module's text, 0 for a state of zeros, NaN for one that is not finite.
    """

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    error: NDArray[np.float32]


def reduce_directions(hidden: NDArray[np.float32]) -> Directions:
    """Round states (`... x width`) to 8 bits with a scale for each 64 entries, and measure what that loses."""
    finite = all_finite(hidden, axis=-1)
    states = np.where(finite[..., np.newaxis], hidden, 0).astype(np.float64)
    width = hidden.shape[-1]
    starts = np.arange(0, width, BLOCK)
    scales = float32_above(np.maximum.reduceat(np.abs(states), starts, axis=-1) / 127)
    spread = _spread(scales, width)
    codes = np.rint(states / np.where(spread > 0, spread, 1.0))
    lost = _norm(states - codes * spread)
    norm = _norm(states)
    share = lost / np.where(norm > 0, norm, 1.0) * (1 + slack(2 * width + 16))
    error = np.where(finite, np.minimum(share, 1.0), np.nan)
    return Directions(codes.astype(np.int8), scales, float32_above(error))


def check_directions(where: str, part: Directions, shape: Tuple[int, ...]) -> None:
    """Raises SignalsError unless the arrays are states of that shape."""
    blocks = -(-shape[-1] // BLOCK)
    if part.codes.dtype != np.int8 or part.codes.shape != shape:
        raise SignalsError(
            f"{where}.codes: expected {shape} of int8, got {part.codes.shape} of {part.codes.dtype}"
        )
    if part.scales.dtype != np.float32 or part.scales.shape != (*shape[:-1], blocks):
        raise SignalsError(f"{where}.scales: expected {(*shape[:-1], blocks)} of float32")
    if not (np.isfinite(part.scales) & (part.scales >= 0)).all():
        raise SignalsError(f"{where}.scales: expected finite numbers, none negative")
    if part.error.dtype != np.float32 or part.error.shape != shape[:-1]:
        raise SignalsError(f"{where}.error: expected {shape[:-1]} of float32")
    if ((part.error < 0) | (part.error > 1)).any():
        raise SignalsError(f"{where}.error: expected values from 0 to 1 or NaN")


def direction_bounds(part: Directions, hidden: NDArray[np.float32]) -> Tuple[Floats, Floats]:
    """Lower and upper ends of the cosine of each state with the candidate's, `hidden` of the same shape.

    NaN at both ends where either state is not finite; 0 at both where either is zero. Within -1..1.
    """
    finite = all_finite(hidden, axis=-1) & np.isfinite(part.error)
    states = np.where(finite[..., np.newaxis], hidden, 0).astype(np.float64)
    near = part.codes * _spread(part.scales, hidden.shape[-1])
    norms = _norm(near) * _norm(states)
    off = slack(4 * hidden.shape[-1] + 64)
    cosine = (near * states).sum(axis=-1) / np.where(norms > 0, norms, 1.0)
    share = np.where(finite, part.error, 1.0).astype(np.float64)
    lower = _turned(np.clip(cosine - off, -1.0, 1.0), share, -1.0) - slack(16)
    upper = -_turned(np.clip(-cosine - off, -1.0, 1.0), share, -1.0) + slack(16)
    zero = (_norm(states) == 0) | ((part.error == 0) & (_norm(near) == 0))
    unknown = (share >= 1) | (norms == 0)
    lower, upper = np.where(unknown, -1.0, lower), np.where(unknown, 1.0, upper)
    ends = [np.where(zero, 0.0, np.clip(end, -1.0, 1.0)) for end in (lower, upper)]
    return np.where(finite, ends[0], np.nan), np.where(finite, ends[1], np.nan)


def _turned(cosine: Floats, sine: Floats, least: float) -> Floats:
    """cos(theta + phi) of `cosine` = cos(theta) and `sine` = sin(phi), `least` where theta + phi is above pi."""
    straight = np.sqrt((1 - sine) * (1 + sine))
    turned = cosine * straight - np.sqrt((1 - cosine) * (1 + cosine)) * sine
    result: Floats = np.where(cosine >= -straight, turned, least)
    return result


def _spread(scales: NDArray[np.float32], width: int) -> Floats:
    spread: Floats = np.repeat(scales, BLOCK, axis=-1)[..., :width].astype(np.float64)
    return spread


def _norm(vectors: Floats) -> Floats:
    norm: Floats = np.sqrt((vectors * vectors).sum(axis=-1))
    return norm
