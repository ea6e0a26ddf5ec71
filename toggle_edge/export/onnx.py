"""The ONNX exporter: a skeleton's graph with the search's own codes and scales in it.

Every layer becomes one file in `weights/`. The head and the embedding of a tied model read the same file, and
so does `signals.onnx`, the second graph, which adds the attention rows and hidden states as outputs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from toggle_edge.compress.quantise import CompressedLayer
from toggle_edge.config import Config, Format
from toggle_edge.errors import ConfigError, ExportError
from toggle_edge.export.artifact import Artifact, artifact_in
from toggle_edge.export.genai import GENAI_FILE
from toggle_edge.export.kernels import KERNELS
from toggle_edge.export.packing import layer_bytes, layer_size, weight_path
from toggle_edge.export.rewriting import SHARED_FILE, add_signal_outputs, move_constants, rewritten
from toggle_edge.export.skeleton import Skeleton
from toggle_edge.model.layers import Layer
from toggle_edge.targets import target_named

GRAPH, SIGNALS_GRAPH = "model.onnx", "signals.onnx"


def export_onnx(
    skeleton: Skeleton,
    layers: Mapping[str, CompressedLayer],
    folder: Path,
    *,
    accuracy_level: int = 4,
    target: str = "onnx-cpu",
) -> Artifact:
    """Write the artifact of `layers` into the empty or new `folder`, for the onnxruntime of `target`.

    `layers` are asked for one by one, and none is held. `accuracy_level` 4 lets the integer kernels quantise
    activations, which is what runs fast; 0 computes in float32 and is what parity is checked at. Raises ExportError
    when a layer is missing or has a wrong shape, ConfigError for a format that no kernel reads, naming the nearest
    one. Nothing is left of `folder` then, nor when it is interrupted.
    """
    if set(layers) != set(skeleton.weights.values()):
        raise ExportError(
            "export: expected exactly the skeleton's layers; compress all of the model's layers"
        )
    kernels = KERNELS[target]
    try:
        stubs, offsets = {}, {}
        for name in layers:
            layer = layers[name]
            _require_kernel(name, layer, target)
            (folder / "weights").mkdir(parents=True, exist_ok=True)
            content, offsets[name] = layer_bytes(layer)
            (folder / weight_path(name)).write_bytes(content)
            stubs[name] = _stub(layer.format, layer.rows, layer.columns)
        model = rewritten(skeleton, stubs, offsets, accuracy_level, kernels)
        (folder / SHARED_FILE).write_bytes(move_constants(model))
        (folder / GRAPH).write_bytes(model.SerializeToString(deterministic=True))
        add_signal_outputs(model, skeleton, kernels)
        (folder / SIGNALS_GRAPH).write_bytes(model.SerializeToString(deterministic=True))
        (folder / GENAI_FILE).write_bytes(_genai_bytes(skeleton))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return artifact_in(target, folder)


def predicted_bytes(
    skeleton: Skeleton, layers: Sequence[Layer], config: Config, *, target: str = "onnx-cpu"
) -> int:
    """Bytes of the artifact that `export_onnx` would write for `config`: exact, and nothing is written.

    Raises ConfigError for a format that no kernel reads.
    """
    stubs, offsets, total = {}, {}, 0
    for layer in layers:
        fmt = config[layer.name]
        stubs[layer.name] = _stub(fmt, layer.rows, layer.columns)
        _require_kernel(layer.name, stubs[layer.name], target)
        size, offsets[layer.name] = layer_size(fmt, layer.rows, layer.columns)
        total += size
    # 4 or 0: either takes one byte in the graph.
    model = rewritten(skeleton, stubs, offsets, 4, KERNELS[target])
    total += len(move_constants(model)) + len(model.SerializeToString(deterministic=True))
    add_signal_outputs(model, skeleton, KERNELS[target])
    return total + len(model.SerializeToString(deterministic=True)) + len(_genai_bytes(skeleton))


def _genai_bytes(skeleton: Skeleton) -> bytes:
    return json.dumps(skeleton.genai, indent=2).encode()


def _stub(fmt: Format, rows: int, columns: int) -> CompressedLayer:
    """A layer as it is stored, shapes without content."""
    nothing = torch.empty(0, device="meta")
    if fmt.is_float:
        return CompressedLayer(fmt, rows, columns, nothing, None)
    groups = -(-columns // fmt.group_size(columns))
    scales = torch.empty(rows, groups, device="meta")
    return CompressedLayer(fmt, rows, columns, nothing, scales, scales if fmt.asymmetric else None)


def _require_kernel(name: str, layer: CompressedLayer, target: str) -> None:
    fmt, nearest = layer.format, target_named(target).nearest(layer.format)
    if fmt != nearest:
        raise ConfigError(
            f"{name}: {target} has no kernel for {fmt}; the nearest format that it has one for is {nearest}"
        )
    if layer.zero_points is not None and not fmt.asymmetric:
        raise ConfigError(
            f"{name}: {target}'s kernels want a code as {fmt}'s zero-point, and the quantiser's lies between two; "
            "choose another than seq"
        )
