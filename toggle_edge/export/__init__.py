"""Compressed layers -> an artifact for a target. One exporter per target, found in `EXPORTERS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from toggle_edge.compress.quantise import CompressedLayer
from toggle_edge.config import Config
from toggle_edge.errors import ConfigError
from toggle_edge.export.artifact import Artifact
from toggle_edge.export.graphs import WHOLE_ONLY, build_skeleton, why_not
from toggle_edge.export.kernels import KERNELS
from toggle_edge.export.narrowing import narrowed, narrowed_shape, narrows
from toggle_edge.export.onnx import export_onnx, predicted_bytes
from toggle_edge.export.skeleton import Skeleton
from toggle_edge.model.layers import Layer

__all__ = [
    "EXPORTERS",
    "WHOLE_ONLY",
    "Artifact",
    "Exporter",
    "Skeleton",
    "build_skeleton",
    "exporter_for",
    "narrowed",
    "narrowed_shape",
    "narrows",
    "why_not",
]


@dataclass(frozen=True)
class Exporter:
    """How a target's artifacts are written, and what one would weigh in bytes before it is."""

    export: Callable[[Skeleton, Mapping[str, CompressedLayer], Path], Artifact]
    predicted_bytes: Callable[[Skeleton, Sequence[Layer], Config], int]


EXPORTERS: Mapping[str, Exporter] = {
    target: Exporter(partial(export_onnx, target=target), partial(predicted_bytes, target=target))
    for target in KERNELS
}


def exporter_for(target: str) -> Exporter:
    """The exporter of a target. Raises ConfigError naming the known targets."""
    try:
        return EXPORTERS[target]
    except KeyError:
        raise ConfigError(f"target: expected one of {sorted(EXPORTERS)}, got {target!r}") from None
