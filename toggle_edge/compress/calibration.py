"""What a model's layers see: statistics of their inputs over given texts, by which quantisers and pruners weigh.

The inputs are the baseline's. So a layer's statistics do not depend on how others are compressed, and layers can be
compressed one by one, in any order, and kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from toggle_edge.errors import ConfigError
from toggle_edge.model.layer_inputs import is_slice, watching
from toggle_edge.model.load import LanguageModel
from toggle_edge.model.memory import available_bytes
from toggle_edge.model.placement import device_of

GRAM_BYTES = 2**30
"""Memory for Gram matrices at a time. A layer whose own is larger gets it all the same, alone."""


def gram_bytes(streamed: bool) -> int:
    """Memory for Gram matrices: less where the model itself did not fit. Fewer at a time only take more passes."""
    free = available_bytes() if streamed else None
    return GRAM_BYTES if free is None else min(GRAM_BYTES, free // 4)


STREAMED_TOKENS = 2048
"""Tokens per forward pass where every pass reads the whole model from disk."""

_VERSION = "inputs-1"


@dataclass(frozen=True)
class InputStatistics:
    """Of one layer's inputs x over `tokens` tokens: E[x**2], float64, and E[x xT], float32, where it was asked for."""

    tokens: int
    mean_square: torch.Tensor
    gram: torch.Tensor | None = None

    def of(self, columns: Sequence[int]) -> InputStatistics:
        """The same of some of the inputs only."""
        kept = list(columns)
        gram = None if self.gram is None else self.gram[kept][:, kept]
        return InputStatistics(self.tokens, self.mean_square[kept], gram)


