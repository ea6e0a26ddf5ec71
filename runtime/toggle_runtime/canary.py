"""The canary: logits of the searched weights, which the graph must reproduce on the device before it is believed.

A signature says who made a bundle, a digest that it arrived whole; neither says that the codes in it are those
that were searched. Computed in full precision (`accuracy_level=0`) a right artifact differs from the canary by
rounding, about 2e-5; one flipped bit of a 4-bit code changes some logit by 5e-4 and more (measured on 400 random
flips in all layers of the demo model).

Kernels that quantise activations as they come are not so exact: a value between two steps is rounded either way, and
everything after it differs. For them a canary is many short sequences, and a `share` of these must agree. Kernels that
multiply in float16 agree as far as that number format goes.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterable

import numpy as np
from numpy.typing import NDArray

from toggle_runtime.arrays import SignalsError, read_npz, write_npz
from toggle_runtime.records import ParitySample

TOLERANCE = 1e-4
"""Largest logit difference that float32 rounding explains; 9e-6 to 2e-5 is what whole models show."""

MAX_LOGITS = 1 << 20
"""Logits that a canary may hold (4 MiB): with more, each position keeps only every `stride`-th id."""

HALF_TOLERANCE = 2.0**-6
"""The same for float16, as a share of the largest logit: its 11 bits, rounded in some layers one after the other, on
processors with float16 arithmetic in each sum too."""

MAX_TOLERANCE = 0.25
"""Whatever the logits are."""

_ROUNDING = "executorch-xnnpack"  # its kernels quantise activations as they come, and multiply in float16

LEAST_SHARE = 0.25
"""The least share of its sequences that a canary may ask for."""


@dataclass(frozen=True)
class Canary:
    """`sequences x tokens` token ids, how many of each are the prompt (the rest is decoded from the cache), and
    the logits at every position: `sequences x tokens x ids`, float32, of the ids that `ids_at` names. `share` of the
    sequences must agree; `is_half` where matrices are multiplied in float16."""

    tokens: NDArray[np.int64]
    prompt_tokens: int
    stride: int
    logits: NDArray[np.float32]
    share: float = 1.0
    is_half: bool = False

    @property
    def tolerance(self) -> float:
        """The largest difference of a logit that rounding explains."""
        return tolerance_of(self.logits, is_half=self.is_half)


def tolerance_of(logits: NDArray[np.float32], *, is_half: bool) -> float:
    """The largest difference to these logits that rounding explains."""
    if not is_half:
        return TOLERANCE
    return min(MAX_TOLERANCE, max(TOLERANCE, HALF_TOLERANCE * float(np.abs(logits).max())))


def widest_tolerance(target: str, formats: Iterable[str]) -> float:
    """The most that a parity pass of a bundle for `target` with layers in these formats may have allowed."""
    return MAX_TOLERANCE if target == _ROUNDING and "fp16" in formats else TOLERANCE


def least_share(target: str) -> float:
    """The least share of a canary's sequences that may be asked for: all, where kernels do not round as they go."""
    return LEAST_SHARE if target == _ROUNDING else 1.0


def require_strict(canary: Canary, target: str, formats: Iterable[str]) -> None:
    """Raises SignalsError for a canary that asks for less than its target's kernels can do."""
    if canary.tolerance > widest_tolerance(target, formats) or canary.share < least_share(target):
        raise SignalsError(
            f"canary: a bundle for {target} may not allow {canary.tolerance:.3g} in {canary.share:.0%} of its texts; "
            "export it again"
        )


