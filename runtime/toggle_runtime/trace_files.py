"""Traces as files: both runs of an artifact in one `.npz`, which the host certifies."""

from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

from toggle_runtime.arrays import SignalsError, read_npz, write_npz
from toggle_runtime.signals import Trace

_PARTS = ("lower", "upper", "layers")


def write_traces(path: Path, traces: Sequence[Trace], repeated: Sequence[Trace]) -> None:
    """Write the traces of a run and of its repetition (another batch size and thread count) as one `.npz`.

    Arrays are `RUN.INDEX.answer` and `RUN.INDEX.{lower,upper,layers}.SIGNAL`, where RUN is `run` or `repeated`.
    """
    arrays: Dict[str, NDArray[Any]] = {}
    for run, group in (("run", traces), ("repeated", repeated)):
        for index, trace in enumerate(group):
            arrays[f"{run}.{index}.answer"] = trace.answer
            for part in _PARTS:
                for name, values in getattr(trace, part).items():
                    arrays[f"{run}.{index}.{part}.{name}"] = values
    write_npz(path, arrays)


def read_traces(path: Path) -> Tuple[List[Trace], List[Trace]]:
    """Read what `write_traces` wrote: (traces, repeated). Raises SignalsError on anything that does not fit."""
    arrays = read_npz(path)
    groups: Tuple[List[Trace], List[Trace]] = ([], [])
    known = 0
    for run, group in zip(("run", "repeated"), groups):
        while f"{run}.{len(group)}.answer" in arrays:
            prefix = f"{run}.{len(group)}."
            own = {key[len(prefix) :]: values for key, values in arrays.items() if key.startswith(prefix)}
            known += len(own)
            group.append(_trace_from(f"{path.name}: {prefix}", own))
    if known != len(arrays):
        raise SignalsError(f"{path.name}: expected {known} arrays of whole traces, got {len(arrays)}")
    return groups


def _trace_from(where: str, arrays: Mapping[str, NDArray[Any]]) -> Trace:
    answer = arrays["answer"]
    if answer.dtype != np.bool_ or answer.ndim != 1:
        raise SignalsError(f"{where}answer: expected a row of booleans, got {answer.dtype}{answer.shape}")
    parts: Dict[str, Dict[str, NDArray[np.float64]]] = {part: {} for part in _PARTS}
    for key, values in arrays.items():
        if key == "answer":
            continue
        part, _, name = key.partition(".")
        dimensions = 2 if part == "layers" else 1
        if part not in parts or values.dtype != np.float64 or values.ndim != dimensions:
            raise SignalsError(f"{where}{key}: expected float64 ends of a signal, got {values.dtype}")
        if values.shape[-1] != len(answer):
            raise SignalsError(f"{where}{key}: expected {len(answer)} float64 values, got {values.shape}")
        parts[part][name] = values
    if parts["lower"].keys() != parts["upper"].keys():
        raise SignalsError(f"{where}: expected a lower and an upper end of each signal")
    for name, values in parts["lower"].items():
        if (values > parts["upper"][name]).any():
            raise SignalsError(f"{where}{name}: expected lower ends that are at most the upper ones")
    return Trace(parts["lower"], parts["upper"], answer, parts["layers"])
