"""Signals: what a candidate's outputs say beside the baseline's. Their definition, in numpy.

The host computes the same in torch, and a test holds both together; the device, which has a reduction of the
baseline only, computes intervals that contain them (`toggle_runtime.intervals`). All arithmetic is float64, so on
the same outputs all three differ by rounding only. Step `t` of a probe predicts its `t`-th continuation token.
"""

from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

from toggle_runtime.arrays import SignalsError as SignalsError

Floats = NDArray[np.float64]

SIGNALS = (
    "jsd",
    "attention",
    "attention_min",
    "attention_far",
    "context",
    "context_min",
    "factual",
    "departure",
)
"""Every signal that a formula may read."""

LAYER_SIGNALS = {
    "attention": "attention",
    "attention_min": "attention",
    "attention_far": "attention_far",
    "context": "context",
    "context_min": "context",
}
"""For a signal that is made of cosines by layer, under which name a trace keeps these."""

FAR = 16
"""A key more than this many tokens before the query is far."""

UNDECIDED = -1
"""A greedy choice among logits that are not finite."""


@dataclass(frozen=True)
class Outputs:
    """A model's outputs at the `T` steps of one probe, float32.

    `logits` is `T x vocabulary`; `attention` is `layers x heads x T x keys`, zero where a key is masked;
    `hidden` is `layers x T x width`, the hidden states after each block, those after the last one normed (or
    `1 x T x width`, the last ones only). `choices` are the `T` tokens of the largest logits while the model reads
    the baseline's greedy text, `UNDECIDED` where they are not finite; the baseline's own choices are that text.
    None where no formula reads `departure`.

    A candidate without some of the baseline's heads or blocks has zeros for their `attention`; `compared` says after
    which of the baseline's blocks each of its `hidden` is, ascending and the last block among them. None: after all.
    """

    logits: NDArray[np.float32]
    attention: NDArray[np.float32]
    hidden: NDArray[np.float32]
    choices: Optional[NDArray[np.int64]] = None
    compared: Optional[Tuple[int, ...]] = None


@dataclass(frozen=True)
class Trace:
    """The aligned signals of one probe as intervals, end to end equal where they are exact.

    `lower` and `upper` map a name to `T` float64 values each; `answer` marks the steps that predict the gold answer.
    A probe without one lacks the signal `factual`, one without a far key `attention_far`. `layers` maps some of
    `LAYER_SIGNALS`' values to `layers x T` lower ends, so that a verdict can name the layer to blame; those of hidden
    states are NaN after a block that the candidate lacks.
    """

    lower: Dict[str, Floats]
    upper: Dict[str, Floats]
    answer: NDArray[np.bool_]
    layers: Dict[str, Floats] = field(default_factory=dict)

    @property
    def is_exact(self) -> bool:
        """Whether both ends of every signal are equal."""
        return self.upper is self.lower or all(
            np.array_equal(values, self.upper[name], equal_nan=True) for name, values in self.lower.items()
        )

    @property
    def signals(self) -> Dict[str, Floats]:
        """The signals of an exact trace. Raises SignalsError for one of intervals."""
        if not self.is_exact:
            raise SignalsError("trace: expected exact signals, these are intervals")
        return self.lower


def exact_trace(signals: Dict[str, Floats], answer: NDArray[np.bool_], layers: Dict[str, Floats]) -> Trace:
    """A trace whose signals are known exactly."""
    return Trace(signals, signals, answer, layers)


def trace_of(
    baseline: Outputs, candidate: Outputs, gold: NDArray[np.int64], answer: NDArray[np.bool_]
) -> Trace:
    """The signals of one probe from both models' whole outputs on the same tokens.

    `gold` holds the `T` continuation tokens, `answer` marks the answer steps; the last step's query is the last
    of the keys. A NaN in either output stays a NaN in the signal; nothing is skipped.
    """
    baseline_log = log_softmax(baseline.logits)
    candidate_log = log_softmax(candidate.logits)
    rows = heads_flattened(baseline.attention), heads_flattened(candidate.attention)
    layers = {"attention": cosine(*rows)}
    signals = {"jsd": jensen_shannon_bits(baseline_log, candidate_log)}
    heads, steps, keys = baseline.attention.shape[1:]
    far = far_keys(keys, steps, FAR)
    if far.any():
        seen = np.tile(far, heads)
        distant = cosine(*(np.where(seen, row, 0.0) for row in rows))
        layers["attention_far"] = one_where(~np.logical_or.reduce(far, axis=1), distant)
        signals["attention_far"] = layers["attention_far"].mean(axis=0)
    signals["attention"] = layers["attention"].mean(axis=0)
    signals["attention_min"] = layers["attention"].min(axis=0)
    count = len(baseline.attention)
    compared = tuple(range(count)) if candidate.compared is None else candidate.compared
    both = baseline.hidden, candidate.hidden
    if len(baseline.hidden) < count:
        both = baseline.hidden[-1:], candidate.hidden[-1:]
    elif len(compared) < count:
        both = baseline.hidden[list(compared)], candidate.hidden
    states = cosine(*(hidden.astype(np.float64) for hidden in both))
    signals["context"] = states[-1]
    if len(baseline.hidden) == count:
        layers["context"] = at_layers(states, compared, count)
        signals["context_min"] = states.min(axis=0)
    if answer.any():
        index = np.arange(len(gold))
        ratio = np.exp(candidate_log[index, gold] - baseline_log[index, gold])
        signals["factual"] = np.where(answer, ratio, 1.0)
    if baseline.choices is not None and candidate.choices is not None:
        signals["departure"] = departure(baseline.choices, candidate.choices)
    return exact_trace(signals, np.asarray(answer, dtype=np.bool_), layers)


