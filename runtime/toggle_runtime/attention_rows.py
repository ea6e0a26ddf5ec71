"""Attention rows of the baseline, reduced: intervals of their cosine with the candidate's rows.

A row x is one step's attention weights in one layer, all heads joined: `heads * keys` values, none negative. Kept
are its largest entries on a set K, as v' with an error e = x_K - v' (16 bits over the row's largest value); its
norm; the norm of e; and the norm of the rest r, x outside K. With the candidate's row c, of which all is known,

    <x, c> = <v', c_K> + <e, c_K> + <r, c_rest>.

|<e, c_K>| is at most |e| |c_K| and <r, c_rest> at most |r| |c_rest| (Cauchy-Schwarz). <r, c_rest> and <x, c> are at
least 0, since softmax gives nothing negative. Divided by |x| |c| these are the ends; their distance is at most
(|r| / |x|) (|c_rest| / |c|) + 2 |e| / |x|: the first is a product of two small numbers, which is why the norm of the
rest is enough. Heads' sums of 1 would not help: they bound what a rest can hold, not where it lies.

The cosine is 0 where either row is zero, which a removed layer's rows are: a removed part preserves nothing. Squares of
float32 values neither overflow nor vanish in float64, so that a row of norm 0 is a row of zeros.
"""

from dataclasses import dataclass
from typing import Any, Optional, Tuple

import numpy as np
from numpy.typing import NDArray

from toggle_runtime.arrays import SignalsError
from toggle_runtime.ragged import check_ids, heaviest, row_of
from toggle_runtime.rounding import all_finite, float32_above, slack

Floats = NDArray[np.float64]

_LEVELS = 2**16 - 1
_MOST_WEIGHT = 1.001
"""Rounding may lift a weight above 1, hardly above this."""


@dataclass(frozen=True)
class AttentionRows:
    """The baseline's attention rows: `layers x T` of them.

    `counts` says how many entries each keeps; `ids` (head * keys + key, ascending within a row) and `codes` hold
    them, layer after layer, step after step. An entry is `code * unit`. `norm` is the row's, float64, NaN where
    the row is not finite; `rest` and `error` are the norms of what was left out and rounded off, from above.
    """

    counts: NDArray[np.uint16]
    ids: NDArray[Any]
    codes: NDArray[np.uint16]
    unit: NDArray[np.float32]
    norm: Floats
    rest: NDArray[np.float32]
    error: NDArray[np.float32]


def reduce_attention(
    attention: NDArray[np.float32], rest_share: float, most: int, keys: Optional[NDArray[np.bool_]] = None
) -> AttentionRows:
    """Keep of each row the fewest entries that leave at most `rest_share` of its norm, at most `most` of them.

    `attention` is layers x heads x T x keys; `keys` (T x keys), where given, says which keys count. Raises
    SignalsError for weights that no softmax gives.
    """
    layers = [_reduce_layer(*_rows(layer, keys), rest_share, most) for layer in attention]
    return AttentionRows(
        np.stack([layer.counts for layer in layers]),
        np.concatenate([layer.ids for layer in layers]),
        np.concatenate([layer.codes for layer in layers]),
        np.stack([layer.unit for layer in layers]),
        np.stack([layer.norm for layer in layers]),
        np.stack([layer.rest for layer in layers]),
        np.stack([layer.error for layer in layers]),
    )


def check_attention(where: str, part: AttentionRows, layers: int, steps: int, entries: int) -> None:
    """Raises SignalsError unless the arrays are the rows of that many layers and steps."""
    if part.counts.dtype != np.uint16 or part.counts.shape != (layers, steps):
        raise SignalsError(f"{where}.counts: expected {layers} x {steps} of uint16")
    check_ids(where, part.counts, part.ids, entries)
    if part.codes.dtype != np.uint16 or part.codes.shape != part.ids.shape:
        raise SignalsError(f"{where}.codes: expected {part.ids.size} of uint16")
    for name, kind in (
        ("unit", np.float32),
        ("norm", np.float64),
        ("rest", np.float32),
        ("error", np.float32),
    ):
        values = getattr(part, name)
        if (
            values.dtype != kind
            or values.shape != (layers, steps)
            or (values < 0).any()
            or np.isinf(values).any()
        ):
            raise SignalsError(
                f"{where}.{name}: expected {layers} x {steps} of {np.dtype(kind)}, none negative"
            )
    if (np.isnan(part.rest) | np.isnan(part.error) | np.isnan(part.unit)).any():
        raise SignalsError(f"{where}: expected a NaN in the norm only")
    values = (part.codes * part.unit.ravel()[row_of(part.counts)].astype(np.float64)) ** 2
    kept = np.sqrt(np.bincount(row_of(part.counts), values, layers * steps)).reshape(layers, steps)
    whole = np.sqrt(kept**2 + part.rest.astype(np.float64) ** 2)
    if (np.abs(whole - part.norm) > part.error + 1e-6 * part.norm).any():
        raise SignalsError(f"{where}: expected the kept entries and the rest to have the norm of the row")


