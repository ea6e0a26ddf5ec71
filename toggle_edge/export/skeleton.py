"""A model's fused graph without its weights, whoever built it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import TensorProto, helper
from toggle_runtime.records import ModelShape

INPUT_IDS, ATTENTION_MASK, LOGITS = "input_ids", "attention_mask", "logits"


@dataclass(frozen=True)
class Skeleton:
    """`graph` holds every node and every small constant in float32; `weights` maps the name of each weight
    initializer in it to the layer that it belongs to. By blocks' numbers in the baseline, `hidden` names the hidden
    states after each one, those of the last normed, and `heads` says how many heads each has. `genai` is what
    onnxruntime-genai has to be told of the model."""

    graph: onnx.ModelProto
    weights: Mapping[str, str]
    hidden: Mapping[int, str]
    heads: Mapping[int, int]
    genai: Mapping[str, Any]


def cache_names(shape: ModelShape, prefix: str) -> list[str]:
    """What the caches of all blocks are called, as inputs (`past_key_values`) or as outputs (`present`)."""
    return [f"{prefix}.{block}.{part}" for block in range(shape.layers) for part in ("key", "value")]


def interface(shape: ModelShape) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    """Inputs and outputs of every graph of ours, as the builder's have them."""
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch_size", length])
        for name, length in (
            (INPUT_IDS, "sequence_length"),
            (ATTENTION_MASK, "total_sequence_length"),
        )
    ]
    outputs = [
        helper.make_tensor_value_info(
            LOGITS, TensorProto.FLOAT, ["batch_size", "sequence_length", shape.vocabulary]
        )
    ]
    for values, prefix, length in (
        (inputs, "past_key_values", "past_sequence_length"),
        (outputs, "present", "total_sequence_length"),
    ):
        values += [
            helper.make_tensor_value_info(
                name, TensorProto.FLOAT, ["batch_size", shape.kv_heads, length, shape.head_size]
            )
            for name in cache_names(shape, prefix)
        ]
    return inputs, outputs