def states_compared(blocks: int, remaining: Sequence[int]) -> Tuple[int, ...]:
    """After which of the baseline's blocks the states after each remaining one are compared: their own, and of the last
    one the baseline's last, since both are normed and read by the head."""
    return (*remaining[:-1], blocks - 1)


def heads_of(kv_groups: Sequence[int], heads: int) -> List[int]:
    """Which of the baseline's heads a block's `heads` are, when it has these of the baseline's kv groups."""
    size = heads // len(kv_groups)
    return [group * size + index for group in kv_groups for index in range(size)]


def at_layers(rows: Floats, compared: Sequence[int], layers: int) -> Floats:
    """Rows (each of `T` steps) at their layers, NaN at the others."""
    placed = np.full((layers, rows.shape[1]), np.nan)
    placed[list(compared)] = rows
    return placed


def log_softmax(logits: NDArray[Any]) -> Floats:
    """Natural-log probabilities along the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def jensen_shannon_bits(first_log: Floats, second_log: Floats) -> Floats:
    """Jensen-Shannon divergence (Lin 1991) of natural-log distributions along the last axis, in bits, 0..1."""
    first, second = np.exp(first_log), np.exp(second_log)
    mixture_log = np.logaddexp(first_log, second_log) - np.log(2.0)
    nats = 0.5 * (first * (first_log - mixture_log) + second * (second_log - mixture_log)).sum(axis=-1)
    # Rounding can leave -1e-17 for equal distributions; a NaN passes through clip unchanged.
    clipped: Floats = np.clip(nats / np.log(2.0), 0.0, 1.0)
    return clipped


def cosine(first: Floats, second: Floats) -> Floats:
    """Cosine along the last axis; 0 where either vector is zero, since a removed part preserves nothing."""
    product = (first * second).sum(axis=-1)
    norms = np.sqrt((first * first).sum(axis=-1) * (second * second).sum(axis=-1))
    result: Floats = np.where(norms == 0.0, 0.0, product / np.where(norms == 0.0, 1.0, norms))
    return result


def far_keys(keys: int, steps: int, window: int) -> NDArray[np.bool_]:
    """steps x keys: which keys lie more than `window` tokens before a step's query; the last query is the last key."""
    queries = keys - steps + np.arange(steps)
    far: NDArray[np.bool_] = np.arange(keys) < (queries - window)[:, np.newaxis]
    return far


def one_where(steps: NDArray[np.bool_], layers: Floats) -> Floats:
    """1 at the marked steps, where a signal is 1 by definition; a NaN stays one."""
    result: Floats = np.where(steps & ~np.isnan(layers), 1.0, layers)
    return result


def departure(baseline: NDArray[np.int64], candidate: NDArray[np.int64]) -> Floats:
    """For how many tokens a candidate that runs free stays on the baseline's greedy text, at every step.

    `candidate` chose while reading that very text; up to its first other choice, that is what it would have read
    running free. The number of steps where it never leaves; NaN where its first other choice is `UNDECIDED`, or the
    baseline's text is so before it.
    """
    steps = len(baseline)
    same = (baseline == candidate) & (baseline != UNDECIDED)
    left = steps if same.all() else int(np.argmin(same))
    undecided = left < steps and UNDECIDED in (baseline[left], candidate[left])
    return np.full(steps, np.nan if undecided else float(left))


def heads_flattened(attention: NDArray[np.float32]) -> Floats:
    """layers x heads x T x keys -> layers x T x (heads * keys), float64."""
    layers, heads, steps, keys = attention.shape
    return attention.astype(np.float64).transpose(0, 2, 1, 3).reshape(layers, steps, heads * keys)
