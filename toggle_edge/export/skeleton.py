"""A model's fused graph without its weights, whoever built it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx


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
