"""A model reads probes: batches, positions of their steps, the text that it would write itself.

Probes of different lengths are padded on the right: with causal attention no position before the padding can
see it, so the padding changes nothing that is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from toggle_runtime.signals import UNDECIDED

from toggle_edge.model.placement import device_of
from toggle_edge.probes import Probe

BATCH = 16
"""Sequences per forward pass where only logits are wanted."""

MOST_PROBES = 64
LEAST_BYTES, MOST_BYTES = 24 * 2**20, 2**30
WEIGHTS_SHARE = 12


def batch_size(module: torch.nn.Module, probes: Sequence[Probe]) -> int:
    """Probes per forward pass: as many as a twelfth of the model's float32 weights has room for, between 24 MiB and
    1 GiB, at most 64.

    So a model that is read from disk for every batch is read seldom, and a small one stays within a small machine. The
    rule knows the model and the probes only, never what memory is free: the same probes are always batched alike, since
    other batches round otherwise.
    """
    weights = sum(parameter.numel() for parameter in module.parameters())
    room = min(max(4 * weights // WEIGHTS_SHARE, LEAST_BYTES), MOST_BYTES)
    return max(1, min(MOST_PROBES, room // _probe_bytes(module, probes)))


def _probe_bytes(module: Any, probes: Sequence[Probe]) -> int:
    """About what one probe needs beside the weights. What the baseline keeps of every block counts half: once read, it
    is not needed again."""
    config = module.config.get_text_config()
    tokens, steps = max(len(probe.tokens) for probe in probes), max(probe.steps for probe in probes)
    width, heads = config.hidden_size, config.num_attention_heads
    inner = getattr(config, "intermediate_size", None) or 4 * width
    rows = heads * steps * tokens
    # What is there at once: in the MLP, or with attention while it is compared in float64, or at the end with logits.
    attention = 3 * tokens * heads * tokens + 10 * rows
    most = max(6 * tokens * width + max(3 * tokens * inner, attention), 3 * steps * config.vocab_size)
    kept = config.num_hidden_layers * (steps * width + rows)
    return int(4 * (most + kept // 2))


def batches_of(
    probes: Sequence[Probe], size: int
) -> Iterator[tuple[Sequence[Probe], torch.Tensor, torch.Tensor]]:
    """Up to `size` probes, their tokens padded to batch x tokens, and the positions of their steps, batch x steps.

    A probe with fewer steps than others repeats its last position; what is there is cut off later.
    """
    for start in range(0, len(probes), size):
        part = probes[start : start + size]
        ((tokens, _),) = _batches([list(probe.tokens[:-1]) for probe in part], size)
        yield part, tokens, _positions(part)


def _positions(probes: Sequence[Probe]) -> torch.Tensor:
    longest = max(probe.steps for probe in probes)
    return torch.tensor(
        [
            [min(probe.prompt_tokens - 1 + step, len(probe.tokens) - 2) for step in range(longest)]
            for probe in probes
        ]
    )


def logits_at(module: Any, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """The model's logits at the positions, batch x steps x vocabulary, on the model's device.

    The head multiplies what is there only: most logits of a probe are never looked at.
    """
    device, selected = device_of(module), False
    tokens, positions = tokens.to(device), positions.to(device)

    def select(_: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        nonlocal selected
        # A model of our own discovery may call its head otherwise; then its logits are cut afterwards.
        if given and given[0].shape[:2] == tokens.shape:
            selected = True
            return (rows_at(given[0], positions), *given[1:])
        return None

    head = module.get_output_embeddings()
    hook = None if head is None else head.register_forward_pre_hook(select)
    try:
        with torch.inference_mode():
            logits: torch.Tensor = module(input_ids=tokens, use_cache=False).logits
    finally:
        if hook is not None:
            hook.remove()
    return logits if selected else rows_at(logits, positions)


def rows_at(values: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """The rows of `values` (batch x tokens x ...) at each probe's positions: a copy, so that the rest can go."""
    return values[torch.arange(len(positions), device=positions.device).unsqueeze(-1), positions]


def greedy_texts(module: torch.nn.Module, probes: Sequence[Probe]) -> list[NDArray[np.int64]]:
    """What the model writes after each prompt when it always takes the most likely token, as many as the probe has
    steps; `UNDECIDED` from where its logits are not finite.

    Found as the fixed point of reading a guess and taking its choices for the next guess (Santilli et al.,
    Accelerating Transformer Inference for Translation via Parallel Decoding, 2023): each pass settles at least one
    more token. So the text is the one of the very pass that candidates' choices are compared in, without a cache.
    """
    texts = [np.array(probe.continuation, dtype=np.int64) for probe in probes]
    unsettled = list(range(len(probes)))
    # One pass per token is enough; two equally likely tokens could otherwise take turns for ever.
    for _ in range(max(probe.steps for probe in probes) + 1):
        chosen = choices_along(
            module, [probes[index] for index in unsettled], [texts[index] for index in unsettled]
        )
        pairs = list(zip(unsettled, chosen, strict=True))
        unsettled = [index for index, choices in pairs if not np.array_equal(texts[index], choices)]
        for index, choices in pairs:
            texts[index] = choices
        if not unsettled:
            break
    return texts


def choices_along(
    module: torch.nn.Module, probes: Sequence[Probe], texts: Sequence[NDArray[np.int64]]
) -> list[NDArray[np.int64]]:
    """The model's greedy choice at each step while it reads prompt and text."""
    # What comes after an undecided token is never compared; any token may stand for it.
    read = [np.maximum(text, 0).tolist() for text in texts]
    sequences = [
        [*probe.tokens[: probe.prompt_tokens], *text[:-1]] for probe, text in zip(probes, read, strict=True)
    ]
    chosen: list[NDArray[np.int64]] = []
    for batch, _ in _batches(sequences, batch_size(module, probes)):
        part = probes[len(chosen) : len(chosen) + len(batch)]
        logits = logits_at(module, batch, _positions(part))
        best = torch.where(logits.isfinite().all(-1), logits.argmax(-1), UNDECIDED).cpu()
        for row, probe in zip(best.numpy(), part, strict=True):
            chosen.append(row[: probe.steps].astype(np.int64))
    return chosen


def perplexity(module: torch.nn.Module, sequences: Sequence[Sequence[int]]) -> float:
    """Token perplexity: exp of the mean negative log-likelihood of every token after the first."""
    total, count, device = 0.0, 0, device_of(module)
    for batch, mask in _batches([list(sequence) for sequence in sequences], BATCH):
        batch, mask = batch.to(device), mask.to(device)
        with torch.inference_mode():
            logs = module(input_ids=batch, use_cache=False).logits.log_softmax(-1)
        losses = -logs[:, :-1].gather(-1, batch[:, 1:].unsqueeze(-1)).squeeze(-1)
        total += float(losses[mask[:, 1:]].sum(dtype=torch.float64))
        count += int(mask[:, 1:].sum())
    return math.exp(total / count)


def _batches(sequences: Sequence[list[int]], size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for start in range(0, len(sequences), size):
        part = sequences[start : start + size]
        longest = max(len(sequence) for sequence in part)
        tokens = torch.tensor([sequence + [0] * (longest - len(sequence)) for sequence in part])
        mask = torch.tensor([[1] * len(sequence) + [0] * (longest - len(sequence)) for sequence in part])
        yield tokens, mask.bool()
