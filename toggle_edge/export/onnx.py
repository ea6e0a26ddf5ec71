"""The ONNX exporter: a skeleton's graph with the search's own codes and scales in it.

Every layer becomes one file in `weights/`. The head and the embedding of a tied model read the same file, and
so does `signals.onnx`, the second graph, which adds the attention rows and hidden states as outputs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from toggle_edge.compress.quantise import CompressedLayer
from toggle_edge.config import FP16, Config, Format
from toggle_edge.errors import ConfigError, ExportError
from toggle_edge.export.artifact import Artifact, artifact_in
from toggle_edge.export.genai import GENAI_FILE
from toggle_edge.export.packing import layer_bytes, layer_size
from toggle_edge.export.plain import (
    Plain,
    move_windows,
    older_attention,
    plain_attentions,
    plain_lookup,
    plain_norms,
    rotation_outside,
)
from toggle_edge.export.skeleton import Skeleton
from toggle_edge.model.layers import Layer
from toggle_edge.targets import target_named

GRAPH, SIGNALS_GRAPH, SHARED_FILE = "model.onnx", "signals.onnx", "weights/shared.bin"
SMALL_BYTES = 1024
"""Constants up to this size stay in the graph; larger ones (rotary tables, norms) go to one shared file."""


@dataclass(frozen=True)
class Kernels:
    """What a target's onnxruntime has kernels for beyond what all of them have: GatherBlockQuantized, attention rows
    as an output. `opset` is the newest that it reads. `beside` is how many tokens a window of attention has beside
    those that its size counts: 1 before the token itself was counted."""

    lookups: bool = True
    rows: bool = True
    opset: int = 23
    beside: int = 0


KERNELS: Mapping[str, Kernels] = {
    "onnx-cpu": Kernels(),
    "onnx-cpu-1.23": Kernels(beside=1),
    "onnx-cpu-1.19": Kernels(lookups=False, rows=False, opset=21),
    # CUDA's GroupQueryAttention does not hand out its rows.
    "onnx-cuda": Kernels(rows=False),
}

ROTATED_STEP = 16
"""GroupQueryAttention rotates heads of a multiple of this size only, on the CPU."""

ATTENTION_OUTPUT = "signals.attention.{}"
HIDDEN_OUTPUT = "signals.hidden.{}"


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
        model = _rewritten(skeleton, stubs, offsets, accuracy_level, kernels)
        (folder / SHARED_FILE).write_bytes(_move_constants(model))
        (folder / GRAPH).write_bytes(model.SerializeToString(deterministic=True))
        _add_signal_outputs(model, skeleton, kernels)
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
    model = _rewritten(skeleton, stubs, offsets, 4, KERNELS[target])
    total += len(_move_constants(model)) + len(model.SerializeToString(deterministic=True))
    _add_signal_outputs(model, skeleton, KERNELS[target])
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


def weight_path(layer: str) -> str:
    """Where a layer's file lies in the artifact."""
    return f"weights/{layer}.bin"


def _rewritten(
    skeleton: Skeleton,
    layers: Mapping[str, CompressedLayer],
    offsets: Mapping[str, int],
    accuracy_level: int,
    kernels: Kernels,
) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(skeleton.graph)
    graph = model.graph
    nodes: list[onnx.NodeProto] = []
    tensors: dict[str, onnx.TensorProto] = {}
    looked_up = {  # a tied embedding is looked up in the transposed head
        node.output[0]: node.input[0] for node in graph.node if node.op_type == "Transpose"
    }
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in skeleton.weights:
            name = skeleton.weights[node.input[1]]
            nodes += _multiplication(node, name, layers[name], offsets[name], accuracy_level, tensors)
        elif node.op_type == "Gather" and looked_up.get(node.input[0], node.input[0]) in skeleton.weights:
            name = skeleton.weights[looked_up.get(node.input[0], node.input[0])]
            nodes += _lookup(node, name, layers[name], offsets[name], tensors, kernels)
        elif not (node.op_type == "Transpose" and node.input[0] in skeleton.weights):
            nodes.append(node)
    kept = [tensor for tensor in graph.initializer if tensor.name not in skeleton.weights]
    kept += tensors.values()
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    # The builder's shapes of values in between are wrong in places; engines infer their own.
    del graph.value_info[:]
    plain_norms(graph)
    for opset in model.opset_import:
        if opset.domain == "":
            opset.version = min(opset.version, kernels.opset)
    if not kernels.rows:
        older_attention(graph, context_tokens=int(skeleton.genai["model"]["context_length"]))
    move_windows(graph, -kernels.beside)
    if skeleton.genai["model"]["decoder"]["head_size"] % ROTATED_STEP:
        rotation_outside(graph)
    return model


