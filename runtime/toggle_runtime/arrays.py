"""Arrays in files: whole or refused, plain or refused, never larger than a stated size."""

import os
import zipfile
from pathlib import Path
from typing import Any, Dict, Mapping

import numpy as np
from numpy.typing import NDArray

MAX_UNPACKED_BYTES = 2**31
"""A file of arrays that unpacks to more is refused before it is read."""


class SignalsError(ValueError):
    """A file of traces, baselines or canaries, or a model's outputs, are not what they should be."""


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
