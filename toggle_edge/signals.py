"""Signals on the host: baseline and candidate read the same tokens, batched in torch.

Probes of different lengths are padded on the right: with causal attention no position before the padding can
see it, so the padding changes nothing that is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from toggle_runtime.signals import Outputs, Trace

from toggle_edge.probes import Probe

BATCH = 16
"""Probes per forward pass. Bounds memory: attention rows are layers x heads x tokens x tokens per probe."""


def baseline_outputs(module: torch.nn.Module, probes: Sequence[Probe]) -> list[Outputs]:
    """The baseline's outputs at every probe's steps, float32, in the order of `probes`.

    Attention rows of all probes are padded to the longest probe's keys with zeros, which no cosine sees.
    """
    keys = max(len(probe.tokens) for probe in probes) - 1
    return [
        Outputs(
            logits.numpy(),
            np.pad(attention.numpy(), ((0, 0), (0, 0), (0, 0), (0, keys - attention.shape[-1]))),
            hidden.numpy(),
        )
        for _, logits, attention, hidden in _outputs(module, probes)
    ]


def traces_of(module: torch.nn.Module, probes: Sequence[Probe], baseline: Sequence[Outputs]) -> list[Trace]:
    """The candidate's signals on every probe, float64. A NaN in the model's outputs stays a NaN."""
    traces = []
    for index, logits, attention, hidden in _outputs(module, probes):
        probe, reference = probes[index], baseline[index]
        keys = attention.shape[-1]
        reference_log = torch.from_numpy(reference.logits).double().log_softmax(-1)
        candidate_log = logits.double().log_softmax(-1)
        layers = _cosine(
            _heads_flattened(torch.from_numpy(reference.attention)[..., :keys]), _heads_flattened(attention)
        )
        signals = {
            "jsd": _jensen_shannon_bits(reference_log, candidate_log),
            "attention": layers.mean(dim=0),
            "context": _cosine(torch.from_numpy(reference.hidden).double(), hidden.double()),
        }
        answer = torch.zeros(probe.steps, dtype=torch.bool)
        answer[list(probe.answer_steps)] = True
        if probe.answer_steps:
            gold = torch.tensor(probe.continuation).unsqueeze(-1)
            ratio = (candidate_log - reference_log).gather(-1, gold).squeeze(-1).exp()
            signals["factual"] = torch.where(answer, ratio, torch.ones_like(ratio))
        traces.append(
            Trace({name: values.numpy() for name, values in signals.items()}, answer.numpy(), layers.numpy())
        )
    return traces


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


def _outputs(
    module: torch.nn.Module, probes: Sequence[Probe]
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor, torch.Tensor]]:
    index = 0
    for batch, _ in _batches([list(probe.tokens[:-1]) for probe in probes]):
        with torch.inference_mode():
            result = module(
                input_ids=batch, output_attentions=True, output_hidden_states=True, use_cache=False
            )
        attentions = torch.stack(result.attentions, dim=1)  # batch x layers x heads x tokens x tokens
        for row in range(len(batch)):
            probe = probes[index]
            steps = slice(probe.prompt_tokens - 1, len(probe.tokens) - 1)
            yield (
                index,
                result.logits[row, steps].clone(),
                attentions[row, :, :, steps].clone(),
                result.hidden_states[-1][row, steps].clone(),
            )
            index += 1


def _batches(sequences: Sequence[list[int]]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for start in range(0, len(sequences), BATCH):
        part = sequences[start : start + BATCH]
        longest = max(len(sequence) for sequence in part)
        tokens = torch.tensor([sequence + [0] * (longest - len(sequence)) for sequence in part])
        mask = torch.tensor([[1] * len(sequence) + [0] * (longest - len(sequence)) for sequence in part])
        yield tokens, mask.bool()


def _heads_flattened(attention: torch.Tensor) -> torch.Tensor:
    return attention.double().permute(0, 2, 1, 3).flatten(2)


def _cosine(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    product = (first * second).sum(-1)
    norms = (first.square().sum(-1) * second.square().sum(-1)).sqrt()
    return torch.where(norms == 0, torch.zeros_like(norms), product / torch.where(norms == 0, 1.0, norms))


def _jensen_shannon_bits(first_log: torch.Tensor, second_log: torch.Tensor) -> torch.Tensor:
    first, second = first_log.exp(), second_log.exp()
    mixture_log = torch.logaddexp(first_log, second_log) - math.log(2)
    nats = 0.5 * (first * (first_log - mixture_log) + second * (second_log - mixture_log)).sum(-1)
    return (nats / math.log(2)).clamp(0.0, 1.0)
