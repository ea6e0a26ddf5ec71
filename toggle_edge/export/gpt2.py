"""GPT-2's fused graph, written node by node: onnxruntime-genai's builder does not know it.

It takes and gives what the builder's graphs do, and attends with the same kernel, over the same shared buffers. Names
follow the builder's too, so that structure is taken out of it in one way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from toggle_edge.errors import ExportError
from toggle_edge.export.genai import DECODER, genai_config
from toggle_edge.export.skeleton import Skeleton, interface
from toggle_edge.model.load import LanguageModel

OPSET, IR_VERSION = 17, 9
"""Old enough for every onnxruntime that has the kernels."""

ACTIVATIONS: Mapping[str, tuple[str, str]] = {
    "gelu_new": ("FastGelu", "com.microsoft"),
    "gelu_pytorch_tanh": ("FastGelu", "com.microsoft"),
    "gelu": ("Gelu", "com.microsoft"),
    "relu": ("Relu", ""),
}


class _Graph:
    """Nodes and constants as they come."""

    def __init__(self, module: Any) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.weights: dict[str, str] = {}
        self._state = module.state_dict()

    def node(
        self,
        kind: str,
        inputs: Sequence[str],
        name: str,
        *,
        outputs: Sequence[str] | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Add a node; return the name of its first output."""
        given = [f"{name}/output_0"] if outputs is None else list(outputs)
        self.nodes.append(helper.make_node(kind, inputs, given, name=name, domain=domain, **attributes))
        return given[0]

    def constant(self, name: str, values: object, dtype: type) -> str:
        self.constants.append(numpy_helper.from_array(np.array(values, dtype=dtype), name))
        return name

    def parameter(self, name: str) -> str:
        """A parameter that no layer covers, as the model has it."""
        return self.constant(name, self._state[name].float().cpu().numpy(), np.float32)

    def product(self, value: str, layer: str, name: str) -> str:
        """What a layer makes of `value`, with its bias. The exporter puts the weights in."""
        biased = f"{layer}.bias" in self._state
        found = self.node("MatMul", [value, self.weight(layer, "MatMul.weight")], f"{name}/MatMul")
        return self.node("Add", [found, self.parameter(f"{layer}.bias")], f"{name}/Add") if biased else found

    def weight(self, layer: str, use: str) -> str:
        name = f"{layer}.{use}"
        self.weights[name] = layer
        self.constants.append(onnx.TensorProto(name=name, data_type=TensorProto.FLOAT, dims=(0,)))
        return name


def gpt2_skeleton(model: LanguageModel) -> Skeleton:
    """Raises ExportError for an activation that is not known here."""
    config: Any = model.module.config
    if config.activation_function not in ACTIVATIONS:
        raise ExportError(
            f"export of {model.folder}: expected an activation among {', '.join(ACTIVATIONS)}, got "
            f"{config.activation_function!r}"
        )
    (embedding,) = (layer.name for layer in model.layers if layer.role == "embedding")
    head = next((layer.name for layer in model.layers if layer.role == "head"), embedding)
    graph = _Graph(model.module)
    blocks = range(model.shape.layers)
    stream = [_embedded(graph, embedding)]
    lengths = _lengths(graph)
    hidden: dict[int, str] = {}
    for block in blocks:
        prefix = f"transformer.h.{block}"
        value, whole = _norm(
            graph, stream, f"{prefix}.ln_1", f"/model/layers.{block}/input_layernorm", config
        )
        if block:
            hidden[block - 1] = whole
        joint = graph.product(value, f"{prefix}.attn.c_attn", f"/model/layers.{block}/attn/qkv_proj")
        attended = _attended(graph, joint, lengths, block, model, config)
        added = graph.product(attended, f"{prefix}.attn.c_proj", f"/model/layers.{block}/attn/o_proj")
        value, whole = _norm(
            graph, [whole, added], f"{prefix}.ln_2", f"/model/layers.{block}/post_attention_layernorm", config
        )
        inner = graph.product(value, f"{prefix}.mlp.c_fc", f"/model/layers.{block}/mlp/up_proj")
        kind, domain = ACTIVATIONS[config.activation_function]
        inner = graph.node(kind, [inner], f"/model/layers.{block}/mlp/act_fn", domain=domain)
        added = graph.product(inner, f"{prefix}.mlp.c_proj", f"/model/layers.{block}/mlp/down_proj")
        stream = [whole, added]
    end, _ = _norm(
        graph, stream, "transformer.ln_f", f"/model/layers.{len(blocks)}/final_norm_layernorm", config
    )
    hidden[len(blocks) - 1] = end
    weight = graph.weight(head, "MatMul.weight")
    graph.node("MatMul", [end, weight], "/lm_head/MatMul", outputs=["logits"])
    heads = dict.fromkeys(blocks, config.n_head)
    return Skeleton(_model_of(graph, model), graph.weights, hidden, heads, genai_config(model, DECODER))


