"""A module with a config's weights. A small model's are held, a large one's are made when a layer is about to run."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from toggle_edge.compress.quantise import CompressedLayer, dequantise
from toggle_edge.compress.structure import Ranking
from toggle_edge.config import FP32, Config, Format
from toggle_edge.model.layers import Layer
from toggle_edge.model.load import LanguageModel
from toggle_edge.model.placement import device_of
from toggle_edge.model.remaining import cut_of, renumbered
from toggle_edge.model.removal import without
from toggle_edge.model.streaming import Slot, shared_copy, slots_of, stream
from toggle_edge.model.weights import weight_of
from toggle_edge.structure import WHOLE, Structure


@dataclass(frozen=True, slots=True)
class Wanted:
    """A layer as a config asks for it."""

    name: str
    format: Format
    sparsity: float = 0.0
    kept: int = 0
    """Kv groups or channels that its block keeps, 0 for all."""


HELD_BYTES = 64 * 2**20
"""Float32 weights of layers up to this size are held a second time; more are dequantised for every batch."""


def is_held(model: LanguageModel) -> bool:
    """Whether a candidate of the model holds weights of its own."""
    return not model.streamed and 4 * sum(layer.weights for layer in model.layers) <= HELD_BYTES


def kept_of(model: LanguageModel, layer: Layer, structure: Structure) -> int:
    """The `kept` with which a config of this structure wants a layer."""
    return cut_of(layer, model.anatomy, structure) if structure else 0


class Candidate:
    """One module whose weights follow the config that was assembled last.

    What the config leaves as it is, norms, biases and weights that its format stores without loss, are the baseline's
    own where weights are not held. The baseline's module is never written to.
    """

    def __init__(
        self, model: LanguageModel, compressed: Callable[[Wanted], CompressedLayer], ranking: Ranking
    ) -> None:
        self._model, self._compressed, self._ranking = model, compressed, ranking
        self._held = is_held(model)
        self._lossless: dict[tuple[str, Format], bool] = {}
        self._device = device_of(model.module)
        self._structure: Structure | None = None
        self._build(WHOLE)

    def _build(self, structure: Structure) -> None:
        """Make the module anew, without what this structure removes. The one of before can go first."""
        model, self._structure = self._model, None
        layers = model.remaining(structure)
        names = {layer.name: layer.name for layer in layers}
        make: Callable[..., torch.nn.Module] = copy.deepcopy
        if structure:
            kept = self._ranking.kept(structure)
            make = partial(without, anatomy=model.anatomy, kept=kept)
            names = {name: renumbered(name, kept.numbers) for name in names}
            layers = tuple(dataclasses.replace(layer, name=names[layer.name]) for layer in layers)
        # By the names that they have in this module.
        self._baseline = {names[layer.name]: layer for layer in model.layers if layer.name in names}
        self._wanted: dict[str, Wanted] = {}
        self._weights: dict[str, torch.Tensor] = {}
        self.module = torch.nn.Module()
        if self._held:
            self.module = make(model.module)
            self._weights = {
                self._baseline[layer.name].name: weight_of(self.module, layer) for layer in layers
            }
        else:
            self.module = shared_copy(model.module, lambda module, memo: make(module, memo=memo))
            self._room = torch.empty(0, device=self._device)
            stream(self.module, slots_of(self.module, layers), self._supplied)
        self._structure = structure

    def assemble(self, config: Config) -> torch.nn.Module:
        """The module with the config's weights, valid until the next call.

        All layers are compressed here, also where they are dequantised later: what cannot be is said now.
        """
        if config.structure != self._structure:
            self._build(config.structure)
        formats, sparsities = dict(config), dict(config.sparsities)
        for layer in self._baseline.values():
            kept = kept_of(self._model, layer, config.structure)
            wanted = Wanted(layer.name, formats[layer.name], sparsities.get(layer.name, 0.0), kept)
            if self._wanted.get(layer.name) == wanted:
                continue
            self._wanted[layer.name] = wanted
            try:
                if self._held:
                    with torch.no_grad():
                        self._weights[layer.name].copy_(dequantise(self._compressed(wanted)))
                elif not self._is_lossless(layer):
                    self._compressed(wanted)
            except BaseException:
                # Its weights are still the ones of before, so the next config must not take them for these.
                del self._wanted[layer.name]
                raise
        return self.module

    def _supplied(self, slot: Slot) -> torch.Tensor:
        """A slot's weights as the module keeps them."""
        baseline = [self._baseline[layer.name] for layer in slot.layers]
        lossless = all(self._is_lossless(layer) for layer in baseline)
        if lossless and not self._structure:
            return self._own(slot)
        if slot.layers[0].name + ".weight" == slot.name:
            layer = baseline[0]
            if lossless:
                weight = self._ranking.weight(layer, self._wanted[layer.name].kept).to(self._device)
            else:
                weight = self._dequantised(layer, self._room_for(slot))
            turned = isinstance(self.module.get_submodule(slot.owners[0]), Conv1D)
            return weight.T.contiguous() if turned else weight
        first = slot.layers[0]
        stacked = torch.empty(len(slot.layers), first.rows, first.columns, device=self._device)
        for index, layer in enumerate(baseline):
            stacked[index] = self._dequantised(layer)
        return stacked

    def _own(self, slot: Slot) -> torch.Tensor:
        if self._model.checkpoint is None:
            return self._model.module.get_parameter(slot.name).data
        return self._model.checkpoint.read(slot.name).to(self._device)

    def _room_for(self, slot: Slot) -> torch.Tensor | None:
        """Memory that every layer in its turn may use, made once: fresh memory costs more time than filling it.

        Only for weights that nothing else runs beside: those of a module without modules inside.
        """
        if any(True for path in slot.owners for _ in self.module.get_submodule(path).children()):
            return None
        if not len(self._room):
            largest = max(layer.weights for layer in self._model.layers)
            self._room = torch.empty(largest, device=self._device)
        return self._room

    def _dequantised(self, layer: Layer, room: torch.Tensor | None = None) -> torch.Tensor:
        compressed = self._compressed(self._wanted[layer.name])
        return dequantise(placed(compressed, self._device), room)

    def _is_lossless(self, layer: Layer) -> bool:
        """Whether the format stores this layer's weights exactly; a NaN is left to the layer bank."""
        wanted = self._wanted[layer.name]
        fmt = wanted.format
        if wanted.sparsity > 0 or not fmt.is_float or fmt == FP32:
            return wanted.sparsity == 0 and fmt.is_float
        key = (layer.name, fmt)
        if key not in self._lossless:
            weight: Any = self._model.weight(layer)
            self._lossless[key] = all(torch.equal(rows.half().float(), rows) for rows in weight.split(256))
        return self._lossless[key]


def placed(layer: CompressedLayer, device: torch.device) -> CompressedLayer:
    """The layer with its tensors on the device; the very same where they are."""
    if layer.codes.device == device:
        return layer
    parts = {name: getattr(layer, name) for name in ("codes", "scales", "zero_points")}
    moved = {name: part.to(device) for name, part in parts.items() if part is not None}
    return dataclasses.replace(layer, **moved)
