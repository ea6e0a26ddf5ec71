"""Baseline outputs, reduced to what a device needs for sound intervals: what is kept, and how large it is.

The reductions of single signals, with their proofs, are in `distributions`, `attention_rows` and `directions`;
`intervals` puts a candidate's outputs beside them, `reduction_files` writes and reads them.
"""

import dataclasses
from dataclasses import dataclass
from typing import Collection, Dict, Optional, Tuple

import numpy as np
from numpy.typing import NDArray

from toggle_runtime.attention_rows import AttentionRows, reduce_attention
from toggle_runtime.directions import BLOCK, Directions, reduce_directions
from toggle_runtime.distributions import (
    Distributions,
    gold_log_probabilities,
    reduce_distributions,
)
from toggle_runtime.ragged import MOST_PER_ROW, id_type
from toggle_runtime.signals import FAR, SIGNALS, Outputs, SignalsError, far_keys

_ATTENTION = frozenset({"attention", "attention_min"})
_HIDDEN = frozenset({"context", "context_min"})
_ARRAY_OVERHEAD = 320
"""Bytes of one array in a `.npz` beside its values: two zip entries with its name, and its own header."""


@dataclass(frozen=True)
class Limits:
    """How much of a baseline is kept.

    A distribution keeps ids until at most `tail_mass` is left, an attention row entries until at most `rest_share` of
    its norm is, but never more than `distribution_ids` and `attention_ids`. Keys more than `window` tokens before
    the query are far. A probe that could take more than `probe_bytes` is refused.
    """

    tail_mass: float = 1e-3
    distribution_ids: int = 1024
    rest_share: float = 0.05
    attention_ids: int = 512
    window: int = FAR
    probe_bytes: int = 8 * 2**20


@dataclass(frozen=True)
class ReducedBaseline:
    """One probe's reduced baseline; a part is None where no signal asked for it.

    `shape` is (vocabulary, layers, heads, prompt tokens, window); `gold` are the `T` continuation tokens;
    `gold_log` the natural-log probability of each. `attention_far` has every key that is not far at zero.
    `hidden` is `layers x T x width` for `context_min`, `1 x T x width`, the last states only, for `context` alone.
    `choices` are the `T` tokens of the baseline's greedy text.
    """

    shape: NDArray[np.int64]
    gold: NDArray[np.int64]
    distribution: Optional[Distributions] = None
    gold_log: Optional[NDArray[np.float64]] = None
    attention: Optional[AttentionRows] = None
    attention_far: Optional[AttentionRows] = None
    hidden: Optional[Directions] = None
    choices: Optional[NDArray[np.int64]] = None

    @property
    def keys(self) -> int:
        """Keys that the last step sees: every token but the last."""
        return int(self.shape[3]) + len(self.gold) - 1

    @property
    def states(self) -> int:
        """Of how many layers, from the last one, the hidden states are kept."""
        return 0 if self.hidden is None else len(self.hidden.codes)

    @property
    def far_keys(self) -> NDArray[np.bool_]:
        """T x keys: which keys lie more than the window before the step's query."""
        return far_keys(self.keys, len(self.gold), int(self.shape[4]))

    @property
    def far_steps(self) -> NDArray[np.bool_]:
        """T: which steps have a far key."""
        steps: NDArray[np.bool_] = np.logical_or.reduce(self.far_keys, axis=1)
        return steps


def reduce_baseline(
    outputs: Outputs,
    gold: NDArray[np.int64],
    prompt_tokens: int,
    signals: Collection[str],
    limits: Limits = Limits(),
) -> ReducedBaseline:
    """Keep of a probe's baseline outputs what the named signals need.

    `outputs.hidden` needs the states of all layers for `context_min` only, `outputs.choices` are needed for `departure`
    only. Outputs that are not finite are kept as NaN and make every interval of their steps NaN. Keys beyond
    `prompt_tokens + T - 1` must be zero, as padding is.

    Raises SignalsError for an unknown signal, outputs that do not fit each other, weights that no softmax gives,
    and a probe that could take more than `limits.probe_bytes`.
    """
    _check_signals(signals)
    _check_limits(limits)
    steps, keys = len(gold), prompt_tokens + len(gold) - 1
    vocabulary, layers, heads, width = _dimensions(outputs, steps, keys, signals)
    if not steps or prompt_tokens < 1 or gold.min() < 0 or gold.max() >= vocabulary:
        raise SignalsError(f"gold: expected tokens below {vocabulary} after a prompt of at least one")
    total = reduced_bytes(vocabulary, layers, heads, keys, steps, width, signals, limits)
    if total > limits.probe_bytes:
        parts = _part_bytes(vocabulary, layers, heads, keys, steps, width, signals, limits)
        largest = max(parts, key=lambda name: parts[name])
        raise SignalsError(
            f"reduced baseline: a probe of {steps} steps may take {total} bytes, {parts[largest]} of them for "
            f"{largest}; the cap is probe_bytes = {limits.probe_bytes}. Use fewer steps or signals "
            "(context_min is the largest), lower attention_ids or distribution_ids, or raise the cap"
        )
    shape = np.array([vocabulary, layers, heads, prompt_tokens, limits.window], dtype=np.int64)
    bare = ReducedBaseline(shape, np.asarray(gold, dtype=np.int64))
    attention = outputs.attention[..., :keys]
    share, most = limits.rest_share, limits.attention_ids
    hidden = outputs.hidden if "context_min" in signals else outputs.hidden[-1:]
    return dataclasses.replace(
        bare,
        distribution=reduce_distributions(outputs.logits, limits.tail_mass, limits.distribution_ids)
        if "jsd" in signals
        else None,
        gold_log=gold_log_probabilities(outputs.logits, bare.gold) if "factual" in signals else None,
        attention=reduce_attention(attention, share, most) if _ATTENTION & set(signals) else None,
        attention_far=reduce_attention(attention, share, most, bare.far_keys)
        if "attention_far" in signals
        else None,
        hidden=reduce_directions(hidden) if _HIDDEN & set(signals) else None,
        choices=outputs.choices if "departure" in signals else None,
    )


