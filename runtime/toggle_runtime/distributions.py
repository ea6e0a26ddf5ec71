"""Next-token distributions of the baseline, reduced: intervals of `jsd` and of `factual`.

Kept of each distribution P are its largest probabilities and the mass `a` of all others, its tail. The device has
all of the candidate's Q; let `b` be its mass on the same tail.

Let `h(p, q) = (p log2(2p / (p + q)) + q log2(2q / (p + q))) / 2`, so that JSD(P, Q) is the sum of h over all ids.
By the chain rule the tail's part of that sum is h(a, b) plus (a + b) / 2 times the divergence of two distributions
within the tail, weighted a : b. That divergence is at least 0 and at most the entropy of the weights,
H2(a / (a + b)). So the tail's part lies between h(a, b) and

    h(a, b) + (a + b) / 2 * H2(a / (a + b)) = (a + b) / 2,

where the equality is h written out. The lower end is what coarse-graining the tail to one id gives; the upper end is
reached when both tails have no id in common. With a and b at most 1e-3 the width is at most 1e-3 bits.

Rounding: p is kept as float32, known to 2**-23 of itself, q to some 1e-11 of itself. h is convex, 0 at p = q, and
grows as p and q part. Over a box of p and q its least value is therefore 0 where both ranges meet, else the value
at the nearest corner; its greatest is at one of the two far corners.
"""

from dataclasses import dataclass
from typing import Any, Tuple

import numpy as np
from numpy.typing import NDArray

from toggle_runtime.arrays import SignalsError
from toggle_runtime.ragged import check_ids, heaviest, row_of
from toggle_runtime.rounding import EXPONENTIAL_OPERATIONS, TINY, all_finite, slack

Floats = NDArray[np.float64]

_STORED = 2.0**-23
_TERM_OPERATIONS = 128
"""What the sum of all h is off by beside its summation: each h by 64 * u * (p + q), and p + q sum to 2."""


@dataclass(frozen=True)
class Distributions:
    """The baseline's distributions at `T` steps.

    `counts` says how many ids each step keeps; `ids` and `probabilities` (float32) hold them step after step, ids
    ascending; `tail` is the mass of all others, float64, NaN where the baseline's logits are not finite.
    """

    counts: NDArray[np.uint16]
    ids: NDArray[Any]
    probabilities: NDArray[np.float32]
    tail: Floats


def reduce_distributions(logits: NDArray[np.float32], tail_mass: float, most: int) -> Distributions:
    """Keep the fewest ids that leave at most `tail_mass`, and never more than `most`. `logits` is T x vocabulary."""
    finite = all_finite(logits, axis=1)
    chances, _ = _softmax(_finite_rows(logits, finite))
    # Without finite logits there is nothing to keep: any tail is small enough, and the NaN says the rest.
    counts, ids = heaviest(chances, np.where(finite, tail_mass, np.inf), most)
    steps = row_of(counts)
    kept = chances[steps, ids].astype(np.float32)
    chances[steps, ids] = 0.0
    return Distributions(counts, ids, kept, np.where(finite, chances.sum(axis=1), np.nan))


def check_distributions(where: str, part: Distributions, steps: int, vocabulary: int) -> None:
    """Raises SignalsError unless the arrays are the distributions of that many steps."""
    if part.counts.dtype != np.uint16 or part.counts.shape != (steps,):
        raise SignalsError(f"{where}.counts: expected {steps} of uint16")
    check_ids(where, part.counts, part.ids, vocabulary)
    chances, tail = part.probabilities, part.tail
    if (
        chances.dtype != np.float32
        or chances.shape != part.ids.shape
        or not ((chances > 0) & (chances <= 1)).all()
    ):
        raise SignalsError(
            f"{where}.probabilities: expected {len(part.ids)} of float32, above 0 and at most 1"
        )
    if tail.dtype != np.float64 or tail.shape != (steps,) or ((tail < 0) | (tail > 1 + 1e-9)).any():
        raise SignalsError(f"{where}.tail: expected {steps} of float64, from 0 to 1 or NaN")
    mass = np.bincount(row_of(part.counts), chances, steps) + tail
    if (np.abs(mass - 1) > 1e-6).any():
        raise SignalsError(f"{where}: expected each step's probabilities and its tail to sum to 1")


