"""The fused graph of a model without its weights, from onnxruntime-genai's model builder.

The builder knows which fused nodes are fastest (GroupQueryAttention with the rotary embedding inside,
SkipSimplifiedLayerNormalization); we keep its topology and its constants, and put our own weights in. Its mixed
precision cannot give every layer its own bits, so it builds in float32, of a model that has no weights, and we rewrite.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import onnx

from toggle_edge.errors import ExportError
from toggle_edge.export.corrections import correct, last_norm
from toggle_edge.export.genai import genai_config
from toggle_edge.export.skeleton import Skeleton
from toggle_edge.model.layers import EMBEDDING, HEAD
from toggle_edge.model.load import LanguageModel

HEAD_SIZE_STEP, PACKED_STEP = 8, 16
"""GroupQueryAttention refuses other head sizes on the CPU, and what rotates itself those of the second.

Queries and keys can be rotated before it only where they are apart.
"""

BUILT = ("gemma", "gemma2", "llama", "mistral", "phi3", "qwen2", "qwen3")
"""Those whose fused graph we know how to put our weights into."""

PACKED = ("phi3",)
"""Those in which q, k and v are one matrix."""

_BUILDER = "from toggle_edge.export.weightless import main; main()"
_BLOCK = re.compile(r"model\.layers\.(\d+)\.(attn|mlp)\.(\w+_proj)\.MatMul\.weight")


def built_skeleton(model: LanguageModel, cache: Path) -> Skeleton:
    """Build a model's skeleton, or read it from `cache`, where it is kept by the model's digest.

    Raises ExportError when the builder fails or its graph is not one that we can rewrite.
    """
    config: Any = model.module.config
    folder = cache / model.digest[:16]
    if not (folder / "model.onnx").is_file():
        _run_builder(model.folder, folder, packed=config.model_type in PACKED)
    graph = onnx.load(folder / "model.onnx")
    correct(graph.graph, model.module)
    tied = not any(layer.name == HEAD for layer in model.layers)
    weights = {}
    for initializer in graph.graph.initializer:
        layer = _layer_of(initializer.name, tied=tied)
        if layer is not None:
            weights[initializer.name] = layer
    expected, found = {layer.name for layer in model.layers}, set(weights.values())
    if expected != found:
        raise ExportError(
            f"graph of {model.folder}: expected a weight for every layer, differs in {sorted(expected ^ found)[:4]}"
        )
    heads = next(
        attribute.i
        for node in graph.graph.node
        if node.op_type == "GroupQueryAttention"
        for attribute in node.attribute
        if attribute.name == "num_heads"
    )
    # The norm before the next block adds the block's output to what skips it, and hands that sum on.
    sums = {node.output[0]: node.output[3] for node in graph.graph.node if len(node.output) == 4}
    between = [
        sums.get(f"/model/layers.{index}/input_layernorm/output_0") for index in range(1, model.shape.layers)
    ]
    if None in between:
        raise ExportError(
            f"graph of {model.folder}: expected hidden states between {model.shape.layers} blocks, found "
            f"{len(between) - between.count(None)}"
        )
    hidden = dict(enumerate((*(name for name in between if name), last_norm(graph.graph))))
    every = dict.fromkeys(range(model.shape.layers), heads)
    return Skeleton(graph, weights, hidden, every, genai_config(model))


def _run_builder(source: Path, destination: Path, *, packed: bool) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".skeleton-", dir=destination.parent))
    try:
        # It ends when we do, so that a killed export leaves nobody who writes on.
        command = [sys.executable, "-W", "ignore", "-c", _BUILDER, str(os.getpid())]
        command += ["-i", str(source), "-o", str(partial / "graph"), "-p", "fp32", "-e", "cpu"]
        command += ["-c", str(partial / "hub"), "--extra_options", f"fuse_qkv={str(packed).lower()}"]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"}
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=3600, check=False
        )
        if done.returncode != 0 or not (partial / "graph" / "model.onnx").is_file():
            last = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise ExportError(f"onnxruntime-genai's model builder could not build {source}: {last}")
        # Rename is atomic: an interrupted build leaves nothing that looks whole.
        if destination.exists():
            shutil.rmtree(destination)
        (partial / "graph").rename(destination)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _layer_of(initializer: str, *, tied: bool) -> str | None:
    match = _BLOCK.fullmatch(initializer)
    if match is not None:
        part = "self_attn" if match[2] == "attn" else "mlp"
        return f"model.layers.{match[1]}.{part}.{match[3]}"
    if initializer == "lm_head.MatMul.weight":
        return EMBEDDING if tied else HEAD
    if initializer == "model.embed_tokens.weight":
        return EMBEDDING
    return None
