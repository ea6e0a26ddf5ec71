"""Rows of which only the heaviest entries are kept: how many per row, and their ids, ascending within a row."""

from typing import Any, Tuple

import numpy as np
from numpy.typing import NDArray

from toggle_runtime.arrays import SignalsError

MOST_PER_ROW = 2**16 - 1
"""Counts are stored in two bytes."""


def heaviest(
    weights: NDArray[np.float64], spare: NDArray[np.float64], most: int
) -> Tuple[NDArray[np.uint16], NDArray[Any]]:
    """Per row of `weights` (rows x entries, >= 0) the fewest entries that leave at most `spare` in sum.

    At most `most` of them. Returns the counts and all ids, row after row, in the smallest type that holds them.
    """
    rows, entries = weights.shape
    width = min(most, entries)
    # Of the negated weights: partitioning from the light end takes ten times as long where many are 0.
    ids = np.argpartition(-weights, width - 1, axis=1)[:, :width]
    found = np.take_along_axis(weights, ids, axis=1)
    others = weights.copy()
    np.put_along_axis(others, ids, 0.0, axis=1)
    order = np.argsort(-found, axis=1, kind="stable")
    ids, found = np.take_along_axis(ids, order, axis=1), np.take_along_axis(found, order, axis=1)
    # What is left when the first j are kept, for j = 0 to width; summed from the small end.
    left = np.zeros((rows, width + 1))
    left[:, :width] = np.cumsum(found[:, ::-1], axis=1)[:, ::-1]
    left += others.sum(axis=1, keepdims=True)
    enough = left <= spare[:, np.newaxis]
    counts = np.where(enough.any(axis=1), enough.argmax(axis=1), width)
    kept = np.arange(width) < counts[:, np.newaxis]
    ids = np.sort(np.where(kept, ids, entries), axis=1)
    return counts.astype(np.uint16), ids[kept].astype(id_type(entries))


def id_type(entries: int) -> Any:
    """The smallest type for ids below `entries`."""
    return np.dtype(np.uint16 if entries <= 2**16 else np.uint32)


def row_of(counts: NDArray[np.uint16]) -> NDArray[np.int64]:
    """The row that each stored entry belongs to."""
    rows: NDArray[np.int64] = np.repeat(np.arange(counts.size), counts.ravel())
    return rows


def check_ids(where: str, counts: NDArray[np.uint16], ids: NDArray[Any], entries: int) -> None:
    """Raises SignalsError unless every row's ids ascend strictly and lie below `entries`.

    An id that came twice would count its weight twice, and the interval would be wrong, not wide.
    """
    if ids.dtype != id_type(entries) or ids.shape != (int(counts.sum()),):
        raise SignalsError(
            f"{where}.ids: expected {int(counts.sum())} of {id_type(entries)}, got {ids.shape} of {ids.dtype}"
        )
    # One key per entry that ascends over all rows exactly when ids ascend within each.
    keys = row_of(counts) * np.int64(entries) + ids
    if ids.size and (int(ids.max()) >= entries or (np.diff(keys) <= 0).any()):
        raise SignalsError(f"{where}.ids: expected ids below {entries}, ascending within each row")
