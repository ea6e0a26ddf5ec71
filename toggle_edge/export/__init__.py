"""Compressed layers -> an artifact for a target. One exporter per target, found in `EXPORTERS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from toggle_edge.config import Config
from toggle_edge.errors import ConfigError
from toggle_edge.export.artifact import Artifact
from toggle_edge.export.executorch import exporting as executorch
from toggle_edge.export.graphs import WHOLE_ONLY, build_skeleton, why_not
from toggle_edge.export.kernels import KERNELS
from toggle_edge.export.narrowing import narrowed, narrowed_shape, narrows
from toggle_edge.export.onnx import predicted_bytes
from toggle_edge.export.request import Made, Request
from toggle_edge.export.skeleton import Skeleton
from toggle_edge.export.whole import export_graph
from toggle_edge.model.layers import Layer
from toggle_edge.model.load import LanguageModel

__all__ = [
    "EXPORTERS",
    "WHOLE_ONLY",
    "Artifact",
    "Exporter",
    "Made",
    "Request",
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
    """How a target's artifacts are written.

    `begin` makes what all candidates of a model start from, kept in a cache folder where it takes long; `export` takes
    that and a request, and writes into a new folder. `why_not` says why a model cannot be exported, None where it may
    be. `predicted_bytes` says what an artifact would weigh before there is one, given what was begun, the layers and
    the config; it is None where the target's tools decide that. `probe_tokens` is the most tokens of a probe of which
    an artifact gives signals, None where there is no such limit.
    """

    begin: Callable[[LanguageModel, Path], Any]
    export: Callable[[Any, Request, Path], Made]
    why_not: Callable[[LanguageModel], str | None]
    predicted_bytes: Callable[[Any, Sequence[Layer], Config], int] | None = None
    probe_tokens: int | None = None


EXPORTERS: Mapping[str, Exporter] = {
    "executorch-xnnpack": Exporter(
        executorch.begin, executorch.export, executorch.why_not, probe_tokens=executorch.SIGNAL_TOKENS
    ),
    **{
        target: Exporter(
            build_skeleton,
            partial(export_graph, target=target),
            why_not,
            partial(predicted_bytes, target=target),
        )
        for target in KERNELS
    },
}


def exporter_for(target: str) -> Exporter:
    """The exporter of a target. Raises ConfigError naming the known targets."""
    try:
        return EXPORTERS[target]
    except KeyError:
        raise ConfigError(f"target: expected one of {sorted(EXPORTERS)}, got {target!r}") from None
