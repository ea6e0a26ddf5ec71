"""A skeleton without what a structure removes: fewer blocks, and in each as many heads as it keeps.

Blocks keep their numbers in every name, as layers do in a config. Widths follow from the weights.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from toggle_runtime.records import BlockShape, ModelShape

from toggle_edge.errors import ExportError
from toggle_edge.export.skeleton import Skeleton
from toggle_edge.model.remaining import Anatomy, block_of, require_fits
from toggle_edge.structure import Kept, Structure

_NODE = re.compile(r"/model/layers\.(\d+)/(\w+)/")
_SUMMING = ("SkipSimplifiedLayerNormalization", "SkipLayerNormalization")
_HEAD_NORM = re.compile(r"/model/layers\.(\d+)/attn/([qk])_norm/Reshape_2")
_CACHE = re.compile(r"(?:past_key_values|present)\.(\d+)\.")


def narrowed_shape(shape: ModelShape, kept: Kept) -> ModelShape:
    """The shape that says which of the baseline's blocks and kv groups there are."""
    blocks = [BlockShape(each.block, list(each.kv_groups)) for each in kept.remaining]
    return dataclasses.replace(shape, kept=blocks)


def narrows(anatomy: Anatomy) -> tuple[bool, bool]:
    """Whether a graph may lose kv groups, and channels: not where the matrices that become narrower have biases."""
    blocks = anatomy.unlayered.blocks
    return not any(by_group for _, by_group, _ in blocks), not any(by_channel for *_, by_channel in blocks)


def narrowed(skeleton: Skeleton, anatomy: Anatomy, structure: Structure) -> Skeleton:
    """The skeleton of a model without what the structure removes; that of the whole model stays as it is.

    Raises ConfigError where the structure does not fit, ExportError where matrices that it narrows have biases.
    """
    require_fits(anatomy, structure)
    removed = set(structure.removed_blocks)
    for block, (_, by_group, by_channel) in enumerate(anatomy.unlayered.blocks):
        fewer = (
            by_group and anatomy.kept_groups(block, structure) < anatomy.kv_groups,
            by_channel and anatomy.kept_channels(block, structure) < anatomy.channels(block),
        )
        if block not in removed and any(fewer):
            raise ExportError(
                f"export: block {block}: matrices that its structure narrows have biases, which the graph has at full "
                "width; this can be searched and checked, and not exported yet"
            )
    model = onnx.ModelProto()
    model.CopyFrom(_without_weights(skeleton))
    graph = model.graph
    groups = {
        block: anatomy.kept_groups(block, structure) for block in skeleton.heads if block not in removed
    }
    heads = {
        block: count // anatomy.kv_groups * groups[block]
        for block, count in skeleton.heads.items()
        if block in groups
    }
    hidden = _rewire(graph, removed, anatomy.blocks)
    _fit_head_norms(
        graph, {block: (skeleton.heads[block], anatomy.kv_groups) for block in groups}, heads, groups
    )
    for node, block in zip(
        (node for node in graph.node if node.op_type == "GroupQueryAttention"), heads, strict=True
    ):
        for attribute in node.attribute:
            if attribute.name in ("num_heads", "kv_num_heads"):
                attribute.i = heads[block] if attribute.name == "num_heads" else groups[block]
    for values in (graph.input, graph.output):
        kept = [value for value in values if _cache_block(value.name) not in removed]
        del values[:]
        values.extend(kept)
        for value in values:
            if (cached := _cache_block(value.name)) is not None:
                value.type.tensor_type.shape.dim[1].dim_value = groups[cached]
    weights = {name: layer for name, layer in skeleton.weights.items() if block_of(layer) not in removed}
    return dataclasses.replace(skeleton, graph=model, weights=weights, hidden=hidden, heads=heads)


def _without_weights(skeleton: Skeleton) -> onnx.ModelProto:
    """The graph without the baseline's weights, which exporters replace, and without shapes that no longer hold."""
    source = skeleton.graph
    graph = helper.make_graph(
        source.graph.node,
        source.graph.name,
        source.graph.input,
        source.graph.output,
        [each for each in source.graph.initializer if each.name not in skeleton.weights],
    )
    return helper.make_model(
        graph,
        opset_imports=source.opset_import,
        ir_version=source.ir_version,
        producer_name=source.producer_name,
    )


