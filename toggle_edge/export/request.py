"""What an exporter is asked for, and what it gives back. The same for every target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from toggle_edge.compress.quantise import CompressedLayer
from toggle_edge.config import Config
from toggle_edge.export.artifact import Artifact
from toggle_edge.model.load import LanguageModel
from toggle_edge.structure import Kept


@dataclass(frozen=True)
class Request:
    """A candidate: its config, its layers as they are stored, each made when it is asked for, and what is kept of its
    structure (None: all). Parity is checked on `tokens`, of which `prompt_tokens` are read at once. What passed
    is kept on the `shelf`, so that the same candidate need not be compared again (None: nothing is kept)."""

    model: LanguageModel
    config: Config
    layers: Mapping[str, CompressedLayer]
    kept: Kept | None
    assemble: Callable[[], torch.nn.Module]
    tokens: Sequence[int]
    prompt_tokens: int
    shelf: Path | None = None

    @cached_property
    def candidate(self) -> torch.nn.Module:
        """The module with its dequantised weights, assembled once what is stored is written: both need memory."""
        return self.assemble()


@dataclass(frozen=True)
class Made:
    """An artifact that computes what it should: `parity` is the largest absolute logit difference, `canary` the file
    with logits for the device to reproduce.

    Where the target quantises activations, parity is to a reference that does so too, and `activations` is the
    difference of that reference to the searched weights; else it is None. Where rounding of activations hides parity,
    `exact_share` of short texts show it, else it is None. `predicted_bytes` is what the artifact's size was known to be
    before it was written, None where the target's tools decide it.
    """

    artifact: Artifact
    parity: float
    canary: Path
    activations: float | None = None
    exact_share: float | None = None
    predicted_bytes: int | None = None