def divergence_bounds(part: Distributions, logits: NDArray[np.float32]) -> Tuple[Floats, Floats]:
    """Lower and upper ends of `jsd` in bits at each step, from the candidate's logits (T x vocabulary).

    NaN at both ends where either model's logits are not finite. The proof is in the module's text. Clipped to
    0..1, where every Jensen-Shannon divergence lies (Lin 1991).
    """
    finite = all_finite(logits, axis=1) & np.isfinite(part.tail)
    chances, _ = _softmax(_finite_rows(logits, finite))
    steps = row_of(part.counts)
    kept = chances[steps, part.ids]
    chances[steps, part.ids] = 0.0
    off = slack(logits.shape[1] + EXPONENTIAL_OPERATIONS)
    ours = _box(kept, off)
    theirs = _box(part.probabilities.astype(np.float64), _STORED)
    tails = _box(np.where(finite, part.tail, 0.0), off), _box(chances.sum(axis=1), off)
    total = len(part.tail)
    lower = np.bincount(steps, _least(theirs, ours), total) + _least(*tails)
    upper = np.bincount(steps, _greatest(theirs, ours), total) + (tails[0][1] + tails[1][1]) / 2
    margin = slack(int(part.counts.max(initial=0)) + _TERM_OPERATIONS)
    lower, upper = np.clip(lower - margin, 0.0, 1.0), np.clip(upper + margin, 0.0, 1.0)
    return np.where(finite, lower, np.nan), np.where(finite, upper, np.nan)


def gold_log_probabilities(logits: NDArray[np.float32], gold: NDArray[np.int64]) -> Floats:
    """Natural-log probability of each step's gold token, float64; NaN where the step's logits are not finite."""
    finite = all_finite(logits, axis=1)
    rows = _finite_rows(logits, finite)
    steps = np.arange(len(gold))
    _, total = _softmax(rows)
    shifted = rows[steps, gold].astype(np.float64) - rows.max(axis=1)
    return np.where(finite, shifted - np.log(total), np.nan)


def ratio_bounds(
    gold_log: Floats, logits: NDArray[np.float32], gold: NDArray[np.int64], answer: NDArray[np.bool_]
) -> Tuple[Floats, Floats]:
    """Lower and upper ends of `factual`; off the answer steps both are 1 by definition.

    `gold_log` is what `gold_log_probabilities` made of the baseline. Only float error is between the ends: a
    logarithm is off by `u` times what its exponential counts, the vocabulary's sum and twice its own size. NaN
    where either model's logits are not finite, or the ratio is beyond float64.
    """
    ours = gold_log_probabilities(logits, gold)
    with np.errstate(over="ignore", invalid="ignore"):
        operations = logits.shape[1] + EXPONENTIAL_OPERATIONS
        off = 2 * slack(operations) + 4 * slack(1) * (np.abs(ours) + np.abs(gold_log))
        lower = np.exp(ours - gold_log - off) * (1 - slack(16)) - TINY
        upper = np.exp(ours - gold_log + off) * (1 + slack(16)) + TINY
        finite = np.isfinite(ours) & np.isfinite(gold_log)
        known = finite & (np.isfinite(upper) | ~answer)
    ends = [np.where(answer, end, 1.0) for end in (np.maximum(lower, 0.0), upper)]
    return np.where(known, ends[0], np.nan), np.where(known, ends[1], np.nan)


def _finite_rows(logits: NDArray[np.float32], finite: NDArray[np.bool_]) -> NDArray[np.float32]:
    rows: NDArray[np.float32] = np.where(finite[:, np.newaxis], logits, np.float32(0.0))
    return rows


def _softmax(logits: NDArray[np.float32]) -> Tuple[Floats, Floats]:
    """Probabilities along the last axis, and the sum of `exp(logit - largest logit)`."""
    chances = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    total = chances.sum(axis=-1)
    chances /= total[..., np.newaxis]
    return chances, total


def _box(values: Floats, relative: float) -> Tuple[Floats, Floats]:
    return np.maximum(values * (1 - relative) - TINY, 0.0), values * (1 + relative) + TINY


def _part(p: Floats, q: Floats) -> Floats:
    """h of the module's text, 0 where both are 0; off by at most 64 * u * (p + q)."""
    middle = (p + q) / 2
    ratios = [x / np.where(middle > 0, middle, 1.0) for x in (p, q)]
    terms = [x * np.log2(np.where(ratio > 0, ratio, 1.0)) for x, ratio in zip((p, q), ratios)]
    result: Floats = (terms[0] + terms[1]) / 2
    return result


def _least(first: Tuple[Floats, Floats], second: Tuple[Floats, Floats]) -> Floats:
    apart = (first[0] > second[1]) | (second[0] > first[1])
    p = np.where(first[0] > second[1], first[0], first[1])
    q = np.where(first[0] > second[1], second[1], second[0])
    return np.where(apart, np.maximum(_part(p, q), 0.0), 0.0)


def _greatest(first: Tuple[Floats, Floats], second: Tuple[Floats, Floats]) -> Floats:
    result: Floats = np.maximum(_part(first[0], second[1]), _part(first[1], second[0]))
    return result
