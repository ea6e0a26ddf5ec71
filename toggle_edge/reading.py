"""A model reads probes: batches, positions of their steps, the text that it would write itself.

Probes of different lengths are padded on the right: with causal attention no position before the padding can
see it, so the padding changes nothing that is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from toggle_runtime.signals import UNDECIDED

from toggle_edge.probes import Probe

BATCH = 16
"""Probes per forward pass. Bounds memory: attention rows are heads x tokens x tokens per probe."""


def batches_of(
    probes: Sequence[Probe],
) -> Iterator[tuple[Sequence[Probe], torch.Tensor, torch.Tensor]]:
    """Probes, their tokens padded to batch x tokens, and the positions of their steps, batch x steps.

    A probe with fewer steps than others repeats its last position; what is there is cut off later.
    """
    for start in range(0, len(probes), BATCH):
        part = probes[start : start + BATCH]
        ((tokens, _),) = _batches([list(probe.tokens[:-1]) for probe in part])
        longest = max(probe.steps for probe in part)
        positions = [
            [min(probe.prompt_tokens - 1 + step, len(probe.tokens) - 2) for step in range(longest)]
            for probe in part
        ]
        yield part, tokens, torch.tensor(positions)


def forward(module: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = module(input_ids=tokens, use_cache=False).logits
    return logits


def rows_at(values: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """The rows of `values` (batch x tokens x ...) at each probe's positions: a copy, so that the rest can go."""
    return values[torch.arange(len(positions)).unsqueeze(-1), positions]


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
    for batch, _ in _batches(sequences):
        with torch.inference_mode():
            logits = module(input_ids=batch, use_cache=False).logits
        best = torch.where(logits.isfinite().all(-1), logits.argmax(-1), UNDECIDED)
        for row in best.numpy():
            probe = probes[len(chosen)]
            chosen.append(row[probe.prompt_tokens - 1 : len(probe.tokens) - 1].astype(np.int64))
    return chosen


def perplexity(module: torch.nn.Module, sequences: Sequence[Sequence[int]]) -> float:
    """Token perplexity: exp of the mean negative log-likelihood of every token after the first."""
    total, count = 0.0, 0
    for batch, mask in _batches([list(sequence) for sequence in sequences]):
        with torch.inference_mode():
            logs = module(input_ids=batch, use_cache=False).logits.log_softmax(-1)
        losses = -logs[:, :-1].gather(-1, batch[:, 1:].unsqueeze(-1)).squeeze(-1)
        total += float(losses[mask[:, 1:]].sum(dtype=torch.float64))
        count += int(mask[:, 1:].sum())
    return math.exp(total / count)


def _batches(sequences: Sequence[list[int]]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for start in range(0, len(sequences), BATCH):
        part = sequences[start : start + BATCH]
        longest = max(len(sequence) for sequence in part)
        tokens = torch.tensor([sequence + [0] * (longest - len(sequence)) for sequence in part])
        mask = torch.tensor([[1] * len(sequence) + [0] * (longest - len(sequence)) for sequence in part])
        yield tokens, mask.bool()
