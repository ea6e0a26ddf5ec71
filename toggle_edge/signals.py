"""Signals on the host: baseline and candidate read the same tokens, batched in torch.

A candidate's attention and hidden states are compared with the baseline's while they pass by, one layer at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from toggle_runtime.signals import (
    FAR,
    Outputs,
    Trace,
    departure,
    exact_trace,
    heads_of,
    states_compared,
)

from toggle_edge.model.memory import give_back
from toggle_edge.model.placement import device_of
from toggle_edge.model.recording import recording
from toggle_edge.probes import Probe
from toggle_edge.reading import batch_size, batches_of, choices_along, greedy_texts, logits_at, rows_at
from toggle_edge.structure import Kept


def baseline_outputs(
    module: torch.nn.Module, probes: Sequence[Probe], *, free_running: bool = False
) -> list[Outputs]:
    """The baseline's outputs at every probe's steps, float32, in the order of `probes`.

    Each probe's keys are the tokens that its last step sees. `free_running` adds the greedy text, which only the
    signal `departure` needs and which costs several more passes.
    """
    return list(each_output(module, probes, free_running=free_running))


def each_output(
    module: torch.nn.Module, probes: Sequence[Probe], *, free_running: bool = False
) -> Iterator[Outputs]:
    """The same one after the other, each batch computed when its first is asked for."""
    texts = iter(greedy_texts(module, probes) if free_running else [None] * len(probes))
    for part, tokens, positions in batches_of(probes, batch_size(module, probes)):
        logits, attention, hidden = _whole_outputs(module, tokens, positions)
        for row, probe in enumerate(part):
            steps, keys = probe.steps, len(probe.tokens) - 1
            yield Outputs(
                logits[row, :steps].numpy(),
                torch.stack([layer[row, :steps, :, :keys].transpose(0, 1) for layer in attention]).numpy(),
                torch.stack([layer[row, :steps] for layer in hidden]).numpy(),
                next(texts),
            )
        give_back()


def _whole_outputs(
    module: torch.nn.Module, tokens: torch.Tensor, positions: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """At the positions: logits, then of each layer attention (batch x steps x heads x tokens) and hidden states."""
    attention: list[torch.Tensor] = []
    hidden: list[torch.Tensor] = []
    there = positions.to(device_of(module))

    def on_attention(_: int, weights: torch.Tensor) -> None:
        attention.append(_home(rows_at(weights.transpose(1, 2), there)))

    def on_hidden(_: int, states: torch.Tensor) -> None:
        hidden.append(_home(rows_at(states, there)))

    with recording(module, on_attention, on_hidden):
        logits = _home(logits_at(module, tokens, positions))
    return logits, attention, hidden


def _home(values: torch.Tensor) -> torch.Tensor:
    """Whatever the model computes on and in: float32 here."""
    return values.to("cpu", torch.float32)


def traces_of(
    module: torch.nn.Module, probes: Sequence[Probe], baseline: Sequence[Outputs], kept: Kept | None = None
) -> list[Trace]:
    """The candidate's signals on every probe, float64. A NaN in the model's outputs stays a NaN.

    `departure` is among them where the baseline's outputs have its greedy texts. `kept` says which of the baseline's
    blocks and heads the module has, None for all: heads that it lacks attend to nothing, blocks that it lacks have an
    attention cosine of 0, and hidden states are compared after the blocks that remain (in `layers` NaN after others).
    """
    return list(each_trace(module, probes, baseline, kept))


def each_trace(
    module: torch.nn.Module, probes: Sequence[Probe], baseline: Sequence[Outputs], kept: Kept | None = None
) -> Iterator[Trace]:
    """The same one after the other, each batch computed when its first trace is asked for.

    A layer's attention and hidden states are compared with the baseline's while they pass by.
    """
    size = batch_size(module, probes) if probes else 1
    for start in range(0, len(probes), size):
        part, references = probes[start : start + size], baseline[start : start + size]
        texts = [reference.choices for reference in references]
        greedy = [text for text in texts if text is not None]
        choices = choices_along(module, part, greedy) if len(greedy) == len(part) else [None] * len(part)
        yield from _batch_traces(module, part, references, choices, kept)
        give_back()


def _batch_traces(
    module: torch.nn.Module,
    probes: Sequence[Probe],
    baseline: Sequence[Outputs],
    choices: Sequence[NDArray[np.int64] | None],
    kept: Kept | None,
) -> Iterator[Trace]:
    ((_, tokens, positions),) = batches_of(probes, len(probes))
    positions = positions.to(device_of(module))
    far = torch.arange(tokens.shape[1], device=positions.device) < (positions - FAR).unsqueeze(-1)
    blocks, heads = baseline[0].attention.shape[:2]
    numbers = tuple(range(blocks)) if kept is None else kept.numbers
    compared = states_compared(blocks, numbers)
    nothing = torch.zeros(positions.shape, dtype=torch.float64, device=positions.device)
    # Where a block is removed: attention 0, and no hidden state to compare.
    layers = {
        "attention": [nothing] * blocks,
        "attention_far": [torch.where(far.any(-1), nothing, 1.0)] * blocks,
        "context": [nothing * torch.nan] * blocks,
    }

    def on_attention(layer: int, weights: torch.Tensor) -> None:
        ours = rows_at(weights.transpose(1, 2), positions)
        if kept is not None:
            ours = _in_place(ours, heads_of(kept.remaining[layer].kv_groups, ours.shape[2]), heads)
        number = numbers[layer]
        theirs = _stacked([reference.attention[number].transpose(1, 0, 2) for reference in baseline], ours)
        near, distant = _cosines(theirs, ours, far)
        layers["attention"][number] = near
        layers["attention_far"][number] = torch.where(far.any(-1) | distant.isnan(), distant, 1.0)

    def on_hidden(layer: int, states: torch.Tensor) -> None:
        ours, number = rows_at(states, positions), compared[layer]
        theirs = _stacked([reference.hidden[number] for reference in baseline], ours)
        layers["context"][number] = _cosine(theirs.double(), ours.double())

    with recording(module, on_attention, on_hidden):
        logits = logits_at(module, tokens, positions)
    far = far.cpu()
    by_layer = {
        name: torch.stack(rows, dim=1).cpu() for name, rows in layers.items()
    }  # batch x layers x steps
    for row, (probe, reference) in enumerate(zip(probes, baseline, strict=True)):
        steps = probe.steps
        own = {name: rows[row, :, :steps] for name, rows in by_layer.items()}
        if not far[row, steps - 1].any():
            del own["attention_far"]
        signals = _token_signals(probe, reference, logits[row, :steps])
        for name, rows in own.items():
            signals[name] = rows[-1] if name == "context" else rows.mean(dim=0)
        signals["attention_min"] = _least(own["attention"])
        signals["context_min"] = _least(own["context"][list(compared)])
        found = {name: values.numpy() for name, values in signals.items()}
        chosen = choices[row]
        if reference.choices is not None and chosen is not None:
            found["departure"] = departure(reference.choices, chosen)
        answer = np.isin(np.arange(steps), probe.answer_steps)
        yield exact_trace(found, answer, {name: rows.numpy() for name, rows in own.items()})


def _token_signals(probe: Probe, baseline: Outputs, logits: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the next-token distributions say."""
    baseline_log = torch.from_numpy(baseline.logits).to(logits.device).double().log_softmax(-1)
    candidate_log = logits.double().log_softmax(-1)
    signals = {"jsd": _jensen_shannon_bits(baseline_log, candidate_log).cpu()}
    if probe.answer_steps:
        gold = torch.tensor(probe.continuation, device=logits.device).unsqueeze(-1)
        ratio = (candidate_log.gather(-1, gold) - baseline_log.gather(-1, gold)).squeeze(-1).exp().cpu()
        answer = torch.zeros(probe.steps, dtype=torch.bool)
        answer[list(probe.answer_steps)] = True
        signals["factual"] = torch.where(answer, ratio, torch.ones_like(ratio))
    return signals