def _rewire(graph: onnx.GraphProto, removed: set[int], blocks: int) -> dict[int, str]:
    """Take the removed blocks out of the stream; return the names of the hidden states by block.

    Between blocks the stream is two tensors, what goes past a block and what it adds, and the norm before the next one
    sums them. So each remaining block's norm takes over the pair that the block before it left.
    """
    norms = {number: node for node in graph.node if (number := _norm_before(node, blocks)) is not None}
    if not norms:
        raise ExportError(
            "export: this architecture's graph is traced, and can lose nothing yet; structures of it can be searched "
            "and checked, and not exported yet"
        )
    if sorted(norms) != list(range(blocks + 1)):
        raise ExportError(
            f"graph: expected a norm before each of {blocks} blocks and the head, got {sorted(norms)}"
        )
    stream, before = [norms[0].input[0]], -1
    nodes: list[onnx.NodeProto] = []
    hidden: dict[int, str] = {}
    for node in graph.node:
        match = _NODE.match(node.name)
        block = None if match is None else int(match[1])
        if block in removed:
            continue
        if match is None or block is None:
            nodes.append(node)
        elif node.name == norms[block].name:
            nodes.append(_norm(node, stream))
            if before >= 0 and block < blocks:
                hidden[before] = node.output[3]
            stream = [node.output[3] if len(stream) == 2 and block < blocks else stream[0]]
        else:
            nodes.append(node)
            if match[2] == "post_attention_layernorm":
                if node.op_type not in _SUMMING:
                    raise ExportError(
                        f"export: {node.name} norms what attention adds alone; structures of such an architecture can "
                        "be searched and checked, and not exported yet"
                    )
                node.input[0] = stream[0]
                stream, before = list(norms[block + 1].input[:2]), block
    hidden[blocks - 1] = norms[blocks].output[0]
    kept = [each for each in graph.initializer if block_of(each.name) not in removed]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    return hidden


def _fit_head_norms(
    graph: onnx.GraphProto,
    before: Mapping[int, tuple[int, int]],
    heads: Mapping[int, int],
    groups: Mapping[int, int],
) -> None:
    """Where queries and keys are normed by head, the graph says how wide all heads are together."""
    widths = {
        node.output[0]: numpy_helper.to_array(node.attribute[0].t)
        for node in graph.node
        if node.op_type == "Constant"
    }
    for node in graph.node:
        match = _HEAD_NORM.fullmatch(node.name)
        if match is None:
            continue
        block = int(match[1])
        place, now = (0, heads[block]) if match[2] == "q" else (1, groups[block])
        *outer, width = widths[node.input[1]].tolist()
        shape = np.array([*outer, width // before[block][place] * now])
        node.input[1] = f"{node.name}/shape"
        graph.initializer.append(numpy_helper.from_array(shape, node.input[1]))


def _norm_before(node: onnx.NodeProto, blocks: int) -> int | None:
    """The number of the block that a norm is before; `blocks` for the final norm."""
    match = _NODE.match(node.name)
    if match is None or match[2] not in ("input_layernorm", "final_norm_layernorm"):
        return None
    return blocks if match[2] == "final_norm_layernorm" else int(match[1])


def _norm(node: onnx.NodeProto, stream: list[str]) -> onnx.NodeProto:
    """The norm of a stream of one tensor or of the sum of two, with the weights, and biases, that it has."""
    summing = node.op_type in _SUMMING
    weights = list(node.input[2 if summing else 1 :])
    simplified = len(weights) == 1
    (epsilon,) = (each.f for each in node.attribute if each.name == "epsilon")
    if len(stream) == 1:
        kind = "SimplifiedLayerNormalization" if simplified else "LayerNormalization"
        extra: dict[str, Any] = {"stash_type": 1} if simplified else {}
        return helper.make_node(
            kind, [*stream, *weights], [node.output[0]], name=node.name, epsilon=epsilon, axis=-1, **extra
        )
    return helper.make_node(
        _SUMMING[0] if simplified else _SUMMING[1],
        [*stream, *weights],
        list(node.output),
        name=node.name,
        domain="com.microsoft",
        epsilon=epsilon,
    )


def _cache_block(name: str) -> int | None:
    match = _CACHE.match(name)
    return None if match is None else int(match[1])
