"""Signals on the device: what a candidate's outputs say beside the baseline's, in numpy.

The host computes the same signals in torch; a test holds both together. All arithmetic is float64, so on the
same logits host and device differ by rounding only. Step `t` of a probe predicts its `t`-th continuation token.
"""

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

MAX_UNPACKED_BYTES = 2**31
"""A traces or outputs file that unpacks to more is refused before it is read."""


class SignalsError(ValueError):
    """A traces or outputs file is truncated, too large or not what its format says."""


@dataclass(frozen=True)
class Outputs:
    """A model's outputs at the `T` steps of one probe, float32.

    `logits` is `T x vocabulary`; `attention` is `layers x heads x T x keys`, zero where a key is masked;
    `hidden` is `T x width`, the last hidden states after the final norm.
    """

    logits: NDArray[np.float32]
    attention: NDArray[np.float32]
    hidden: NDArray[np.float32]


@dataclass(frozen=True)
class Trace:
    """The aligned signals of one probe.

    `signals` maps a name to `T` float64 values; `answer` marks the steps that predict the gold answer (a probe
    without one lacks the signal `factual`); `attention_layers` is `layers x T`, from which `attention` is the
    mean, kept so that a verdict can name the layer to blame.
    """

    signals: Dict[str, NDArray[np.float64]]
    answer: NDArray[np.bool_]
    attention_layers: NDArray[np.float64]


def trace_of(
    baseline: Outputs, candidate: Outputs, gold: NDArray[np.int64], answer: NDArray[np.bool_]
) -> Trace:
    """The four signals of one probe from both models' outputs on the same tokens.

    `gold` holds the `T` continuation tokens, `answer` marks the answer steps. A NaN in either output stays a NaN
    in the signal; nothing is skipped.
    """
    baseline_log = log_softmax(baseline.logits)
    candidate_log = log_softmax(candidate.logits)
    attention_layers = cosine(_heads_flattened(baseline.attention), _heads_flattened(candidate.attention))
    signals = {
        "jsd": jensen_shannon_bits(baseline_log, candidate_log),
        "attention": attention_layers.mean(axis=0),
        "context": cosine(baseline.hidden.astype(np.float64), candidate.hidden.astype(np.float64)),
    }
    if answer.any():
        steps = np.arange(len(gold))
        ratio = np.exp(candidate_log[steps, gold] - baseline_log[steps, gold])
        signals["factual"] = np.where(answer, ratio, 1.0)
    return Trace(signals, np.asarray(answer, dtype=np.bool_), attention_layers)


