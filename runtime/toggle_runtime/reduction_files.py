"""Reduced baselines as files. What is read is checked for whatever would make an interval wrong rather than wide."""

import dataclasses
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

from toggle_runtime.arrays import SignalsError, read_npz, write_npz
from toggle_runtime.attention_rows import AttentionRows, check_attention
from toggle_runtime.directions import Directions, check_directions
from toggle_runtime.distributions import Distributions, check_distributions
from toggle_runtime.reduction import ReducedBaseline
from toggle_runtime.signals import UNDECIDED

_PARTS = {
    "distribution": Distributions,
    "attention": AttentionRows,
    "attention_far": AttentionRows,
    "hidden": Directions,
}


def write_reduced(path: Path, baselines: Sequence[ReducedBaseline]) -> None:
    """Write one entry per probe as one `.npz`: arrays `INDEX.FIELD` and `INDEX.PART.FIELD`."""
    arrays: Dict[str, NDArray[Any]] = {}
    for index, baseline in enumerate(baselines):
        for name, value in _fields(baseline):
            nested = _fields(value) if name in _PARTS else [("", value)]
            arrays.update({f"{index}.{name}" + (field and f".{field}"): array for field, array in nested})
    write_npz(path, arrays)


def read_reduced(path: Path) -> List[ReducedBaseline]:
    """Read what `write_reduced` wrote. Raises SignalsError on anything that does not fit."""
    arrays = read_npz(path)
    baselines: List[ReducedBaseline] = []
    while f"{len(baselines)}.shape" in arrays:
        index = len(baselines)
        try:
            entry = _entry(arrays, f"{index}.")
            _check(f"{path.name}: {index}", entry)
        except KeyError as exc:
            raise SignalsError(f"{path.name}: probe {index} lacks {exc}") from exc
        baselines.append(entry)
    known = sum(
        len(_fields(value)) if name in _PARTS else 1 for each in baselines for name, value in _fields(each)
    )
    if known != len(arrays):
        raise SignalsError(
            f"{path.name}: expected {known} arrays of {len(baselines)} probes, got {len(arrays)}"
        )
    return baselines


def _fields(value: Any) -> List[Tuple[str, Any]]:
    """Names and values of a frozen dataclass, without those that are None."""
    pairs = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return [(name, each) for name, each in pairs if each is not None]


def _entry(arrays: Mapping[str, NDArray[Any]], prefix: str) -> ReducedBaseline:
    parts: Dict[str, Any] = {}
    for name, kind in _PARTS.items():
        if any(key.startswith(f"{prefix}{name}.") for key in arrays):
            names = [field.name for field in dataclasses.fields(kind)]
            parts[name] = kind(*(arrays[f"{prefix}{name}.{field}"] for field in names))
    for name in ("gold_log", "choices"):
        parts[name] = arrays.get(prefix + name)
    return ReducedBaseline(arrays[prefix + "shape"], arrays[prefix + "gold"], **parts)


def _check(where: str, entry: ReducedBaseline) -> None:
    shape, gold = entry.shape, entry.gold
    if shape.dtype != np.int64 or shape.shape != (5,) or (shape[:4] < 1).any() or shape[4] < 0:
        raise SignalsError(f"{where}.shape: expected vocabulary, layers, heads, prompt tokens and window")
    if gold.dtype != np.int64 or gold.ndim != 1 or not gold.size or gold.min() < 0 or gold.max() >= shape[0]:
        raise SignalsError(f"{where}.gold: expected tokens below {shape[0]}")
    vocabulary, layers, heads = (int(size) for size in shape[:3])
    steps, entries = len(gold), heads * entry.keys
    if entry.distribution is not None:
        check_distributions(f"{where}.distribution", entry.distribution, steps, vocabulary)
    log = entry.gold_log
    if log is not None and (log.dtype != np.float64 or log.shape != (steps,) or (log > 1e-9).any()):
        raise SignalsError(f"{where}.gold_log: expected {steps} logarithms of probabilities")
    chosen = entry.choices
    if chosen is not None and (
        chosen.dtype != np.int64
        or chosen.shape != (steps,)
        or ((chosen < UNDECIDED) | (chosen >= vocabulary)).any()
    ):
        raise SignalsError(f"{where}.choices: expected {steps} tokens below {vocabulary}, or {UNDECIDED}")
    for name, rows in (("attention", entry.attention), ("attention_far", entry.attention_far)):
        if rows is not None:
            check_attention(f"{where}.{name}", rows, layers, steps, entries)
    if entry.hidden is not None:
        codes = entry.hidden.codes
        if codes.ndim != 3 or len(codes) not in (1, layers) or codes.shape[1] != steps or not codes.shape[2]:
            raise SignalsError(f"{where}.hidden.codes: expected layers x {steps} x width, got {codes.shape}")
        check_directions(f"{where}.hidden", entry.hidden, codes.shape)