def _in_place(rows: torch.Tensor, places: Sequence[int], heads: int) -> torch.Tensor:
    """Attention rows (batch x steps x heads x keys) at the heads' places in the baseline, zeros at the others'."""
    whole = rows.new_zeros(*rows.shape[:2], heads, rows.shape[3])
    whole[:, :, list(places)] = rows
    return whole


def _stacked(rows: Sequence[NDArray[np.float32]], like: torch.Tensor) -> torch.Tensor:
    """Arrays of different sizes in one of the size and the device of `like`, float32, zeros where they have nothing."""
    stacked = torch.zeros(like.shape)
    for index, row in enumerate(rows):
        stacked[index][tuple(slice(size) for size in row.shape)] = torch.from_numpy(row)
    return stacked.to(like.device)


def _cosines(
    first: torch.Tensor, second: torch.Tensor, far: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines of attention rows (batch x steps x heads x keys, heads joined): of all keys, and of the far ones."""
    # Sums over heads first: which keys are far is the same for all heads.
    rows = first.double(), second.double()
    sums = [(a * b).sum(dim=2) for a, b in ((rows[0], rows[1]), (rows[0], rows[0]), (rows[1], rows[1]))]
    whole = [each.sum(-1) for each in sums]
    distant = [(each * far).sum(-1) for each in sums]
    return _quotient(*whole), _quotient(*distant)


def _least(layers: torch.Tensor) -> torch.Tensor:
    return layers.min(dim=0).values


def _cosine(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return _quotient((first * second).sum(-1), first.square().sum(-1), second.square().sum(-1))


def _quotient(product: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Cosine of a product and two squared norms; 0 where either is zero, since a removed part preserves nothing."""
    norms = (first * second).sqrt()
    return torch.where(norms == 0, torch.zeros_like(norms), product / torch.where(norms == 0, 1.0, norms))


def _jensen_shannon_bits(first_log: torch.Tensor, second_log: torch.Tensor) -> torch.Tensor:
    first, second = first_log.exp(), second_log.exp()
    mixture_log = torch.logaddexp(first_log, second_log) - math.log(2)
    nats = 0.5 * (first * (first_log - mixture_log) + second * (second_log - mixture_log)).sum(-1)
    return (nats / math.log(2)).clamp(0.0, 1.0)