def log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Natural-log probabilities along the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def jensen_shannon_bits(
    first_log: NDArray[np.float64], second_log: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Jensen-Shannon divergence (Lin 1991) of natural-log distributions along the last axis, in bits, 0..1."""
    first, second = np.exp(first_log), np.exp(second_log)
    mixture_log = np.logaddexp(first_log, second_log) - np.log(2.0)
    nats = 0.5 * (first * (first_log - mixture_log) + second * (second_log - mixture_log)).sum(axis=-1)
    # Rounding can leave -1e-17 for equal distributions; a NaN passes through clip unchanged.
    clipped: NDArray[np.float64] = np.clip(nats / np.log(2.0), 0.0, 1.0)
    return clipped


def cosine(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosine along the last axis; 0 where either vector is zero, since a removed part preserves nothing."""
    product = (first * second).sum(axis=-1)
    norms = np.sqrt((first * first).sum(axis=-1) * (second * second).sum(axis=-1))
    result: NDArray[np.float64] = np.where(norms == 0.0, 0.0, product / np.where(norms == 0.0, 1.0, norms))
    return result


def write_traces(path: Path, traces: Sequence[Trace], repeated: Sequence[Trace]) -> None:
    """Write the traces of a run and of its repetition (another batch size and thread count) as one `.npz`."""
    arrays: Dict[str, NDArray[Any]] = {}
    for part, group in (("run", traces), ("repeated", repeated)):
        for index, trace in enumerate(group):
            arrays[f"{part}.{index}.answer"] = trace.answer
            arrays[f"{part}.{index}.attention_layers"] = trace.attention_layers
            for name, values in trace.signals.items():
                arrays[f"{part}.{index}.signals.{name}"] = values
    write_npz(path, arrays)


def read_traces(path: Path) -> Tuple[List[Trace], List[Trace]]:
    """Read what `write_traces` wrote: (traces, repeated). Raises SignalsError on anything that does not fit."""
    arrays = read_npz(path)
    groups: Tuple[List[Trace], List[Trace]] = ([], [])
    for part, group in zip(("run", "repeated"), groups):
        while f"{part}.{len(group)}.answer" in arrays:
            group.append(_trace_from(arrays, f"{part}.{len(group)}."))
    known = sum(len(trace.signals) + 2 for group in groups for trace in group)
    if known != len(arrays):
        raise SignalsError(f"{path.name}: expected {known} arrays of whole traces, got {len(arrays)}")
    return groups


def write_outputs(path: Path, outputs: Sequence[Outputs]) -> None:
    """Write the baseline's outputs, one entry per probe, as one `.npz`."""
    arrays: Dict[str, NDArray[Any]] = {}
    for index, entry in enumerate(outputs):
        arrays[f"{index}.logits"] = entry.logits
        arrays[f"{index}.attention"] = entry.attention
        arrays[f"{index}.hidden"] = entry.hidden
    write_npz(path, arrays)


def read_outputs(path: Path) -> List[Outputs]:
    """Read what `write_outputs` wrote. Raises SignalsError on anything that does not fit."""
    arrays = read_npz(path)
    outputs: List[Outputs] = []
    while f"{len(outputs)}.logits" in arrays:
        index = len(outputs)
        try:
            entry = Outputs(*(arrays[f"{index}.{name}"] for name in ("logits", "attention", "hidden")))
        except KeyError as exc:
            raise SignalsError(f"{path.name}: probe {index} lacks {exc}") from exc
        if entry.logits.ndim != 2 or entry.attention.ndim != 4 or entry.hidden.ndim != 2:
            raise SignalsError(f"{path.name}: probe {index} has outputs of unexpected dimensions")
        outputs.append(entry)
    if len(arrays) != 3 * len(outputs):
        raise SignalsError(f"{path.name}: expected {3 * len(outputs)} arrays, got {len(arrays)}")
    return outputs


def _heads_flattened(attention: NDArray[np.float32]) -> NDArray[np.float64]:
    layers, heads, steps, keys = attention.shape
    return attention.astype(np.float64).transpose(0, 2, 1, 3).reshape(layers, steps, heads * keys)


def _trace_from(arrays: Mapping[str, NDArray[Any]], prefix: str) -> Trace:
    answer = arrays[prefix + "answer"]
    layers = arrays.get(prefix + "attention_layers")
    marker = prefix + "signals."
    signals = {key[len(marker) :]: values for key, values in arrays.items() if key.startswith(marker)}
    if answer.dtype != np.bool_ or answer.ndim != 1:
        raise SignalsError(f"{prefix}answer: expected a row of booleans, got {answer.dtype}{answer.shape}")
    if layers is None or layers.dtype != np.float64 or layers.ndim != 2 or layers.shape[1] != len(answer):
        raise SignalsError(f"{prefix}attention_layers: expected layers x {len(answer)} float64 values")
    for name, values in signals.items():
        if values.dtype != np.float64 or values.shape != answer.shape:
            raise SignalsError(
                f"{prefix}signals.{name}: expected {len(answer)} float64 values, got {values.shape}"
            )
    return Trace(signals, answer, layers)


def write_npz(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays durably; a reader never sees half a file. Equal arrays give equal bytes."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as stream:
        np.savez(stream, **dict(arrays))  # type: ignore[arg-type]
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)


def read_npz(path: Path) -> Dict[str, NDArray[Any]]:
    """Read plain arrays, never objects. Raises SignalsError for a file that is missing, damaged or too large."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
        if unpacked > MAX_UNPACKED_BYTES:
            raise SignalsError(f"{path.name}: unpacks to {unpacked} bytes, the limit is {MAX_UNPACKED_BYTES}")
        with np.load(path, allow_pickle=False) as stored:
            return {key: stored[key] for key in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as exc:
        if isinstance(exc, SignalsError):
            raise
        raise SignalsError(f"{path.name}: expected a whole .npz of plain arrays: {exc}") from exc
