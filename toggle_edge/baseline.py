"""The baseline's outputs, computed once for a model and its probes and kept on disk for every later command.

Logits of a large vocabulary do not fit into memory for all probes at once. So each probe's outputs go to a file of
their own as soon as they are computed, and are mapped from there: what is not looked at takes no memory, and what was
looked at can be dropped.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from safetensors.numpy import save
from toggle_runtime.signals import Outputs

from toggle_edge.cache import INDEX, PARTIAL, baselines_bytes, discard, locked, trim
from toggle_edge.model.load import LanguageModel
from toggle_edge.model.placement import device_of
from toggle_edge.probes import Probe
from toggle_edge.reading import batch_size
from toggle_edge.signals import each_output

VERSION = 1
"""Of what the files mean: raised when the same model and probes give other outputs."""

_DTYPES = {"F32": np.float32, "I64": np.int64}


def stored_baseline(
    model: LanguageModel, probes: Sequence[Probe], folder: Path | None, *, free_running: bool = False
) -> list[Outputs]:
    """The baseline's outputs as `baseline_outputs` gives them, from `folder` where they are there and whole.

    Otherwise they are computed, by one of several processes that ask at once, and kept. Where the folder cannot be
    written they are held in memory, as with `folder` None.
    """
    most = baselines_bytes()
    if folder is None or most == 0 or not probes:
        return list(each_output(model.module, probes, free_running=free_running))
    key = _key(model, probes, free_running)
    place = folder / key[:2] / key
    found = _read(place)
    if found is None:
        with ExitStack() as held:
            with suppress(OSError):
                held.enter_context(locked(place.parent / "lock"))
                found = _read(place)  # made while we waited
            if found is None:
                found = _made(place, each_output(model.module, probes, free_running=free_running))
        trim(folder, most)
    return found


def _key(model: LanguageModel, probes: Sequence[Probe], free_running: bool) -> str:
    """SHA-256 of everything that the outputs depend on, the size of a batch included: others round otherwise."""
    parameter = next(model.module.parameters())
    content = {
        "version": [VERSION, torch.__version__, transformers.__version__],
        "model": model.digest,
        "probes": [[probe.tokens, probe.prompt_tokens] for probe in probes],
        "free_running": free_running,
        "computed": [str(parameter.dtype), device_of(model.module).type, batch_size(model.module, probes)],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read(place: Path) -> list[Outputs] | None:
    """The entry; None where there is none, or a file of it is not the one that was written."""
    try:
        index = json.loads((place / INDEX).read_text(encoding="utf-8"))
        outputs = [_mapped(place / name, size, digest) for name, size, digest in index["files"]]
        os.utime(place / INDEX)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return outputs


def _mapped(path: Path, size: int, digest: str) -> Outputs:
    """One probe's outputs. Raises ValueError when the file is another than was written."""
    with path.open("rb") as stream:
        if os.fstat(stream.fileno()).st_size != size:
            raise ValueError(f"{path}: expected {size} bytes")
        # Private: whoever writes to an array, by mistake, writes to a copy.
        content = mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_COPY)
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(f"{path}: its bytes are not those that were written")
    # What was just read for the digest need not stay.
    content.madvise(mmap.MADV_DONTNEED)
    arrays = _arrays(content)
    return Outputs(arrays["logits"], arrays["attention"], arrays["hidden"], arrays.get("choices"))


def _arrays(content: mmap.mmap) -> dict[str, NDArray[Any]]:
    """The arrays of a mapped safetensors file, without reading them."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    whole = np.frombuffer(content, dtype=np.uint8)
    return {
        name: whole[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]]
        .view(_DTYPES[entry["dtype"]])
        .reshape(entry["shape"])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _made(place: Path, outputs: Iterator[Outputs]) -> list[Outputs]:
    """Write outputs as they come; whole under their name, or not there. What cannot be written stays in memory."""
    partial = place.with_name(place.name + PARTIAL)
    files: list[tuple[str, int, str]] | None = []
    found = []
    for index, each in enumerate(outputs):
        name = f"{index:05}.safetensors"
        if files is not None:
            try:
                if index == 0:
                    shutil.rmtree(partial, ignore_errors=True)  # left by a killed process
                    partial.mkdir(parents=True)
                files.append((name, *_written(partial / name, each)))
                each = _mapped(partial / name, *files[-1][1:])
            except OSError:
                files = None
        found.append(each)
    try:
        if files is not None:
            text = json.dumps({"files": files})
            (partial / INDEX).write_text(text, encoding="utf-8")
            discard(place)  # a damaged one
            partial.rename(place)
    except OSError:
        files = None
    if files is None:
        shutil.rmtree(partial, ignore_errors=True)
    return found


def _written(path: Path, outputs: Outputs) -> tuple[int, str]:
    arrays: dict[str, NDArray[Any]] = {"logits": outputs.logits, "attention": outputs.attention}
    arrays["hidden"] = outputs.hidden
    if outputs.choices is not None:
        arrays["choices"] = outputs.choices
    content = save({name: np.ascontiguousarray(values) for name, values in arrays.items()})
    # Not made durable: after a crash the digest tells.
    path.write_bytes(content)
    return len(content), hashlib.sha256(content).hexdigest()
