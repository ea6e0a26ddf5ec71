"""What newer onnxruntimes have one node for, written out in plain ones, for those that lack it.

`qk_output` of GroupQueryAttention and GatherBlockQuantized came after onnxruntime 1.19.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from toggle_edge.errors import ExportError

EVERYWHERE = -1
"""GroupQueryAttention's `local_window_size` for a block that attends to all tokens before."""

_KNOWN = ("do_rotary", "kv_num_heads", "local_window_size", "num_heads", "rotary_interleaved", "scale")
_HIDDEN = np.float32(-3e38)


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


def older_attention(graph: onnx.GraphProto, *, context_tokens: int) -> None:
    """Change GroupQueryAttention nodes to what onnxruntime 1.19 reads, which is the same where they attend alike.

    Raises ExportError where a block's window is shorter than the context, or scores are capped.
    """
    for node in graph.node:
        if node.op_type != "GroupQueryAttention":
            continue
        found = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        window = found.get("local_window_size", EVERYWHERE)
        if found.get("softcap", 0.0) != 0.0 or EVERYWHERE < window < context_tokens:
            raise ExportError(
                f"export: {node.name} caps its scores or attends to {window} of {context_tokens} tokens only, which "
                "onnxruntime 1.19 cannot; export for onnx-cpu-1.23 or onnx-cpu"
            )
        del node.attribute[:]
        node.attribute.extend(
            helper.make_attribute(name, value)
            for name, value in found.items()
            if name in _KNOWN and name != "local_window_size"
        )
        while node.input and not node.input[-1]:
            del node.input[-1]


def rotation_outside(graph: onnx.GraphProto) -> None:
    """Rotate queries and keys before GroupQueryAttention, whose own rotation takes heads of a multiple of 16 only."""
    plain = Plain()
    first = ""
    for node in graph.node:
        found = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        if node.op_type != "GroupQueryAttention" or not found.get("do_rotary", 0):
            plain.nodes.append(node)
            continue
        if not node.input[1] or found.get("rotary_interleaved", 0):
            raise ExportError(f"export: {node.name}: expected queries and keys apart, and halves that rotate")
        first = first or _first_position(plain)
        turned = []
        for value, count in zip(node.input[:2], (found["num_heads"], found["kv_num_heads"]), strict=True):
            inputs = [value, first, *node.input[7:9]]
            turned.append(
                plain.node(
                    "RotaryEmbedding", inputs, f"{value}/rotated", domain="com.microsoft", num_heads=count
                )
            )
        node.input[:2] = turned
        del node.input[7:]
        for attribute in node.attribute:
            if attribute.name == "do_rotary":
                attribute.i = 0
        plain.nodes.append(node)
    plain.replace(graph)


def _first_position(plain: Plain) -> str:
    """How many tokens the cache has."""
    one = plain.constant([1], np.int64)
    new, total = (
        plain.node(
            "Gather", [plain.node("Shape", [name], f"rotation.{name}.shape"), one], f"rotation.{name}.count"
        )
        for name in ("input_ids", "attention_mask")
    )
    return plain.node("Sub", [total, new], "rotation.first")


def move_windows(graph: onnx.GraphProto, tokens: int) -> None:
    """Count windows of attention as another onnxruntime does. Raises ExportError where one has nothing left."""
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "local_window_size" and attribute.i != EVERYWHERE:
                attribute.i += tokens
                if attribute.i < 1:
                    raise ExportError(
                        f"export: {node.name} attends to one token only, its own; nothing to export"
                    )


def plain_attentions(graph: onnx.GraphProto, rows: Sequence[str]) -> None:
    """Write the graph's GroupQueryAttention nodes out, with the rows after the softmax as outputs named `rows`.

    Texts of a batch may be padded on the right: attention is causal, and nothing else hides a token.
    """
    plain, names = Plain(), iter(rows)
    _places(plain)
    caches = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "GroupQueryAttention":
            _attention(plain, node, next(names), caches)
        else:
            plain.nodes.append(node)
    plain.replace(graph)


def _places(plain: Plain) -> None:
    """Positions of the new tokens, of all tokens, and which of them each new one sees."""
    one = plain.constant(1, np.int64)
    new, total = (
        plain.node("Gather", [plain.node("Shape", [name], f"plain.{name}.shape"), one], f"plain.{name}.count")
        for name in ("input_ids", "attention_mask")
    )
    first = plain.node("Sub", [total, new], "plain.first")
    own = plain.node("Range", [first, total, one], "plain.positions")
    keys = plain.node("Range", [plain.constant(0, np.int64), total, one], "plain.keys")
    column = plain.node("Unsqueeze", [own, plain.constant([1], np.int64)], "plain.queries")
    plain.node("GreaterOrEqual", [column, keys], "plain.seen")