def _multiplication(
    node: onnx.NodeProto,
    name: str,
    layer: CompressedLayer,
    offset: int,
    accuracy_level: int,
    tensors: dict[str, onnx.TensorProto],
) -> Iterator[onnx.NodeProto]:
    fmt = layer.format
    if layer.scales is None:
        # Cast and Transpose of a constant are folded when the session is made: nothing of them runs per token.
        kept = _float_weight(name, layer)
        tensors[kept.name] = kept
        yield helper.make_node(
            "Cast", [kept.name], [f"{name}.cast"], name=f"{name}/Cast", to=TensorProto.FLOAT
        )
        yield helper.make_node(
            "Transpose", [f"{name}.cast"], [f"{name}.T"], name=f"{name}/Transpose", perm=[1, 0]
        )
        yield helper.make_node("MatMul", [node.input[0], f"{name}.T"], list(node.output), name=node.name)
        return
    packed = (layer.rows, layer.scales.shape[1], fmt.group * fmt.bits // 8)
    codes, scales, zero_points = _stored(name, "codes", packed, layer, offset, tensors)
    yield helper.make_node(
        "MatMulNBits",
        [node.input[0], codes, scales, *zero_points],
        list(node.output),
        name=node.name,
        domain="com.microsoft",
        K=layer.columns,
        N=layer.rows,
        bits=fmt.bits,
        block_size=fmt.group,
        accuracy_level=accuracy_level,
    )


def _lookup(
    node: onnx.NodeProto,
    name: str,
    layer: CompressedLayer,
    offset: int,
    tensors: dict[str, onnx.TensorProto],
    kernels: Kernels,
) -> Iterator[onnx.NodeProto]:
    fmt = layer.format
    if layer.scales is None:
        kept = _float_weight(name, layer)
        tensors[kept.name] = kept
        yield helper.make_node("Gather", [kept.name, node.input[1]], [f"{name}.row"], name=node.name)
        yield helper.make_node(
            "Cast", [f"{name}.row"], list(node.output), name=f"{name}/row/Cast", to=TensorProto.FLOAT
        )
        return
    groups = layer.scales.shape[1]
    if groups * fmt.group != layer.columns:
        raise ExportError(
            f"{name}: {fmt} needs a width that is a multiple of {fmt.group} for an embedding, got {layer.columns}; "
            "choose a smaller group"
        )
    # The same bytes as the head's codes, seen as one row per token: a second name, not a second copy.
    flat = (layer.rows, layer.columns * fmt.bits // 8)
    codes, scales, zero_points = _stored(name, "rows", flat, layer, offset, tensors)
    if not kernels.lookups:
        plain = Plain()
        plain_lookup(plain, name, node.input[1], [codes, scales, *zero_points], node.output[0], fmt.group)
        tensors.update(plain.constants)
        yield from plain.nodes
        return
    yield helper.make_node(
        "GatherBlockQuantized",
        [codes, node.input[1], scales, *zero_points],
        list(node.output),
        name=node.name,
        domain="com.microsoft",
        bits=fmt.bits,
        block_size=fmt.group,
        gather_axis=0,
        quantize_axis=1,
    )


def _stored(
    name: str,
    kind: str,
    packed: tuple[int, ...],
    layer: CompressedLayer,
    offset: int,
    tensors: dict[str, onnx.TensorProto],
) -> tuple[str, str, list[str]]:
    """Names of a layer's packed codes, its scales and, in asymmetric formats, its zero-points behind them."""
    groups = -(-layer.columns // layer.format.group)
    parts = [
        _external(f"{name}.{kind}", name, TensorProto.UINT8, packed, 0),
        _external(f"{name}.scales", name, TensorProto.FLOAT, (layer.rows, groups), offset),
    ]
    if layer.zero_points is not None:
        zero_points = (layer.rows, -(-groups * layer.format.bits // 8))
        behind = offset + 4 * layer.rows * groups
        parts.append(_external(f"{name}.zero_points", name, TensorProto.UINT8, zero_points, behind))
    tensors.update({part.name: part for part in parts})
    return parts[0].name, parts[1].name, [part.name for part in parts[2:]]


def _float_weight(name: str, layer: CompressedLayer) -> onnx.TensorProto:
    kind = TensorProto.FLOAT16 if layer.format == FP16 else TensorProto.FLOAT
    return _external(f"{name}.{layer.format}", name, kind, (layer.rows, layer.columns), 0)


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


def _external(tensor: str, layer: str, kind: int, shape: tuple[int, ...], offset: int) -> onnx.TensorProto:
    size = int(np.prod(shape)) * helper.tensor_dtype_to_np_dtype(kind).itemsize
    return _located(
        onnx.TensorProto(name=tensor, data_type=kind, dims=shape), weight_path(layer), offset, size
    )


def _located(proto: onnx.TensorProto, location: str, offset: int, length: int) -> onnx.TensorProto:
    proto.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        proto.external_data.add(key=key, value=value)
    return proto


def _move_constants(model: onnx.ModelProto) -> bytes:
    """Make the graph's larger constants external; return the content of the file that they are in."""
    content = bytearray()
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            continue
        raw = numpy_helper.to_array(tensor).tobytes()
        if len(raw) > SMALL_BYTES:
            offset = len(content)
            content += raw
            tensor.ClearField("raw_data")
            _located(tensor, SHARED_FILE, offset, len(raw))
    return bytes(content)


def _add_signal_outputs(model: onnx.ModelProto, skeleton: Skeleton, kernels: Kernels) -> None:
    graph = model.graph
    attentions = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
    if len(attentions) != len(skeleton.heads):
        raise ExportError(
            f"graph: expected {len(skeleton.heads)} GroupQueryAttention nodes, got {len(attentions)}"
        )
    for node, (block, heads) in zip(attentions, skeleton.heads.items(), strict=True):
        name = ATTENTION_OUTPUT.format(block)
        if kernels.rows:
            node.output.append(name)
            # 2: the rows after the softmax.
            node.attribute.append(helper.make_attribute("qk_output", 2))
        rows: list[str | int | None] = [
            "batch_size",
            heads,
            "sequence_length",
            "total_sequence_length",
        ]
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, rows))
    if not kernels.rows:
        plain_attentions(graph, [ATTENTION_OUTPUT.format(block) for block in skeleton.heads])
    names = {hidden: HIDDEN_OUTPUT.format(block) for block, hidden in skeleton.hidden.items()}
    for node in graph.node:
        for edges in (node.input, node.output):
            edges[:] = [names.get(edge, edge) for edge in edges]
    graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch_size", "sequence_length", None])
        for name in names.values()
    )
