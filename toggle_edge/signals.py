"""Signals on the host: baseline and candidate read the same tokens, batched in torch.

Probes of different lengths are padded on the right: with causal attention no position before the padding can
see it, so the padding changes nothing that is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from toggle_runtime.signals import FAR, UNDECIDED, Outputs, Trace, departure, exact_trace, far_keys

from toggle_edge.probes import Probe

BATCH = 16
"""Probes per forward pass. Bounds memory: attention rows are layers x heads x tokens x tokens per probe."""


def baseline_outputs(
    module: torch.nn.Module, probes: Sequence[Probe], *, free_running: bool = False
) -> list[Outputs]:
    """The baseline's outputs at every probe's steps, float32, in the order of `probes`.

    Each probe's keys are the tokens that its last step sees. `free_running` adds the greedy text, which only the
    signal `departure` needs and which costs several more passes.
    """
    texts = greedy_texts(module, probes) if free_running else [None] * len(probes)
    return [
        Outputs(logits.numpy(), attention.numpy(), hidden.numpy(), text)
        for (_, logits, attention, hidden), text in zip(_outputs(module, probes), texts, strict=True)
    ]


def traces_of(module: torch.nn.Module, probes: Sequence[Probe], baseline: Sequence[Outputs]) -> list[Trace]:
    """The candidate's signals on every probe, float64. A NaN in the model's outputs stays a NaN.

    `departure` is among them where the baseline's outputs have its greedy texts.
    """
    texts = [reference.choices for reference in baseline]
    greedy = [text for text in texts if text is not None]
    choices = _choices(module, probes, greedy) if len(greedy) == len(probes) else [None] * len(probes)
    return [
        _trace(probes[index], baseline[index], logits, attention, hidden, choices[index])
        for index, logits, attention, hidden in _outputs(module, probes)
    ]


def _trace(
    probe: Probe,
    baseline: Outputs,
    logits: torch.Tensor,
    attention: torch.Tensor,
    hidden: torch.Tensor,
    choices: NDArray[np.int64] | None,
) -> Trace:
    baseline_log = torch.from_numpy(baseline.logits).double().log_softmax(-1)
    candidate_log = logits.double().log_softmax(-1)
    rows = _heads_flattened(torch.from_numpy(baseline.attention)), _heads_flattened(attention)
    states = _cosine(torch.from_numpy(baseline.hidden).double(), hidden.double())
    layers = {"attention": _cosine(*rows), "context": states}
    signals = {"jsd": _jensen_shannon_bits(baseline_log, candidate_log)}
    far = torch.from_numpy(far_keys(attention.shape[-1], probe.steps, FAR))
    if far.any():
        seen = far.repeat(1, attention.shape[1])
        distant = _cosine(*(row * seen for row in rows))
        layers["attention_far"] = torch.where(far.any(-1) | distant.isnan(), distant, 1.0)
        signals["attention_far"] = layers["attention_far"].mean(dim=0)
    signals["attention"], signals["attention_min"] = (
        layers["attention"].mean(dim=0),
        _least(layers["attention"]),
    )
    signals["context"], signals["context_min"] = states[-1], _least(states)
    answer = torch.zeros(probe.steps, dtype=torch.bool)
    answer[list(probe.answer_steps)] = True
    if probe.answer_steps:
        gold = torch.tensor(probe.continuation).unsqueeze(-1)
        ratio = (candidate_log - baseline_log).gather(-1, gold).squeeze(-1).exp()
        signals["factual"] = torch.where(answer, ratio, torch.ones_like(ratio))
    found = {name: values.numpy() for name, values in signals.items()}
    if baseline.choices is not None and choices is not None:
        found["departure"] = departure(baseline.choices, choices)
    return exact_trace(found, answer.numpy(), {name: values.numpy() for name, values in layers.items()})


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
        chosen = _choices(
            module, [probes[index] for index in unsettled], [texts[index] for index in unsettled]
        )
        pairs = list(zip(unsettled, chosen, strict=True))
        unsettled = [index for index, choices in pairs if not np.array_equal(texts[index], choices)]
        for index, choices in pairs:
            texts[index] = choices
        if not unsettled:
            break
    return texts


def _choices(
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
        states = torch.stack(result.hidden_states[1:], dim=1)  # without the embeddings
        for row in range(len(batch)):
            probe = probes[index]
            keys = len(probe.tokens) - 1
            steps = slice(probe.prompt_tokens - 1, keys)
            yield (
                index,
                result.logits[row, steps].clone(),
                attentions[row, :, :, steps, :keys].clone(),
                states[row, :, steps].clone(),
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


def _least(layers: torch.Tensor) -> torch.Tensor:
    return layers.min(dim=0).values


def _cosine(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    product = (first * second).sum(-1)
    norms = (first.square().sum(-1) * second.square().sum(-1)).sqrt()
    return torch.where(norms == 0, torch.zeros_like(norms), product / torch.where(norms == 0, 1.0, norms))


def _jensen_shannon_bits(first_log: torch.Tensor, second_log: torch.Tensor) -> torch.Tensor:
    first, second = first_log.exp(), second_log.exp()
    mixture_log = torch.logaddexp(first_log, second_log) - math.log(2)
    nats = 0.5 * (first * (first_log - mixture_log) + second * (second_log - mixture_log)).sum(-1)
    return (nats / math.log(2)).clamp(0.0, 1.0)
