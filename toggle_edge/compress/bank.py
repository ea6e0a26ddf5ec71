"""The layer bank: every (layer, format) compressed once, candidates assembled by swapping what changed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch

from toggle_edge.compress.calibration import Calibration
from toggle_edge.compress.candidate import Candidate, is_held, placed
from toggle_edge.compress.entries import EntryKey, Seal, entry, weights_digest
from toggle_edge.compress.quantise import CompressedLayer, quantise, quantiser_named
from toggle_edge.config import Config, Format
from toggle_edge.errors import ConfigError
from toggle_edge.model.load import LanguageModel

MEMORY_BYTES = 2**30
"""Compressed layers are held in memory up to this size; what was used longest ago goes first."""

LENT_BYTES = 2**20
"""The same where they lie on disk and a candidate holds no weights: reading them again is a small part of a batch."""


class LayerBank:
    """Holds a model's compressed layers, and one copy of the model whose weights follow the assembled config.

    With a `folder` compressed layers are kept there too, shared by all processes and models that need the same ones.
    In memory at most `memory_bytes` of them are held, by default `MEMORY_BYTES` or `LENT_BYTES`. The baseline's module
    is never written to, so a candidate cannot be compared with itself. Raises ConfigError for an unknown quantiser, or
    a calibrated one without a calibration.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        quantiser: str = "rtn",
        calibration: Calibration | None = None,
        folder: Path | None = None,
        memory_bytes: int | None = None,
    ) -> None:
        self._chosen = quantiser_named(quantiser)
        if self._chosen.calibrated and calibration is None:
            raise ConfigError(f"quantiser {quantiser}: needs a calibration: texts to run the model on")
        self._model, self._quantiser, self._calibration = model, quantiser, calibration
        self._folder = folder
        usual = MEMORY_BYTES if folder is None or is_held(model) else LENT_BYTES
        self._memory_bytes = usual if memory_bytes is None else memory_bytes
        self._layers = tuple(layer.name for layer in model.layers)
        self._baseline = {layer.name: layer for layer in model.layers}
        self._held: OrderedDict[tuple[str, Format], CompressedLayer] = OrderedDict()
        self._digests: dict[str, str] = {}
        self._verified: set[Seal] = set()
        self._candidate = Candidate(model, self.layer)

    def layer(self, name: str, fmt: Format) -> CompressedLayer:
        """One layer in one format. Raises ConfigError for an unknown layer."""
        if name not in self._baseline:
            raise ConfigError(f"config: the model has no layer {name!r}; its layers are {list(self._layers)}")
        key = (name, fmt)
        if key not in self._held:
            self._held[key] = self._kept(name, fmt)
            # The one just asked for stays, however large it is.
            while len(self._held) > 1 and sum(map(_bytes_of, self._held.values())) > self._memory_bytes:
                self._held.popitem(last=False)
        self._held.move_to_end(key)
        return self._held[key]

    def _kept(self, name: str, fmt: Format) -> CompressedLayer:
        # A format that stores the weights as they are is as quickly made as read.
        if self._folder is None or fmt.is_float:
            return self._quantised(name, fmt)
        if name not in self._digests:
            self._digests[name] = weights_digest(self._model.weight(self._baseline[name]))
        calibration = ""
        if self._chosen.calibrated and self._calibration is not None:
            # The inputs of a layer depend on all layers before it.
            calibration = f"{self._model.digest} {self._calibration.digest} {name}"
        key = EntryKey(self._digests[name], str(fmt), self._quantiser, calibration)
        return entry(self._folder, key, lambda: self._quantised(name, fmt), self._verified)

    def _quantised(self, name: str, fmt: Format) -> CompressedLayer:
        statistics = None
        if self._chosen.calibrated and self._calibration is not None and not fmt.is_float:
            statistics = self._calibration.statistics(name, gram=self._chosen.needs_gram)
        weight = self._model.weight(self._baseline[name])
        try:
            found = quantise(weight, fmt, statistics, quantiser=self._quantiser)
        except ConfigError as exc:
            raise ConfigError(f"{name}: {exc}") from exc
        # Computed where the model is, kept and exported from here.
        return placed(found, torch.device("cpu"))

    def compressed(self, config: Config) -> Mapping[str, CompressedLayer]:
        """All layers of a config, in the model's order. Raises ConfigError when the config has other layers."""
        self._require_layers(config)
        return {name: self.layer(name, config[name]) for name in self._layers}

    def _require_layers(self, config: Config) -> None:
        if set(config.layers) != set(self._layers):
            odd = sorted(set(config.layers) ^ set(self._layers))
            raise ConfigError(
                f"config: expected a format for each of the model's {len(self._layers)} layers, differs in {odd[:3]}"
            )

    def assemble(self, config: Config) -> torch.nn.Module:
        """The model with the config's dequantised weights. Valid until the next call: they are swapped in place, or
        made from the layers here whenever the module runs."""
        self._require_layers(config)
        return self._candidate.assemble(config)


def _bytes_of(layer: CompressedLayer) -> int:
    parts = (layer.codes, layer.scales, layer.zero_points)
    return sum(part.nbytes for part in parts if part is not None)