class Calibration:
    """Statistics of a model's layers over token sequences, computed when they are first asked for.

    Every sequence is one forward pass of the baseline; of a model that is read from disk layer by layer several are,
    padded, and the padding is not counted. Of the Gram matrices only as many are held as fit into
    `gram_bytes`; asking for layers in the model's order takes the fewest passes. `digest` names the sequences.
    Raises ConfigError without a sequence, or when one is empty.
    """

    def __init__(
        self, model: LanguageModel, sequences: Sequence[Sequence[int]], *, gram_bytes: int = GRAM_BYTES
    ) -> None:
        if not sequences or not all(sequences):
            raise ConfigError("calibration: expected one or more texts of at least one token")
        self._model = model
        self._sequences = tuple(tuple(int(token) for token in sequence) for sequence in sequences)
        self._gram_bytes = gram_bytes
        self._layers = {layer.name: layer for layer in model.layers}
        self._columns = {layer.name: layer.columns for layer in model.layers}
        self._looked_up = {
            layer.name for layer in model.layers if layer.role == "embedding" and layer.multiplied
        }
        self._device = device_of(model.module)
        # An expert that is a module of its own is shown rows of which nobody can say which are padding.
        self._batched = model.streamed and all(
            layer.expert is None or is_slice(layer) for layer in model.layers
        )
        self._squares: dict[str, InputStatistics] = {}
        self._sources: dict[str, str] = {}
        self._grams: dict[str, torch.Tensor] = {}

    @property
    def digest(self) -> str:
        """SHA-256 of the token sequences and of what is computed from them; the model's weights are not part of it."""
        content = json.dumps([_VERSION, self._sequences], separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()

    def statistics(self, layer: str, *, gram: bool = False) -> InputStatistics | None:
        """One layer's statistics, with the Gram matrix if `gram`.

        None for a layer that multiplied nothing: an embedding that is only looked up, an expert without a token. A tied
        embedding has its head's inputs and, for the lookups, as much again with every column alike: by the head's
        alone, what is looked up would pay for what the head gains.

        Raises ConfigError for an unknown layer, or when its inputs are not finite.
        """
        if layer not in self._columns:
            raise ConfigError(
                f"calibration: the model has no layer {layer!r}; its layers are {list(self._columns)}"
            )
        if not self._squares:
            self._squares, self._sources = self._measured_squares()
        found = self._squares.get(layer)
        if found is None:
            return None
        if not bool(torch.isfinite(found.mean_square).all()):
            raise ConfigError(
                f"calibration: {layer}: its inputs are not finite; the model is damaged, or overflows on these texts"
            )
        if not gram:
            return found
        source = self._sources[layer]
        if source not in self._grams:
            self._grams = self._measured_grams(self._window(source))
        own = self._grams[source] / found.tokens
        if layer in self._looked_up:
            own.diagonal().add_(own.diagonal().mean())
        return InputStatistics(found.tokens, found.mean_square, own)

    def _window(self, first: str) -> list[str]:
        """The layer and those after it, each with an input of its own, whose Gram matrices fit into memory together."""
        order = list(dict.fromkeys(self._sources.values()))
        taken, room = [first], self._gram_bytes - 4 * self._columns[first] ** 2
        for name in order[order.index(first) + 1 :]:
            room -= 4 * self._columns[name] ** 2
            if room < 0:
                break
            taken.append(name)
        return taken

    def _measured_squares(self) -> tuple[dict[str, InputStatistics], dict[str, str]]:
        sums: dict[str, torch.Tensor] = {}
        tokens: dict[str, int] = {}
        seen: list[tuple[str, torch.Tensor]] = []

        def note(name: str, inputs: torch.Tensor) -> None:
            flat = inputs.reshape(-1, inputs.shape[-1])
            own = flat.double().square().sum(dim=0)
            sums[name] = sums[name] + own if name in sums else own
            tokens[name] = tokens.get(name, 0) + len(flat)

        self._forward(self._layers, note)
        self._forward(self._layers, lambda name, inputs: seen.append((name, inputs)), first_only=True)
        sources: dict[str, str] = {}
        for name, inputs in seen:
            # q, k and v read one tensor, so one Gram matrix serves them all.
            same = (other for other, tensor in seen if tensor is inputs)
            sources.setdefault(name, next(same))
        for name in self._looked_up & sums.keys():
            sums[name] = sums[name] + sums[name].mean()
        found = {  # in the model's order, by which Gram matrices are taken together
            name: InputStatistics(tokens[name], sums[name] / tokens[name])
            for name in self._layers
            if name in tokens
        }
        return found, {name: sources.get(name, name) for name in found}

    def _measured_grams(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        grams = {
            name: torch.zeros(self._columns[name], self._columns[name], device=self._device) for name in names
        }

        def add(name: str, inputs: torch.Tensor) -> None:
            flat = inputs.reshape(-1, inputs.shape[-1]).float()
            grams[name].addmm_(flat.T, flat)

        self._forward(names, add)
        return grams

    def _forward(
        self, names: Iterable[str], see: Callable[[str, torch.Tensor], None], *, first_only: bool = False
    ) -> None:
        """Run the model over the sequences and show each layer's inputs."""
        watched = [self._layers[name] for name in names]
        sequences = [self._sequences[0][:8]] if first_only else list(self._sequences)
        real = torch.ones(1, dtype=torch.bool)

        def see_real(name: str, inputs: torch.Tensor) -> None:
            # Experts see only what is routed to them, and that is none of the padding.
            flat = inputs.reshape(-1, inputs.shape[-1])
            see(name, flat[real.flatten()] if len(flat) == real.numel() else flat)

        padded = len(sequences) > 1 and self._batched
        with (
            watching(
                self._model.module, watched, see_real if padded else see, lambda: real if padded else None
            ),
            _few_logits(self._model.module),
            torch.inference_mode(),
        ):
            for part in _parts(sequences, STREAMED_TOKENS if padded else 0):
                longest = max(map(len, part))
                rows = [[*sequence, *[0] * (longest - len(sequence))] for sequence in part]
                lengths = torch.tensor([[len(sequence)] for sequence in part], device=self._device)
                real = torch.arange(longest, device=self._device) < lengths
                self._model.module(input_ids=torch.tensor(rows, device=self._device), use_cache=False)


def _parts(sequences: Sequence[Sequence[int]], tokens: int) -> Iterator[list[Sequence[int]]]:
    """Sequences together, padded at most to so many tokens, or one where it is longer."""
    part: list[Sequence[int]] = []
    for sequence in sequences:
        longest = max([len(sequence), *map(len, part)])
        if part and longest * (len(part) + 1) > tokens:
            yield part
            part = []
        part.append(sequence)
    yield part


@contextmanager
def _few_logits(module: Any) -> Iterator[None]:
    """Within it the head, once it was seen, multiplies one position only: nobody looks at logits here."""
    head = module.get_output_embeddings()
    if head is None:
        yield
        return
    hook = head.register_forward_pre_hook(lambda _, given: (given[0][..., -1:, :], *given[1:]))
    try:
        yield
    finally:
        hook.remove()