def cosine_bounds(
    part: AttentionRows, attention: NDArray[np.float32], keys: Optional[NDArray[np.bool_]] = None
) -> Tuple[Floats, Floats]:
    """Lower and upper ends of the cosine by layer and step, from the candidate's attention; `keys` as reduced.

    NaN at both ends where either row is not finite; 0 at both where either is zero. Clipped to 0..1, where the
    cosine of rows without negative entries lies. Raises SignalsError for weights that no softmax gives.
    """
    starts = np.concatenate([[0], np.cumsum(part.counts.sum(axis=1, dtype=np.int64))])
    lower, upper = np.empty(part.norm.shape), np.empty(part.norm.shape)
    for index, layer in enumerate(attention):
        stored = slice(starts[index], starts[index + 1])
        of_layer = AttentionRows(
            part.counts[index],
            part.ids[stored],
            part.codes[stored],
            part.unit[index],
            part.norm[index],
            part.rest[index],
            part.error[index],
        )
        lower[index], upper[index] = _layer_bounds(of_layer, *_rows(layer, keys))
    return lower, upper


def _rows(layer: NDArray[np.float32], keys: Optional[NDArray[np.bool_]]) -> Tuple[Floats, NDArray[np.bool_]]:
    """One layer's rows (T x heads * keys), zero where `keys` leaves out or the row is not finite; and which are."""
    heads, steps, count = layer.shape
    rows = layer.astype(np.float64).transpose(1, 0, 2)
    finite: NDArray[np.bool_] = all_finite(rows, axis=(1, 2))
    used = finite[:, np.newaxis] if keys is None else finite[:, np.newaxis] & keys
    rows = np.where(finite[:, np.newaxis, np.newaxis], rows, 0.0)
    if ((rows < 0) | (rows > _MOST_WEIGHT)).any():
        raise SignalsError(
            f"attention: expected weights from 0 to 1, as softmax gives them, got {rows.min():.4g} to {rows.max():.4g}"
        )
    rows = np.where(np.broadcast_to(used, (steps, count))[:, np.newaxis, :], rows, 0.0)
    return rows.reshape(steps, heads * count), finite


def _reduce_layer(rows: Floats, finite: NDArray[np.bool_], rest_share: float, most: int) -> AttentionRows:
    steps, entries = rows.shape
    squares = rows * rows
    total = squares.sum(axis=1)
    counts, ids = heaviest(squares, rest_share**2 * total, most)
    of = row_of(counts)
    unit = float32_above(rows.max(axis=1) / _LEVELS)
    exact, kept = unit.astype(np.float64), rows[of, ids]
    codes = np.rint(kept / np.where(exact > 0, exact, 1.0)[of])
    # 16 bits times float32's 24 fit float64, so that only the difference is rounded.
    errors = np.bincount(of, (kept - codes * exact[of]) ** 2, steps)
    squares[of, ids] = 0.0
    above = 1 + slack(entries + 8)
    return AttentionRows(
        counts,
        ids,
        codes.astype(np.uint16),
        unit,
        np.where(finite, np.sqrt(total), np.nan),
        float32_above(np.sqrt(squares.sum(axis=1)) * above),
        float32_above(np.sqrt(errors) * above),
    )


def _layer_bounds(part: AttentionRows, rows: Floats, finite: NDArray[np.bool_]) -> Tuple[Floats, Floats]:
    steps, entries = rows.shape
    finite = finite & np.isfinite(part.norm)
    of, off = row_of(part.counts), slack(entries + 16)
    kept = rows[of, part.ids]
    product = np.bincount(of, part.codes * part.unit.astype(np.float64)[of] * kept, steps)
    inside = np.bincount(of, kept * kept, steps)
    rows[of, part.ids] = 0.0
    outside = (rows * rows).sum(axis=1)
    rounded = part.error.astype(np.float64) * np.sqrt(inside) * (1 + off)
    beyond = part.rest.astype(np.float64) * np.sqrt(outside) * (1 + off)
    zero = (np.where(finite, part.norm, 0.0) == 0) | (inside + outside == 0)
    norms = np.where(zero | ~finite, 1.0, part.norm * np.sqrt(inside + outside))
    lower = np.maximum(product * (1 - off) - rounded, 0.0) / norms * (1 - 4 * off)
    upper = (product * (1 + off) + rounded + beyond) / norms * (1 + 4 * off)
    ends = [np.where(zero, 0.0, np.clip(end, 0.0, 1.0)) for end in (lower, upper)]
    return np.where(finite, ends[0], np.nan), np.where(finite, ends[1], np.nan)
