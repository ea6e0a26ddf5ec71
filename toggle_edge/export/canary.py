"""The canary of a candidate: what its searched weights compute in torch, for the device to reproduce."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from toggle_runtime.canary import Canary, ids_at, stride_for

from toggle_edge.model.placement import device_of

TOKENS = 64
"""Tokens of each of the two sequences: enough for every weight that is read to show in some logit."""

SHORT, SHORT_TEXTS = 2, 12
"""Tokens of each sequence, and how many there are, where a share of them is enough."""

SEED = 0x7061_7269_7479


def canary_of(
    candidate: torch.nn.Module,
    tokens: Sequence[int],
    *,
    vocabulary: int,
    context_tokens: int,
    share: float = 1.0,
    is_half: bool = False,
) -> Canary:
    """Logits of `candidate` on real tokens (repeated where there are fewer than needed) and on random ones.

    Text alone leaves many channels nearly silent; random tokens wake them. Their seed is fixed, so every candidate
    of a model has the same canary tokens, and the same candidate the same bytes. With a `share` below 1 the sequences
    are short and many, half of them of text. `is_half` as of `Canary`.
    """
    count, length = (2, min(TOKENS, context_tokens)) if share == 1.0 else (SHORT_TEXTS, SHORT)
    text = np.resize(np.array(tokens, dtype=np.int64), count // 2 * length)
    drawn = np.random.default_rng(SEED).integers(0, vocabulary, count // 2 * length)
    rows = np.stack([text, drawn]).reshape(count, length)
    with torch.inference_mode():
        read = torch.from_numpy(rows).to(device_of(candidate))
        logits = candidate(input_ids=read, use_cache=False).logits.float().cpu().numpy()
    stride = stride_for(rows.size, vocabulary)
    kept = np.zeros((rows.size, -(-vocabulary // stride)), dtype=np.float32)
    for position, row in enumerate(logits.reshape(rows.size, vocabulary)):
        ids = ids_at(position, stride, vocabulary)
        kept[position, : len(ids)] = row[ids]
    return Canary(rows, max(1, length // 2), stride, kept.reshape(*rows.shape, -1), share, is_half)
