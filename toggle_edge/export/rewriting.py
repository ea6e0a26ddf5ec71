"""A skeleton's graph with layers in place of its weights: real low-bit nodes over one file a layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from toggle_edge.compress.quantise import CompressedLayer
from toggle_edge.config import FP16
from toggle_edge.errors import ExportError
from toggle_edge.export.attention import move_windows, older_attention, plain_attentions, rotation_outside
from toggle_edge.export.joining import join_projections
from toggle_edge.export.kernels import Kernels
from toggle_edge.export.packing import weight_path
from toggle_edge.export.plain import Plain, plain_lookup, plain_norms
from toggle_edge.export.skeleton import Skeleton

SHARED_FILE = "weights/shared.bin"
SMALL_BYTES = 1024
"""Constants up to this size stay in the graph; larger ones (rotary tables, norms) go to one shared file."""

ROTATED_STEP = 16
"""GroupQueryAttention rotates heads of a multiple of this size only, on the CPU."""

ATTENTION_OUTPUT = "signals.attention.{}"
HIDDEN_OUTPUT = "signals.hidden.{}"


def rewritten(
    skeleton: Skeleton,
    layers: Mapping[str, CompressedLayer],
    offsets: Mapping[str, int],
    accuracy_level: int,
    kernels: Kernels,
) -> onnx.ModelProto:
    """The skeleton's graph in nodes that the target's onnxruntime has, reading each layer from its file.

    Of the layers only the shapes are looked at; `offsets` say where in a file the scales begin. Raises ExportError
    where what the graph needs cannot be had.
    """
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
    elif kernels.joint:
        join_projections(graph)
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


def move_constants(model: onnx.ModelProto) -> bytes:
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


def add_signal_outputs(model: onnx.ModelProto, skeleton: Skeleton, kernels: Kernels) -> None:
    """Add attention rows and hidden states to the graph's outputs, by their blocks' numbers in the baseline."""
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
