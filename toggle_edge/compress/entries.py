"""Compressed layers on disk: each computed once, whoever asks first, and whole or not there.

An entry is a safetensors file, named by the digest of everything that it depends on. Its header repeats that, and has
the digest of its tensors, so that a file that rotted is computed again and never used. Processes that fill one folder
at once wait for each other entry by entry; the kernel lets go of what a killed one held.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from toggle_edge.cache import locked
from toggle_edge.compress.quantise import CompressedLayer
from toggle_edge.config import Format

VERSION = 1
"""Of what an entry's bytes mean: raised when a quantiser computes something else under the same name."""

Seal = tuple[str, int, int, int]
"""By which a file is known to be the one that was verified before: key, inode, time of the last change, size."""

_TENSORS = tuple(field.name for field in dataclasses.fields(CompressedLayer) if "Tensor" in str(field.type))


@dataclass(frozen=True, slots=True)
class EntryKey:
    """All that a compressed layer depends on. `weights` is the SHA-256 of the layer's own weights, so that models which
    share a layer share its entries; `calibration` is a digest, empty for a quantiser and a pruner without. `pruner` is
    empty at sparsity 0."""

    weights: str
    format: str
    quantiser: str = "rtn"
    calibration: str = ""
    sparsity: float = 0.0
    pruner: str = ""
    narrow_scales: bool = False

    @property
    def text(self) -> str:
        parts = dataclasses.asdict(self)
        if not self.narrow_scales:
            # Entries keep the names that they had before there was this.
            del parts["narrow_scales"]
        return json.dumps({"version": VERSION, **parts}, sort_keys=True)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


def weights_digest(weight: torch.Tensor) -> str:
    """SHA-256 of a matrix: its size and its float32 values, row after row."""
    digest = hashlib.sha256(str(tuple(weight.shape)).encode())
    at_once = max(1, 2**20 // max(1, weight.shape[1]))
    for start in range(0, len(weight), at_once):
        digest.update(weight[start : start + at_once].float().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def entry(
    folder: Path, key: EntryKey, make: Callable[[], CompressedLayer], verified: set[Seal] | None = None
) -> CompressedLayer:
    """The entry for `key` in `folder`, made and kept if it is not there.

    A file whose seal is in `verified` is not verified again, and every file that was gets into it.

    Of several processes that ask at once one makes it. Where the folder cannot be written (a full disk, no permission)
    it is made and not kept: what can be made again is no reason to stop.
    """
    path = folder / key.digest[:2] / f"{key.digest}.safetensors"
    found = _read(path, key, verified)
    if found is not None:
        return found
    with ExitStack() as held:
        with suppress(OSError):
            held.enter_context(locked(path.parent / "lock"))
            found = _read(path, key, verified)  # made while we waited
        if found is None:
            found = make()
            _write(path, key, found)
    return found


def _read(path: Path, key: EntryKey, verified: set[Seal] | None) -> CompressedLayer | None:
    """The entry, None where there is none, or it is damaged or another one's."""
    try:
        status = path.stat()
        seal = (key.digest, status.st_ino, status.st_mtime_ns, status.st_size)
        with safe_open(path, framework="pt") as stored:
            header = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  (not a mapping)
    except (OSError, SafetensorError):
        return None
    if header.get("key") != key.text:
        return None
    if verified is None or seal not in verified:
        if header.get("sha256") != _tensors_digest(tensors):
            return None
        if verified is not None:
            verified.add(seal)
    fields: dict[str, Any] = {name: tensors.get(name) for name in _TENSORS}
    return CompressedLayer(Format.parse(key.format), int(header["rows"]), int(header["columns"]), **fields)


def _write(path: Path, key: EntryKey, layer: CompressedLayer) -> None:
    fields = {name: getattr(layer, name) for name in _TENSORS}
    tensors = {name: value.contiguous() for name, value in fields.items() if value is not None}
    header = {
        "key": key.text,
        "sha256": _tensors_digest(tensors),
        "rows": str(layer.rows),
        "columns": str(layer.columns),
    }
    # One name for all attempts: what a killed process left is overwritten by the next, who holds the lock.
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as stream:
            stream.write(save(tensors, metadata=header))
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except OSError:
        with suppress(OSError):
            partial.unlink()


def _tensors_digest(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name]
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        whole: Any = values.contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(whole)  # hashed where it lies, not copied
    return digest.hexdigest()
