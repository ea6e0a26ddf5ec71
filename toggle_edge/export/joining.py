"""Queries, keys and values from one matrix, where their layers are stored alike.

One node rounds the activations once and has more rows to share out than three nodes of the same matrices. The files
stay one a layer, so that candidates share them: the parts are put together when a session is made, where onnxruntime
folds what depends on constants only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import onnx
from onnx import helper

ROWS = 0
"""Codes, scales, zero-points and biases have a layer's rows first."""


@dataclass(frozen=True)
class _Projection:
    """A layer's product, and the bias that is added to it, if one is."""

    product: onnx.NodeProto
    sum: onnx.NodeProto | None = None

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        return [self.product] if self.sum is None else [self.product, self.sum]


def join_projections(graph: onnx.GraphProto) -> None:
    """Feed each GroupQueryAttention from one MatMulNBits, where three of the same input, bits and block size feed it.

    Attention takes what they compute side by side as it is (its packed form). Others are left as they are: where
    formats differ, or norms or rotations lie between.
    """
    made_by = {output: node for node in graph.node for output in node.output}
    uses = Counter(name for node in graph.node for name in node.input)
    constants = {tensor.name for tensor in graph.initializer}
    instead: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        if node.op_type != "GroupQueryAttention":
            continue
        found = [_projection(name, made_by, uses, constants) for name in node.input[:3]]
        parts = [each for each in found if each is not None]
        if len(parts) < len(found) or not _alike(parts):
            continue
        joined = _joined(parts, f"{node.name}/joined")
        instead |= {each.output[0]: [] for part in parts for each in part.nodes}
        instead[parts[0].product.output[0]] = joined
        node.input[:3] = [joined[-1].output[0], "", ""]
    nodes = [
        each
        for node in graph.node
        for each in (instead.get(node.output[0], [node]) if node.output else [node])
    ]
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)


def _projection(
    name: str, made_by: Mapping[str, onnx.NodeProto], uses: Counter[str], constants: Set[str]
) -> _Projection | None:
    """What makes `name`; None where that is not a product by a layer alone, or others need it too."""
    node = made_by.get(name)
    if node is None or uses[name] > 1:
        return None
    if node.op_type == "MatMulNBits":
        return _Projection(node)
    if node.op_type != "Add" or node.input[1] not in constants:
        return None
    product = _projection(node.input[0], made_by, uses, constants)
    return None if product is None or product.sum is not None else _Projection(product.product, node)


def _alike(parts: Sequence[_Projection]) -> bool:
    """All but the number of rows is equal, and what is multiplied is the same."""
    kinds = {
        (
            part.product.input[0],
            len(part.product.input),
            part.sum is None,
            *((each.name, each.i) for each in part.product.attribute if each.name != "N"),
        )
        for part in parts
    }
    return len(kinds) == 1


def _joined(parts: Sequence[_Projection], name: str) -> list[onnx.NodeProto]:
    """Nodes that put the constants together, and those that compute with them; the last one's output is `name`."""
    nodes: list[onnx.NodeProto] = []

    def together(constants: Sequence[str]) -> str:
        output = f"{name}/{constants[0].rpartition('.')[2]}"
        nodes.append(helper.make_node("Concat", constants, [output], name=output, axis=ROWS))
        return output

    products = [part.product for part in parts]
    inputs = [products[0].input[0]]
    inputs += [
        together([each.input[number] for each in products]) for number in range(1, len(products[0].input))
    ]
    found = [{each.name: helper.get_attribute_value(each) for each in node.attribute} for node in products]
    attributes = found[0] | {"N": sum(each["N"] for each in found)}
    sums = [part.sum for part in parts if part.sum is not None]
    output = f"{name}/product" if sums else name
    nodes.append(
        helper.make_node("MatMulNBits", inputs, [output], name=output, domain="com.microsoft", **attributes)
    )
    if sums:
        bias = together([each.input[1] for each in sums])
        nodes.append(helper.make_node("Add", [output, bias], [name], name=name))
    return nodes
