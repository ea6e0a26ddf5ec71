"""What newer onnxruntimes have one node for, written out in plain ones, for those that lack it.

GatherBlockQuantized came after onnxruntime 1.19.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper


class Plain:
    """Plain nodes and constants as they come; each is named for what it is of."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def node(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"{output}/{kind}", **attributes))
        return output

    def constant(self, values: object, dtype: type, name: str = "") -> str:
        array: NDArray[Any] = np.array(values, dtype=dtype)
        name = name or f"plain.{array.dtype}.{'_'.join(map(str, array.shape))}.{array.ravel().tolist()}"
        self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def replace(self, graph: onnx.GraphProto) -> None:
        """Make these the nodes of the graph. Equal constants have one name, so those that it has are left."""
        known = {tensor.name for tensor in graph.initializer}
        del graph.node[:]
        graph.node.extend(self.nodes)
        graph.initializer.extend(each for name, each in self.constants.items() if name not in known)


def plain_norms(graph: onnx.GraphProto) -> None:
    """Write SimplifiedLayerNormalization out: onnxruntime has it in ONNX's own domain, which knows no such operator.

    onnxruntime makes one kernel of these nodes again when it loads them.
    """
    plain = Plain()
    for node in graph.node:
        if node.op_type != "SimplifiedLayerNormalization":
            plain.nodes.append(node)
            continue
        (epsilon,) = (each.f for each in node.attribute if each.name == "epsilon")
        value, weight, name = node.input[0], node.input[1], node.output[0]
        square = plain.node("Pow", [value, plain.constant(2.0, np.float32)], f"{name}/square")
        axis = plain.constant([-1], np.int64)
        mean = plain.node("ReduceMean", [square, axis], f"{name}/mean", keepdims=1)
        above = plain.node("Add", [mean, plain.constant(epsilon, np.float32)], f"{name}/above")
        root = plain.node("Sqrt", [above], f"{name}/root")
        normed = plain.node("Div", [value, root], f"{name}/normed")
        plain.node("Mul", [normed, weight], name)
    plain.replace(graph)


def plain_lookup(plain: Plain, name: str, ids: str, stored: Sequence[str], output: str, group: int) -> None:
    """What GatherBlockQuantized does with 4-bit codes: rows of a table, unpacked and scaled.

    `stored` names the packed codes, their scales and, in asymmetric formats, their packed zero-points.
    """
    codes, scales, *zero_points = stored
    apart = plain.constant([0, 0, -1, group], np.int64)
    flat = plain.constant([0, 0, -1], np.int64)
    last = plain.constant([-1], np.int64)
    numbers = _unpacked(plain, f"{name}.row", plain.node("Gather", [codes, ids], f"{name}.row"), flat, last)
    grouped = plain.node("Reshape", [numbers, apart], f"{name}.row.groups")
    found = plain.node("Gather", [scales, ids], f"{name}.row.scales")
    if not zero_points:
        middle = plain.constant(8.0, np.float32)
    else:
        packed = plain.node("Gather", [zero_points[0], ids], f"{name}.row.zeros")
        every = _unpacked(plain, f"{name}.row.zeros", packed, flat, last)
        count = plain.node("Shape", [found], f"{name}.row.shape")
        ends = plain.node("Gather", [count, plain.constant([2], np.int64)], f"{name}.row.count")
        begin, axis = plain.constant([0], np.int64), plain.constant([2], np.int64)
        own = plain.node("Slice", [every, begin, ends, axis], f"{name}.row.zeros.own")
        middle = plain.node("Unsqueeze", [own, last], f"{name}.row.zeros.column")
    centred = plain.node("Sub", [grouped, middle], f"{name}.row.centred")
    column = plain.node("Unsqueeze", [found, last], f"{name}.row.scales.column")
    scaled = plain.node("Mul", [centred, column], f"{name}.row.scaled")
    plain.node("Reshape", [scaled, flat], output)


def _unpacked(plain: Plain, name: str, packed: str, flat: str, last: str) -> str:
    """Two codes of each byte, the lower bits first, as float32."""
    sixteen = plain.constant(16, np.int32)
    whole = plain.node("Cast", [packed], f"{name}.bytes", to=TensorProto.INT32)
    low = plain.node("Mod", [whole, sixteen], f"{name}.low")
    high = plain.node("Div", [whole, sixteen], f"{name}.high")
    pairs = [plain.node("Unsqueeze", [each, last], f"{each}.column") for each in (low, high)]
    both = plain.node("Concat", pairs, f"{name}.both", axis=-1)
    codes = plain.node("Reshape", [both, flat], f"{name}.codes")
    return plain.node("Cast", [codes], f"{name}.numbers", to=TensorProto.FLOAT)