def stride_for(positions: int, vocabulary: int) -> int:
    """The least stride with which `positions` fit into `MAX_LOGITS`."""
    return max(1, -(-positions * vocabulary // MAX_LOGITS))


def ids_at(position: int, stride: int, vocabulary: int) -> NDArray[np.int64]:
    """The token ids whose logits a canary keeps at a position: another residue each time, so that all are seen."""
    return np.arange(position % stride, vocabulary, stride, dtype=np.int64)


def compare(canary: Canary, logits: NDArray[np.float32], vocabulary: int) -> ParitySample:
    """Compare with all logits, `sequences x tokens x vocabulary`: the largest difference in those sequences that agree
    best, as many as the canary asks for.

    Raises SignalsError when one is not finite, or when there are more or fewer than that: a graph that leaves out
    part of the vocabulary would agree in the rest.
    """
    if logits.shape != (*canary.tokens.shape, vocabulary):
        raise SignalsError(
            f"parity: expected logits {(*canary.tokens.shape, vocabulary)} from the graph, got {logits.shape}"
        )
    rows = logits.reshape(-1, vocabulary)
    kept = canary.logits.reshape(len(rows), -1)
    largest, compared = np.zeros(len(canary.tokens)), 0
    for position, (row, expected) in enumerate(zip(rows, kept)):
        ids = ids_at(position, canary.stride, vocabulary)
        difference = np.abs(row[ids].astype(np.float64) - expected[: len(ids)])
        if not np.isfinite(difference).all():
            raise SignalsError(f"parity: the graph's logits at position {position} are not finite")
        sequence = position // canary.tokens.shape[1]
        largest[sequence], compared = max(largest[sequence], float(difference.max())), compared + len(ids)
    wanted = math.ceil(canary.share * len(largest))
    return ParitySample(float(np.sort(largest)[wanted - 1]), canary.tolerance, compared, canary.share)


def write_canary(path: Path, canary: Canary) -> None:
    """Write a canary as one `.npz`. Equal canaries give equal bytes."""
    arrays: Dict[str, NDArray[Any]] = {
        "tokens": canary.tokens,
        "prompt_tokens": np.array(canary.prompt_tokens, dtype=np.int64),
        "stride": np.array(canary.stride, dtype=np.int64),
        "logits": canary.logits,
    }
    if canary.share != 1.0 or canary.is_half:  # others keep the bytes that they always had
        arrays["share"] = np.array(canary.share, dtype=np.float64)
        arrays["is_half"] = np.array(canary.is_half)
    write_npz(path, arrays)


def read_canary(path: Path, vocabulary: int) -> Canary:
    """Read what `write_canary` wrote for a model of that vocabulary. Raises SignalsError on anything that does
    not fit: a canary that compares little would let everything pass."""
    arrays = read_npz(path)
    share, is_half = arrays.pop("share", np.array(1.0)), arrays.pop("is_half", np.array(False))
    if is_half.ndim != 0 or is_half.dtype != np.bool_:
        raise SignalsError(f"{path.name}: expected is_half to be a truth value")
    if share.ndim != 0 or share.dtype != np.float64 or not LEAST_SHARE <= float(share) <= 1.0:
        raise SignalsError(f"{path.name}: expected a share of {LEAST_SHARE} to 1, got {share!r:.60}")
    if set(arrays) != {"tokens", "prompt_tokens", "stride", "logits"}:
        raise SignalsError(
            f"{path.name}: expected tokens, prompt_tokens, stride, logits; got {sorted(arrays)}"
        )
    tokens, logits = arrays["tokens"], arrays["logits"]
    prompt_tokens, stride = _scalar(arrays["prompt_tokens"]), _scalar(arrays["stride"])
    if tokens.dtype != np.int64 or tokens.ndim != 2 or not (0 < prompt_tokens < tokens.shape[1]):
        raise SignalsError(f"{path.name}: expected rows of token ids and a prompt shorter than they are")
    expected = (*tokens.shape, -(-vocabulary // max(1, stride)))
    if stride != stride_for(tokens.size, vocabulary) or logits.shape != expected:
        raise SignalsError(
            f"{path.name}: expected logits {expected}, got {logits.shape} with stride {stride}"
        )
    if logits.dtype != np.float32 or not np.isfinite(logits).all():
        raise SignalsError(f"{path.name}: expected finite float32 logits")
    if int(tokens.min()) < 0 or int(tokens.max()) >= vocabulary:
        raise SignalsError(f"{path.name}: expected token ids below {vocabulary}")
    return Canary(tokens, prompt_tokens, stride, logits, float(share), bool(is_half))


def _scalar(array: "NDArray[Any]") -> int:
    return int(array) if array.ndim == 0 and array.dtype == np.int64 else -1
