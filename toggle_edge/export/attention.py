"""GroupQueryAttention as older onnxruntimes have it, or written out in plain nodes where they lack what we need."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper

from toggle_edge.errors import ExportError
from toggle_edge.export.plain import Plain

EVERYWHERE = -1
"""GroupQueryAttention's `local_window_size` for a block that attends to all tokens before."""

_KNOWN = ("do_rotary", "kv_num_heads", "local_window_size", "num_heads", "rotary_interleaved", "scale")
_HIDDEN = np.float32(-3e38)


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