def _attention(plain: Plain, node: onnx.NodeProto, rows: str, caches: dict[str, onnx.TensorProto]) -> None:
    found = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    name, heads, groups = node.name, found["num_heads"], found["kv_num_heads"]
    query, key, value, past_key, past_value = node.input[:5]
    if not key:
        split = [f"{name}/{part}" for part in ("q", "k", "v")]
        shares = plain.constant([heads, groups, groups], np.int64)
        whole = plain.node("Shape", [query], f"{name}/joint")
        width = plain.node("Gather", [whole, plain.constant(2, np.int64)], f"{name}/width")
        each = plain.node("Div", [width, plain.constant(heads + 2 * groups, np.int64)], f"{name}/head_size")
        sizes = plain.node("Mul", [shares, each], f"{name}/sizes")
        plain.nodes.append(helper.make_node("Split", [query, sizes], split, name=f"{name}/Split", axis=-1))
        query, key, value = split
    parts = {}
    for part, given, count in (("query", query, heads), ("key", key, groups), ("value", value, groups)):
        shape = plain.constant([0, 0, count, -1], np.int64)
        apart = plain.node("Reshape", [given, shape], f"{name}/{part}/heads")
        parts[part] = plain.node("Transpose", [apart], f"{name}/{part}/turned", perm=[0, 2, 1, 3])
    if found.get("do_rotary", 0):
        if found.get("rotary_interleaved", 0) or node.input[7] not in caches:
            raise ExportError(f"export: {name}: expected rotary tables as constants, and halves that rotate")
        for part in ("query", "key"):
            parts[part] = _rotated(plain, parts[part], f"{name}/{part}", node.input[7:9], caches)
    plain.node("Concat", [past_key, parts["key"]], node.output[1], axis=2)
    plain.node("Concat", [past_value, parts["value"]], node.output[2], axis=2)
    repeated = plain.constant(np.repeat(np.arange(groups), heads // groups), np.int64)
    keys, values = (
        plain.node("Gather", [node.output[index], repeated], f"{name}/{part}/repeated", axis=1)
        for index, part in ((1, "key"), (2, "value"))
    )
    turned = plain.node("Transpose", [keys], f"{name}/keys", perm=[0, 1, 3, 2])
    product = plain.node("MatMul", [parts["query"], turned], f"{name}/product")
    scaled = plain.node("Mul", [product, plain.constant(found["scale"], np.float32)], f"{name}/scaled")
    masked = plain.node(
        "Where", ["plain.seen", scaled, plain.constant(_HIDDEN, np.float32)], f"{name}/masked"
    )
    plain.node("Softmax", [masked], rows, axis=-1)
    mixed = plain.node("MatMul", [rows, values], f"{name}/mixed")
    back = plain.node("Transpose", [mixed], f"{name}/back", perm=[0, 2, 1, 3])
    plain.node("Reshape", [back, plain.constant([0, 0, -1], np.int64)], node.output[0])


def _rotated(
    plain: Plain, value: str, name: str, tables: Sequence[str], caches: dict[str, onnx.TensorProto]
) -> str:
    """Rotate the first channels of each head, as many as the tables have angles for, twice."""
    half = caches[tables[0]].dims[1]
    cosine, sine = (
        plain.node("Gather", [table, "plain.positions"], f"{name}/{part}")
        for table, part in zip(tables, ("cosine", "sine"), strict=True)
    )
    ends = [plain.constant([end], np.int64) for end in (0, half, 2 * half, np.iinfo(np.int64).max)]
    axis = plain.constant([3], np.int64)
    left, right, rest = (
        plain.node("Slice", [value, ends[index], ends[index + 1], axis], f"{name}/{part}")
        for index, part in enumerate(("left", "right", "rest"))
    )
    halves = []
    for kind, part, (one, other) in (("Sub", "first", (left, right)), ("Add", "second", (right, left))):
        along = plain.node("Mul", [one, cosine], f"{name}/{part}/along")
        across = plain.node("Mul", [other, sine], f"{name}/{part}/across")
        halves.append(plain.node(kind, [along, across], f"{name}/{part}"))
    return plain.node("Concat", [*halves, rest], f"{name}/rotated", axis=-1)


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
