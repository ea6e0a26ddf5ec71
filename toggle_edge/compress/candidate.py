"""A module with a config's weights. A small model's are held, a large one's are made when a layer is about to run."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from toggle_edge.compress.quantise import CompressedLayer, dequantise
from toggle_edge.config import FP32, Config, Format
from toggle_edge.model.layers import Layer
from toggle_edge.model.load import LanguageModel
from toggle_edge.model.placement import device_of
from toggle_edge.model.streaming import Slot, shared_copy, slots_of, stream
from toggle_edge.model.weights import weight_of

HELD_BYTES = 64 * 2**20
"""Float32 weights of layers up to this size are held a second time; more are dequantised for every batch."""


def is_held(model: LanguageModel) -> bool:
    """Whether a candidate of the model holds weights of its own."""
    return not model.streamed and 4 * sum(layer.weights for layer in model.layers) <= HELD_BYTES


class Candidate:
    """One module whose weights follow the config that was assembled last.

    What the config leaves as it is, norms, biases and weights that its format stores without loss, are the baseline's
    own where weights are not held. The baseline's module is never written to.
    """

    def __init__(self, model: LanguageModel, compressed: Callable[[str, Format], CompressedLayer]) -> None:
        self._model, self._compressed = model, compressed
        self._held = is_held(model)
        self._formats: dict[str, Format] = {}
        self._lossless: dict[tuple[str, Format], bool] = {}
        if self._held:
            self.module = copy.deepcopy(model.module)
            self._weights = {layer.name: weight_of(self.module, layer) for layer in model.layers}
        else:
            self.module = shared_copy(model.module)
            self._device = device_of(model.module)
            self._room = torch.empty(0, device=self._device)
            stream(self.module, slots_of(self.module, model.layers), self._supplied)

    def assemble(self, config: Config) -> torch.nn.Module:
        """The module with the config's weights, valid until the next call.

        All layers are compressed here, also where they are dequantised later: what cannot be is said now.
        """
        for layer in self._model.layers:
            fmt = config[layer.name]
            if self._formats.get(layer.name) == fmt:
                continue
            self._formats[layer.name] = fmt
            if self._held:
                with torch.no_grad():
                    self._weights[layer.name].copy_(dequantise(self._compressed(layer.name, fmt)))
            elif not self._is_lossless(layer):
                self._compressed(layer.name, fmt)
        return self.module

    def _supplied(self, slot: Slot) -> torch.Tensor:
        """A slot's weights as the module keeps them."""
        if all(self._is_lossless(layer) for layer in slot.layers):
            return self._own(slot)
        if slot.layers[0].name + ".weight" == slot.name:
            weight = self._dequantised(slot.layers[0], self._room_for(slot))
            turned = isinstance(self.module.get_submodule(slot.owners[0]), Conv1D)
            return weight.T.contiguous() if turned else weight
        first = slot.layers[0]
        stacked = torch.empty(len(slot.layers), first.rows, first.columns, device=self._device)
        for index, layer in enumerate(slot.layers):
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
        compressed = self._compressed(layer.name, self._formats[layer.name])
        return dequantise(placed(compressed, self._device), room)

    def _is_lossless(self, layer: Layer) -> bool:
        """Whether the format stores this layer's weights exactly; a NaN is left to the layer bank."""
        fmt = self._formats[layer.name]
        if not fmt.is_float or fmt == FP32:
            return fmt.is_float
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
