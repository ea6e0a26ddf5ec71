"""A narrowed candidate's attention among the baseline's layers and heads."""

from typing import Sequence

import numpy as np
from numpy.typing import NDArray

from toggle_runtime.records import ModelShape
from toggle_runtime.signals import heads_of


def in_place(shape: ModelShape, rows: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Each remaining block's attention (`batch x own heads x tokens x keys`) at its place in the baseline, and each
    head's: `batch x layers x heads x tokens x keys`, zeros at the others'."""
    if shape.kept is None:
        return np.stack(rows, 1)
    batch, own, tokens, keys = rows[0].shape
    heads = own // len(shape.blocks[0].kv_groups) * shape.kv_heads
    placed = np.zeros((batch, shape.layers, heads, tokens, keys), np.float32)
    for each, values in zip(shape.blocks, rows):
        placed[:, each.block, heads_of(each.kv_groups, values.shape[1])] = values
    return placed
