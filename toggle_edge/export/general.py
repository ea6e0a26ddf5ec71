"""The fused graph of a model that nobody has written a graph for: traced, then named as the others are."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto

from toggle_edge.errors import ExportError
from toggle_edge.export.genai import DECODER, genai_config
from toggle_edge.export.skeleton import Skeleton, interface
from toggle_edge.export.standins import DOMAIN, LOOKUP
from toggle_edge.export.tracing import HIDDEN, traced
from toggle_edge.model.load import LanguageModel

GENERAL = ("deepseek_v2", "gemma3_text", "gpt_neox", "mixtral", "opt", "qwen2_moe", "qwen3_moe")
"""Those whose traced graphs are tested to compute what torch does. Another one is a name here and a test."""

NEEDED = "onnxscript"
"""What torch.onnx.export needs, and torch does not bring."""

_FILE = "traced-1.onnx"
_WEIGHT, _ROWS = ".MatMul.weight", ".rows"


def why_not_traced() -> str | None:
    """Why nothing can be traced here; None where it can."""
    if importlib.util.find_spec(NEEDED) is None:
        return f"torch.onnx.export needs {NEEDED}, which is not installed: pip install {NEEDED}"
    return None


def general_skeleton(model: LanguageModel, cache: Path) -> Skeleton:
    """Trace a model's skeleton, or read it from `cache`, where it is kept by the model's digest.

    Raises ExportError when it cannot be traced, or the graph is not one that weights can be put into.
    """
    path = cache / model.digest[:16] / _FILE
    if not path.is_file():
        _keep(_named(traced(model.folder, model.shape), model), path)
    graph = onnx.load(path)
    weights = {
        tensor.name: tensor.name.removesuffix(_WEIGHT).removesuffix(_ROWS)
        for tensor in graph.graph.initializer
        if tensor.name.endswith((_WEIGHT, _ROWS)) and tuple(tensor.dims) == (0,)
    }
    expected, found = {layer.name for layer in model.layers}, set(weights.values())
    if expected != found:
        raise ExportError(
            f"graph of {model.folder}: expected a weight for every layer, differs in {sorted(expected ^ found)[:4]}"
        )
    blocks = range(model.shape.layers)
    attentions = [node for node in graph.graph.node if node.op_type == "GroupQueryAttention"]
    heads = [each.i for node in attentions for each in node.attribute if each.name == "num_heads"]
    if [node.name for node in attentions] != [_attention(block) for block in blocks]:
        raise ExportError(
            f"graph of {model.folder}: expected one attention in each of {len(blocks)} blocks, got {len(attentions)}"
        )
    hidden = {block: HIDDEN.format(block) for block in blocks}
    return Skeleton(
        graph, weights, hidden, dict(zip(blocks, heads, strict=True)), genai_config(model, DECODER)
    )


def _named(found: onnx.ModelProto, model: LanguageModel) -> onnx.ModelProto:
    """The traced graph with nodes and inputs as exporters expect them, and nothing of where it was traced."""
    graph, names = found.graph, set()
    blocks = iter(range(model.shape.layers))
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
        if node.op_type == "GroupQueryAttention":
            node.name = _attention(next(blocks, model.shape.layers))
        if node.domain == DOMAIN:
            layer = node.attribute[0].s.decode()
            is_lookup = node.op_type == LOOKUP
            weight = layer + (_ROWS if is_lookup else _WEIGHT)
            inputs = [weight, node.input[0]] if is_lookup else [node.input[0], weight]
            node.CopyFrom(
                onnx.helper.make_node(
                    "Gather" if is_lookup else "MatMul",
                    inputs,
                    list(node.output),
                    name=f"{weight}/{node.name}",
                )
            )
            names.add(weight)
    for tensor in graph.initializer:
        del tensor.metadata_props[:]
        tensor.doc_string = ""
    graph.initializer.extend(
        TensorProto(name=name, data_type=TensorProto.FLOAT, dims=(0,)) for name in sorted(names)
    )
    inputs, outputs = interface(model.shape)
    config: Any = model.module.config
    made = onnx.helper.make_graph(
        list(graph.node), config.model_type, inputs, outputs, list(graph.initializer)
    )
    opsets = [each for each in found.opset_import if each.domain != DOMAIN]
    return onnx.helper.make_model(
        made, opset_imports=opsets, ir_version=found.ir_version, producer_name="toggle-edge"
    )


def _attention(block: int) -> str:
    return f"/model/layers.{block}/attn/GroupQueryAttention"


def _keep(graph: onnx.ModelProto, path: Path) -> None:
    """Rename is atomic: an interrupted build leaves nothing that looks whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(prefix=".traced-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(graph.SerializeToString(deterministic=True))
        Path(partial).replace(path)
    finally:
        Path(partial).unlink(missing_ok=True)