def _embedded(graph: _Graph, embedding: str) -> str:
    """Tokens' embeddings and those of their positions, which go on from where the cache ends."""
    one = graph.constant("/model/constants/1", 1, np.int64)
    tokens = graph.node(
        "Gather", [graph.weight(embedding, "rows"), "input_ids"], "/model/embed_tokens/Gather"
    )
    now, total = (
        graph.node(
            "Gather", [graph.node("Shape", [name], f"/model/{name}/Shape"), one], f"/model/{name}/length"
        )
        for name in ("input_ids", "attention_mask")
    )
    first = graph.node("Sub", [total, now], "/model/positions/first")
    places = graph.node("Range", [first, total, one], "/model/positions")
    table = graph.parameter("transformer.wpe.weight")
    return graph.node(
        "Add", [tokens, graph.node("Gather", [table, places], "/model/wpe/Gather")], "/model/embedded"
    )


def _lengths(graph: _Graph) -> tuple[str, str]:
    """What the attention kernel wants to know: the last position of each row, and how many there are at most."""
    axis = graph.constant("/model/constants/[1]", [1], np.int64)
    name = "/model/attn_mask_reformat"
    lengths = graph.node("ReduceSum", ["attention_mask", axis], f"{name}/ReduceSum", keepdims=0)
    last = graph.node("Sub", [lengths, "/model/constants/1"], f"{name}/Sub")
    rows = graph.node("Cast", [last], f"{name}/Sub/Cast", to=TensorProto.INT32)
    longest = graph.node(
        "Cast", ["/model/attention_mask/length/output_0"], f"{name}/Cast", to=TensorProto.INT32
    )
    return rows, longest


def _norm(graph: _Graph, stream: Sequence[str], layer: str, name: str, config: Any) -> tuple[str, str]:
    """The norm of a stream of one tensor, or of the sum of two; and that tensor or sum."""
    weights = [graph.parameter(f"{layer}.{part}") for part in ("weight", "bias")]
    epsilon = config.layer_norm_epsilon
    if len(stream) == 1:
        return (
            graph.node(
                "LayerNormalization", [*stream, *weights], f"{name}/LayerNorm", epsilon=epsilon, axis=-1
            ),
            stream[0],
        )
    outputs = [f"{name}/output_0", "", "", f"{name}/output_3"]
    graph.node(
        "SkipLayerNormalization",
        [*stream, *weights],
        f"{name}/SkipLayerNorm",
        outputs=outputs,
        domain="com.microsoft",
        epsilon=epsilon,
    )
    return outputs[0], outputs[3]


def _attended(
    graph: _Graph, joint: str, lengths: tuple[str, str], block: int, model: LanguageModel, config: Any
) -> str:
    scale = 1.0 / math.sqrt(model.shape.head_size) if config.scale_attn_weights else 1.0
    if config.scale_attn_by_inverse_layer_idx:
        scale /= block + 1
    cache = [f"past_key_values.{block}.{part}" for part in ("key", "value")]
    name = f"/model/layers.{block}/attn/GroupQueryAttention"
    return graph.node(
        "GroupQueryAttention",
        [joint, "", "", *cache, *lengths],
        name,
        outputs=[f"{name}/output_0", f"present.{block}.key", f"present.{block}.value"],
        domain="com.microsoft",
        num_heads=config.n_head,
        kv_num_heads=config.n_head,
        scale=scale,
        do_rotary=0,
    )


def _model_of(graph: _Graph, model: LanguageModel) -> onnx.ModelProto:
    inputs, outputs = interface(model.shape)
    return helper.make_model(
        helper.make_graph(graph.nodes, "gpt2", inputs, outputs, graph.constants),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)],
        ir_version=IR_VERSION,
        producer_name="toggle-edge",
    )
