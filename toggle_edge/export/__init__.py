"""Compressed layers -> an artifact for a target. One exporter per target, found in `EXPORTERS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from toggle_edge.compress.quantise import CompressedLayer
from toggle_edge.errors import ConfigError
from toggle_edge.export.artifact import Artifact
from toggle_edge.export.onnx import export_onnx
from toggle_edge.export.skeleton import Skeleton, build_skeleton

__all__ = ["EXPORTERS", "Artifact", "Skeleton", "build_skeleton", "exporter_for"]

Exporter = Callable[[Skeleton, Mapping[str, CompressedLayer], Path], Artifact]

EXPORTERS: Mapping[str, Exporter] = {"onnx-cpu": export_onnx}


def exporter_for(target: str) -> Exporter:
    """The exporter of a target. Raises ConfigError naming the known targets."""
    try:
        return EXPORTERS[target]
    except KeyError:
        raise ConfigError(f"target: expected one of {sorted(EXPORTERS)}, got {target!r}") from None
