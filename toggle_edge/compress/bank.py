"""The layer bank: every (layer, format) compressed once, candidates assembled by swapping what changed."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from transformers.pytorch_utils import Conv1D

from toggle_edge.compress.calibration import Calibration
from toggle_edge.compress.quantise import CompressedLayer, dequantise, quantise, quantiser_named
from toggle_edge.config import Config, Format
from toggle_edge.errors import ConfigError
from toggle_edge.model.load import LanguageModel


class LayerBank:
    """Holds a model's compressed layers, and one copy of the model whose weights follow the assembled config.

    The baseline's module is never written to, so a candidate cannot be compared with itself. Raises ConfigError for
    an unknown quantiser, or a calibrated one without a calibration.
    """

    def __init__(
        self, model: LanguageModel, *, quantiser: str = "rtn", calibration: Calibration | None = None
    ) -> None:
        self._chosen = quantiser_named(quantiser)
        if self._chosen.calibrated and calibration is None:
            raise ConfigError(f"quantiser {quantiser}: needs a calibration: texts to run the model on")
        self._quantiser, self._calibration = quantiser, calibration
        self._layers = tuple(layer.name for layer in model.layers)
        self._baseline = {name: _weight_of(model.module, name) for name in self._layers}
        self._candidate = copy.deepcopy(model.module)
        self._weights = {name: _weight_of(self._candidate, name) for name in self._layers}
        self._compressed: dict[tuple[str, Format], CompressedLayer] = {}
        self._assembled: dict[str, Format | None] = dict.fromkeys(self._layers)

    def layer(self, name: str, fmt: Format) -> CompressedLayer:
        """One layer in one format. The same object every time. Raises ConfigError for an unknown layer."""
        if name not in self._baseline:
            raise ConfigError(f"config: the model has no layer {name!r}; its layers are {list(self._layers)}")
        key = (name, fmt)
        if key not in self._compressed:
            self._compressed[key] = self._quantised(name, fmt)
        return self._compressed[key]

    def _quantised(self, name: str, fmt: Format) -> CompressedLayer:
        statistics = None
        if self._chosen.calibrated and self._calibration is not None and not fmt.is_float:
            statistics = self._calibration.statistics(name, gram=self._chosen.needs_gram)
        try:
            return quantise(self._baseline[name], fmt, statistics, quantiser=self._quantiser)
        except ConfigError as exc:
            raise ConfigError(f"{name}: {exc}") from exc

    def compressed(self, config: Config) -> Mapping[str, CompressedLayer]:
        """All layers of a config, in the model's order. Raises ConfigError when the config has other layers."""
        if set(config.layers) != set(self._layers):
            odd = sorted(set(config.layers) ^ set(self._layers))
            raise ConfigError(
                f"config: expected a format for each of the model's {len(self._layers)} layers, differs in {odd[:3]}"
            )
        return {name: self.layer(name, config[name]) for name in self._layers}

    def assemble(self, config: Config) -> torch.nn.Module:
        """The model with the config's dequantised weights. Valid until the next call: weights are swapped in place."""
        for name, layer in self.compressed(config).items():
            if self._assembled[name] != layer.format:
                with torch.no_grad():
                    self._weights[name].copy_(dequantise(layer))
                self._assembled[name] = layer.format
        return self._candidate


def _weight_of(module: torch.nn.Module, layer: str) -> torch.Tensor:
    """A layer's weights as outputs x inputs: a view, so that writing to it writes to the model."""
    owner = module.get_submodule(layer)
    weight = owner.weight
    assert isinstance(weight, torch.Tensor)  # noqa: S101  (narrows the type: every layer has a matrix)
    # GPT-2's Conv1D multiplies from the other side and keeps inputs x outputs.
    return weight.data.T if isinstance(owner, Conv1D) else weight.data
