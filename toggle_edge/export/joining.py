"""Queries, keys and values from one matrix, where their layers are stored alike.

One node rounds the activations once and has more rows to share out than three nodes of the same matrices. The files
stay one a layer, so that candidates share them: the parts are put together when a session is made, where onnxruntime
folds what depends on constants only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import onnx
from onnx import helper

ROWS = 0
"""Codes, scales and zero-points have a layer's rows first."""


def join_projections(graph: onnx.GraphProto) -> None:
    """Feed each GroupQueryAttention from one MatMulNBits, where three of the same input, bits and block size feed it.

    Attention takes what they compute side by side as it is (its packed form). Others are left as they are: where
    formats differ, or norms, biases or rotations lie between.
    """
    made_by = {output: node for node in graph.node for output in node.output}
    uses = Counter(name for node in graph.node for name in node.input)
    instead: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        if node.op_type != "GroupQueryAttention" or not all(node.input[:3]):
            continue
        parts = [made_by.get(name) for name in node.input[:3]]
        alike = [each for each in parts if each is not None and each.op_type == "MatMulNBits"]
        if len(alike) < len(parts) or any(uses[name] > 1 for name in node.input[:3]) or not _alike(alike):
            continue
        joined = _joined(alike, f"{node.name}/joined")
        instead |= {part.output[0]: [] for part in alike} | {alike[0].output[0]: joined}
        node.input[:3] = [joined[-1].output[0], "", ""]
    nodes = [
        each
        for node in graph.node
        for each in (instead.get(node.output[0], [node]) if node.output else [node])
    ]
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)


def _alike(parts: Sequence[onnx.NodeProto]) -> bool:
    """All but the number of rows is equal, and what is multiplied is the same."""
    kinds = {
        (
            part.input[0],
            len(part.input),
            *((each.name, each.i) for each in part.attribute if each.name != "N"),
        )
        for part in parts
    }
    return len(kinds) == 1


def _joined(parts: Sequence[onnx.NodeProto], name: str) -> list[onnx.NodeProto]:
    """Nodes that put the constants together, and the one that multiplies by them, last."""
    nodes, inputs = [], [parts[0].input[0]]
    for number in range(1, len(parts[0].input)):
        constants = [part.input[number] for part in parts]
        output = f"{name}/{constants[0].rpartition('.')[2]}"
        nodes.append(helper.make_node("Concat", constants, [output], name=output, axis=ROWS))
        inputs.append(output)
    found = [{each.name: helper.get_attribute_value(each) for each in part.attribute} for part in parts]
    attributes = found[0] | {"N": sum(each["N"] for each in found)}
    nodes.append(
        helper.make_node("MatMulNBits", inputs, [name], name=name, domain="com.microsoft", **attributes)
    )
    return nodes
