"""Signals as intervals: what a candidate's outputs say beside a baseline of which only a reduction is here.

The true signal is the one of the unreduced float32 outputs of both models in exact arithmetic. Each interval
contains it, so that a verdict from the lower ends may be more pessimistic than the host's, never less.
"""

from typing import Dict, List, Tuple

import numpy as np
from numpy.typing import NDArray

from toggle_runtime.attention_rows import cosine_bounds
from toggle_runtime.directions import Directions, direction_bounds
from toggle_runtime.distributions import divergence_bounds, ratio_bounds
from toggle_runtime.reduction import ReducedBaseline
from toggle_runtime.rounding import slack
from toggle_runtime.signals import Outputs, SignalsError, Trace, at_layers, departure, one_where

Bounds = Tuple[NDArray[np.float64], NDArray[np.float64]]


def bounds_of(
    reduced: ReducedBaseline, candidate: Outputs, gold: NDArray[np.int64], answer: NDArray[np.bool_]
) -> Trace:
    """Intervals of every signal that the reduced baseline was made for.

    A probe without an answer step lacks `factual`, one without a far key lacks `attention_far`: by definition both
    would be 1 throughout, and a property that nothing was tested on must not pass. At single steps without a far
    key `attention_far` is 1, as `factual` is off the answer. What is not finite in either model is NaN at its step.

    Raises SignalsError where the candidate's outputs are not float32 or not of the baseline's shape, its attention is
    not what softmax gives, or the reduced baseline belongs to other tokens.
    """
    _check(reduced, candidate, gold, answer)
    bounds: Dict[str, Bounds] = {}
    layers: Dict[str, NDArray[np.float64]] = {}
    if reduced.distribution is not None:
        bounds["jsd"] = divergence_bounds(reduced.distribution, candidate.logits)
    if reduced.gold_log is not None and answer.any():
        bounds["factual"] = ratio_bounds(reduced.gold_log, candidate.logits, gold, answer)
    if reduced.attention is not None:
        rows = cosine_bounds(reduced.attention, candidate.attention)
        layers["attention"] = rows[0]
        bounds["attention"], bounds["attention_min"] = _mean(rows), _least(rows)
    if reduced.attention_far is not None and reduced.far_steps.any():
        far, near_only = (
            cosine_bounds(reduced.attention_far, candidate.attention, reduced.far_keys),
            ~reduced.far_steps,
        )
        layers["attention_far"] = one_where(near_only, far[0])
        lower, upper = _mean(far)
        bounds["attention_far"] = one_where(near_only, lower), one_where(near_only, upper)
    if reduced.hidden is not None:
        count = int(reduced.shape[1])
        compared = _compared(reduced, candidate)
        directions, hidden = reduced.hidden, candidate.hidden[-len(compared) :]
        if len(compared) < reduced.states:
            after = list(compared)
            directions = Directions(
                directions.codes[after], directions.scales[after], directions.error[after]
            )
        states = direction_bounds(directions, hidden)
        bounds["context"] = states[0][-1], states[1][-1]
        if reduced.states == count:
            layers["context"] = at_layers(states[0], compared, count)
            bounds["context_min"] = _least(states)
    if reduced.choices is not None and candidate.choices is not None:
        left = departure(reduced.choices, candidate.choices)
        bounds["departure"] = left, left
    lower_ends = {name: ends[0] for name, ends in bounds.items()}
    upper_ends = {name: ends[1] for name, ends in bounds.items()}
    return Trace(lower_ends, upper_ends, np.asarray(answer, dtype=np.bool_), layers)


def _check(
    reduced: ReducedBaseline, candidate: Outputs, gold: NDArray[np.int64], answer: NDArray[np.bool_]
) -> None:
    steps = len(reduced.gold)
    if not np.array_equal(gold, reduced.gold):
        raise SignalsError("reduced baseline: its continuation is not the probe's; are both of one bundle?")
    if answer.shape != (steps,):
        raise SignalsError(f"answer: expected {steps} steps, got {answer.shape}")
    vocabulary, layers, heads = (int(size) for size in reduced.shape[:3])
    expected: List[Tuple[str, NDArray[np.float32], Tuple[int, ...]]] = []
    if reduced.distribution is not None or reduced.gold_log is not None:
        expected.append(("logits", candidate.logits, (steps, vocabulary)))
    if reduced.attention is not None or reduced.attention_far is not None:
        expected.append(("attention", candidate.attention, (layers, heads, steps, reduced.keys)))
    if reduced.hidden is not None:
        compared = _compared(reduced, candidate)
        shape = (len(compared), *reduced.hidden.codes.shape[1:])
        # Of a candidate's states those of the last layer are read where only these were kept.
        expected.append(("hidden", candidate.hidden[-len(compared) :], shape))
    if reduced.choices is not None and (
        candidate.choices is None or candidate.choices.shape != reduced.choices.shape
    ):
        raise SignalsError(f"choices: expected {steps} tokens chosen along the baseline's greedy text")
    for name, values, shape in expected:
        if values.dtype != np.float32 or values.shape != shape or not values.size:
            raise SignalsError(
                f"{name}: expected {' x '.join(map(str, shape))} of float32 as the baseline's, got "
                f"{' x '.join(map(str, values.shape))} of {values.dtype}"
            )


def _compared(reduced: ReducedBaseline, candidate: Outputs) -> Tuple[int, ...]:
    """After which of the baseline's blocks states are compared. Raises SignalsError for what are no such blocks."""
    count = int(reduced.shape[1])
    if reduced.states < count:
        return (count - 1,)
    compared = tuple(range(count)) if candidate.compared is None else candidate.compared
    if (
        not compared
        or list(compared) != sorted(set(compared))
        or compared[0] < 0
        or compared[-1] != count - 1
    ):
        raise SignalsError(
            f"hidden: expected states after some of {count} blocks and the last, got {compared}"
        )
    return compared


def _mean(layers: Bounds) -> Bounds:
    """Mean over layers, widened by what the sum of that many terms may be off by."""
    off = slack(len(layers[0]) + 4) * np.maximum(np.abs(layers[0]), np.abs(layers[1])).max(axis=0)
    lower, upper = layers[0].mean(axis=0) - off, layers[1].mean(axis=0) + off
    return np.maximum(lower, 0.0), np.minimum(upper, 1.0)


def _least(layers: Bounds) -> Bounds:
    """The least of all layers lies between the least lower and the least upper end."""
    return layers[0].min(axis=0), layers[1].min(axis=0)
