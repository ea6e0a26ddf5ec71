"""What onnxruntime-genai's model builder gets wrong in a graph, put right; parity would refuse the artifact."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from toggle_edge.errors import ExportError
from toggle_edge.export.attention import EVERYWHERE

LOGITS = "logits"

_BLOCK = re.compile(r"/model/layers\.(\d+)/")


def correct(graph: onnx.GraphProto, module: Any) -> None:
    """Change `graph` to compute what `module` (of transformers) computes, once it has its weights.

    Raises ExportError where the graph is not the one that the corrections are for.
    """
    _head_reads_the_last_norm(graph)
    _embedding_scale(graph, module.config)
    _norms(graph, module)
    _windows(graph, module.config)
    _one_matrix_for_gate_and_up(graph, module)


def last_norm(graph: onnx.GraphProto) -> str:
    """The name of the hidden states after the final norm."""
    return str(next(node.output[0] for node in graph.node if "final_norm" in node.name))


def _head_reads_the_last_norm(graph: onnx.GraphProto) -> None:
    """The builder takes any Linear with as many outputs as the vocabulary for the head.

    So in a model whose MLP is as wide as its vocabulary it wires the head to the first block's gate projection. Its
    weights are replaced anyway; its place and its input are put right here.
    """
    end = last_norm(graph)
    by_output = {name: index for index, node in enumerate(graph.node) for name in node.output}
    index = by_output[LOGITS]
    while graph.node[index].op_type != "MatMul":  # logits may be capped softly
        index = by_output[graph.node[index].input[0]]
    head = graph.node[index]
    if head.input[0] != end:
        moved = onnx.NodeProto()
        moved.CopyFrom(head)
        moved.input[0] = end
        del graph.node[index]
        graph.node.insert(next(i for i, node in enumerate(graph.node) if end in node.output) + 1, moved)


def _embedding_scale(graph: onnx.GraphProto, config: Any) -> None:
    """Gemma multiplies embeddings by the root of their width; the builder rounds it to two decimals."""
    scaled = next((node for node in graph.node if node.name == "/model/embed_tokens/Mul"), None)
    if scaled is None:
        return
    exact = math.sqrt(config.hidden_size)
    constant = next(node for node in graph.node if scaled.input[1] in node.output)
    rounded = float(numpy_helper.to_array(constant.attribute[0].t))
    if abs(rounded - exact) > 0.01:
        raise ExportError(
            f"graph: expected embeddings to be scaled by the root of their width, {exact:.4f}, got {rounded}"
        )
    constant.attribute[0].t.CopyFrom(numpy_helper.from_array(np.array(exact, dtype=np.float32)))


def _norms(graph: onnx.GraphProto, module: Any) -> None:
    """Gemma's norms multiply by 1 plus their weights; the builder adds in the checkpoint's precision."""
    own = {name: value for name, value in module.state_dict().items() if "norm" in name}
    for tensor in graph.initializer:
        if "norm" not in tensor.name:
            continue
        name = "model.norm.weight" if "final_norm" in tensor.name else _norm_name(tensor.name)
        if name not in own:
            raise ExportError(f"graph: expected {tensor.name} to be a norm of the model, it has no {name}")
        weights, found = own[name].float().cpu().numpy(), numpy_helper.to_array(tensor)
        exact = min((weights, weights + 1.0), key=lambda each: float(np.abs(each - found).max()))
        if not np.allclose(exact, found, rtol=0.01, atol=0.01):
            raise ExportError(
                f"graph: expected {tensor.name} to be the model's {name}, or 1 more; it is neither"
            )
        tensor.CopyFrom(numpy_helper.from_array(exact.astype(np.float32), tensor.name))


def _norm_name(initializer: str) -> str:
    return initializer.replace(".attn.", ".self_attn.").replace("_norm.layernorm.", "_norm.")


def _windows(graph: onnx.GraphProto, config: Any) -> None:
    """The builder knows the sliding windows of some architectures only, and for these it shortens the cache, which
    ours is not."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    for node in graph.node:
        match = _BLOCK.match(node.name)
        if node.op_type != "GroupQueryAttention" or match is None:
            continue
        slides = window is not None and (kinds is None or kinds[int(match[1])] == "sliding_attention")
        kept = [
            each for each in node.attribute if each.name not in ("local_window_size", "sliding_window_cache")
        ]
        size = int(window) if slides and window is not None else EVERYWHERE
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute("local_window_size", size)])


def _one_matrix_for_gate_and_up(graph: onnx.GraphProto, module: Any) -> None:
    """Where the model has gate and up as one matrix, so has its config a format; the builder takes them apart."""
    layers = dict(module.named_modules())
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        match = re.fullmatch(r"/model/layers\.(\d+)/mlp/(gate|up)_proj/MatMul", node.name)
        joint = f"model.layers.{match[1]}.mlp.gate_up_proj" if match else ""
        if match is None or joint not in layers:
            nodes.append(node)
        elif match[2] == "gate":
            weight, both, halves = f"{joint}.MatMul.weight", f"{joint}.both", layers[joint].out_features // 2
            outputs = [node.output[0], node.output[0].replace("/gate_proj/", "/up_proj/")]
            sizes = numpy_helper.from_array(np.array([halves, halves]), f"{joint}.halves")
            nothing = onnx.TensorProto(name=weight, data_type=onnx.TensorProto.FLOAT, dims=(0,))
            graph.initializer.extend([sizes, nothing])
            nodes.append(helper.make_node("MatMul", [node.input[0], weight], [both], name=node.name))
            nodes.append(
                helper.make_node("Split", [both, sizes.name], outputs, name=f"{joint}/Split", axis=-1)
            )
            _drop(graph, node.input[1])
        else:
            _drop(graph, node.input[1])
    del graph.node[:]
    graph.node.extend(nodes)


def _drop(graph: onnx.GraphProto, initializer: str) -> None:
    index = next(i for i, tensor in enumerate(graph.initializer) if tensor.name == initializer)
    del graph.initializer[index]