def reduced_bytes(
    vocabulary: int,
    layers: int,
    heads: int,
    keys: int,
    steps: int,
    width: int,
    signals: Collection[str],
    limits: Limits = Limits(),
) -> int:
    """The most bytes that one probe can take in the file, known before its baseline is."""
    parts = _part_bytes(vocabulary, layers, heads, keys, steps, width, signals, limits)
    return sum(parts.values())


def _check_signals(signals: Collection[str]) -> None:
    unknown = sorted(set(signals) - set(SIGNALS))
    if unknown or not signals:
        raise SignalsError(
            f"signals: expected some of {', '.join(SIGNALS)}, got {', '.join(unknown) or 'none'}"
        )


def _check_limits(limits: Limits) -> None:
    counts = (limits.distribution_ids, limits.attention_ids)
    if not all(1 <= count <= MOST_PER_ROW for count in counts) or limits.window < 0:
        raise SignalsError(
            f"limits: expected 1 to {MOST_PER_ROW} ids and a window of 0 or more, got {limits}"
        )
    if not (0 <= limits.tail_mass <= 1 and 0 <= limits.rest_share <= 1):
        raise SignalsError(f"limits: expected tail_mass and rest_share from 0 to 1, got {limits}")


def _dimensions(
    outputs: Outputs, steps: int, keys: int, signals: Collection[str]
) -> Tuple[int, int, int, int]:
    logits, attention, hidden = outputs.logits, outputs.attention, outputs.hidden
    for name, values in (("logits", logits), ("attention", attention), ("hidden", hidden)):
        if values.dtype != np.float32:
            raise SignalsError(f"{name}: expected float32, got {values.dtype}")
    if logits.ndim != 2 or len(logits) != steps or logits.shape[1] < 1:
        raise SignalsError(f"logits: expected {steps} steps x vocabulary, got {logits.shape}")
    if (
        attention.ndim != 4
        or attention.shape[2] != steps
        or attention.shape[3] < keys
        or 0 in attention.shape
    ):
        raise SignalsError(
            f"attention: expected layers x heads x {steps} steps x at least {keys} keys, got {attention.shape}"
        )
    if (attention[..., keys:] != 0).any():
        raise SignalsError(f"attention: expected zeros beyond the probe's {keys} keys")
    if hidden.ndim != 3 or len(hidden) not in (1, len(attention)) or hidden.shape[1] != steps:
        raise SignalsError(f"hidden: expected layers x {steps} steps x width, got {hidden.shape}")
    if "context_min" in signals and len(hidden) != len(attention):
        raise SignalsError("hidden: context_min needs the states of all layers, got the last only")
    if "departure" in signals and (outputs.choices is None or outputs.choices.shape != (steps,)):
        raise SignalsError(f"choices: departure needs the baseline's greedy text of {steps} tokens")
    return logits.shape[1], attention.shape[0], attention.shape[1], hidden.shape[2]


def _part_bytes(
    vocabulary: int,
    layers: int,
    heads: int,
    keys: int,
    steps: int,
    width: int,
    signals: Collection[str],
    limits: Limits,
) -> Dict[str, int]:
    _check_signals(signals)
    entries, wanted = heads * keys, set(signals)
    kept = min(limits.distribution_ids, vocabulary)
    distribution = steps * (2 + 8 + kept * (id_type(vocabulary).itemsize + 4)) + 4 * _ARRAY_OVERHEAD
    row = 2 + 4 + 8 + 4 + 4 + min(limits.attention_ids, entries) * (id_type(entries).itemsize + 2)
    attention = layers * steps * row + 7 * _ARRAY_OVERHEAD
    hidden = (layers if "context_min" in wanted else 1) * steps * (
        width + 4 * -(-width // BLOCK) + 4
    ) + 3 * _ARRAY_OVERHEAD
    return {
        "the tokens": 8 * (5 + steps) + 2 * _ARRAY_OVERHEAD,
        "jsd": distribution if "jsd" in wanted else 0,
        "factual": 8 * steps + _ARRAY_OVERHEAD if "factual" in wanted else 0,
        "attention": attention if _ATTENTION & wanted else 0,
        "attention_far": attention if "attention_far" in wanted else 0,
        "hidden states": hidden if _HIDDEN & wanted else 0,
        "departure": 8 * steps + _ARRAY_OVERHEAD if "departure" in wanted else 0,
    }
