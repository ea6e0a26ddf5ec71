"""The layer bank: every (layer, format, sparsity) compressed once, candidates assembled by swapping what changed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from toggle_edge.compress.calibration import Calibration, InputStatistics
from toggle_edge.compress.candidate import Candidate, Wanted, is_held, kept_of, placed
from toggle_edge.compress.entries import EntryKey, Seal, entry, weights_digest
from toggle_edge.compress.prune import pruner_named
from toggle_edge.compress.quantise import CompressedLayer, quantise, quantiser_named
from toggle_edge.compress.structure import Ranking
from toggle_edge.config import Config, Format
from toggle_edge.errors import ConfigError
from toggle_edge.model.layers import Layer
from toggle_edge.model.load import LanguageModel
from toggle_edge.structure import WHOLE, Kept, Structure

MEMORY_BYTES = 2**30
"""Compressed layers are held in memory up to this size; what was used longest ago goes first."""

LENT_BYTES = 2**20
"""The same where they lie on disk and a candidate holds no weights: reading them again is a small part of a batch."""


class LayerBank:
    """Holds a model's compressed layers, and one copy of the model whose weights follow the assembled config.

    With a `folder` compressed layers are kept there too, shared by all processes and models that need the same ones.
    In memory at most `memory_bytes` of them are held, by default `MEMORY_BYTES` or `LENT_BYTES`. The baseline's module
    is never written to, so a candidate cannot be compared with itself. Weights are pruned before they are quantised.
    `narrow_scales` as of `quantise`.
    Raises ConfigError for an unknown quantiser or pruner, or a calibrated one without a calibration.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        quantiser: str = "rtn",
        pruner: str = "magnitude",
        calibration: Calibration | None = None,
        folder: Path | None = None,
        memory_bytes: int | None = None,
        narrow_scales: bool = False,
    ) -> None:
        self._chosen, self._prune = quantiser_named(quantiser), pruner_named(pruner)
        for kind, name, chosen in (
            ("quantiser", quantiser, self._chosen.calibrated),
            ("pruner", pruner, self._prune.calibrated),
        ):
            if chosen and calibration is None:
                raise ConfigError(f"{kind} {name}: needs a calibration: texts to run the model on")
        self._model, self._quantiser, self._pruner = model, quantiser, pruner
        self._calibration, self._folder, self._narrow_scales = calibration, folder, narrow_scales
        usual = MEMORY_BYTES if folder is None or is_held(model) else LENT_BYTES
        self._memory_bytes = usual if memory_bytes is None else memory_bytes
        self._layers = tuple(layer.name for layer in model.layers)
        self._baseline = {layer.name: layer for layer in model.layers}
        self._held: OrderedDict[Wanted, CompressedLayer] = OrderedDict()
        self._digests: dict[tuple[str, int], str] = {}
        self._verified: set[Seal] = set()
        self._ranking = Ranking(model, calibration)
        self._candidate = Candidate(model, self.wanted, self._ranking)

    def kept(self, structure: Structure) -> Kept | None:
        """Which parts a structure keeps, None where that is all. Raises ConfigError when it does not fit the model."""
        return self._ranking.kept(structure) if structure else None

    def layer(
        self, name: str, fmt: Format, sparsity: float = 0.0, structure: Structure = WHOLE
    ) -> CompressedLayer:
        """One layer in one format and sparsity, as wide as the structure leaves it. Raises ConfigError for an unknown
        layer, or what it cannot be."""
        kept = kept_of(self._model, self._known(name), structure)
        return self.wanted(Wanted(name, fmt, sparsity, kept))

    def _known(self, name: str) -> Layer:
        if name not in self._baseline:
            raise ConfigError(f"config: the model has no layer {name!r}; its layers are {list(self._layers)}")
        return self._baseline[name]

    def wanted(self, wanted: Wanted) -> CompressedLayer:
        """The same, of a layer as a config asks for it."""
        self._known(wanted.name)
        if wanted not in self._held:
            self._held[wanted] = self._kept(wanted)
            # The one just asked for stays, however large it is.
            while len(self._held) > 1 and sum(map(_bytes_of, self._held.values())) > self._memory_bytes:
                self._held.popitem(last=False)
        self._held.move_to_end(wanted)
        return self._held[wanted]

    def _kept(self, wanted: Wanted) -> CompressedLayer:
        # A format that stores the weights as they are is as quickly made as read.
        if self._folder is None or wanted.format.is_float:
            return self._compressed(wanted)
        name, calibration = wanted.name, ""
        source = (name, wanted.kept)
        if source not in self._digests:
            self._digests[source] = weights_digest(self._ranking.weight(self._baseline[name], wanted.kept))
        pruned = wanted.sparsity > 0
        if self._calibration is not None and (self._chosen.calibrated or (pruned and self._prune.calibrated)):
            # The inputs of a layer depend on all layers before it.
            calibration = f"{self._model.digest} {self._calibration.digest} {name}"
            columns = self._ranking.columns(self._baseline[name], wanted.kept)
            calibration += "" if columns is None else f" {columns}"
        key = EntryKey(
            self._digests[source],
            str(wanted.format),
            self._quantiser,
            calibration,
            wanted.sparsity,
            self._pruner if pruned else "",
            self._narrow_scales,
        )
        return entry(self._folder, key, lambda: self._compressed(wanted), self._verified)

    def _compressed(self, wanted: Wanted) -> CompressedLayer:
        name = wanted.name
        try:
            weight = self._ranking.weight(self._baseline[name], wanted.kept)
            if wanted.sparsity > 0:
                statistics = self._statistics(wanted) if self._prune.calibrated else None
                weight = self._prune.prune(weight, wanted.sparsity, statistics)
            needed = self._chosen.calibrated and not wanted.format.is_float
            statistics = self._statistics(wanted, gram=self._chosen.needs_gram) if needed else None
            found = quantise(
                weight,
                wanted.format,
                statistics,
                quantiser=self._quantiser,
                narrow_scales=self._narrow_scales,
            )
        except ConfigError as exc:
            raise ConfigError(f"{name}: {exc}") from exc
        # Computed where the model is, kept and exported from here.
        return placed(found, torch.device("cpu"))

    def _statistics(self, wanted: Wanted, *, gram: bool = False) -> InputStatistics | None:
        """Of the inputs that the layer still has: the baseline's, as always."""
        found = None if self._calibration is None else self._calibration.statistics(wanted.name, gram=gram)
        columns = self._ranking.columns(self._baseline[wanted.name], wanted.kept)
        return found if found is None or columns is None else found.of(columns)

    def compressed(self, config: Config) -> Mapping[str, CompressedLayer]:
        """All layers of a config, in the model's order, each compressed when it is asked for: a large model's are not
        all held at once. Raises ConfigError when the config has other layers, and then for what a layer cannot be."""
        self._require_layers(config)
        structure, sparsities = config.structure, dict(config.sparsities)
        formats = dict(config)
        wanted = {
            layer.name: Wanted(
                layer.name,
                formats[layer.name],
                sparsities.get(layer.name, 0.0),
                kept_of(self._model, self._baseline[layer.name], structure),
            )
            for layer in self._model.remaining(structure)
        }
        return _Layers(self, wanted)

    def _require_layers(self, config: Config) -> None:
        require_layers(self._model, config)

    def assemble(self, config: Config) -> torch.nn.Module:
        """The model with the config's dequantised weights. Valid until the next call: they are swapped in place, or
        made from the layers here whenever the module runs."""
        self._require_layers(config)
        return self._candidate.assemble(config)


class _Layers(Mapping[str, CompressedLayer]):
    """What a bank has of a config, by name."""

    def __init__(self, bank: LayerBank, wanted: Mapping[str, Wanted]) -> None:
        self._bank, self._wanted = bank, wanted

    def __getitem__(self, name: str) -> CompressedLayer:
        return self._bank.wanted(self._wanted[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._wanted)

    def __len__(self) -> int:
        return len(self._wanted)


def require_layers(model: LanguageModel, config: Config) -> None:
    """Raises ConfigError unless the config has a format for each layer that its structure leaves, and no other."""
    expected = {layer.name for layer in model.remaining(config.structure)}
    odd = sorted(set(config.layers) ^ expected)
    if odd:
        which = f"the model's {len(expected)} layers"
        if config.structure:
            which = f"the {len(expected)} layers that its structure leaves, and for no other"
        raise ConfigError(f"config: expected a format for each of {which}, differs in {odd[:3]}")


def _bytes_of(layer: CompressedLayer) -> int:
    parts = (layer.codes, layer.scales, layer.zero_points)
    return sum(part.nbytes for part in parts if part is not None)
