"""Parity: the exported graph at `accuracy_level=0` must compute what the searched weights compute in torch."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from toggle_runtime.backends import onnx as backend
from toggle_runtime.canary import TOLERANCE
from toggle_runtime.records import ModelShape

from toggle_edge.errors import ExportError, ParityError
from toggle_edge.export.artifact import Artifact
from toggle_edge.export.attention import move_windows
from toggle_edge.export.kernels import KERNELS
from toggle_edge.export.onnx import GRAPH
from toggle_edge.model.placement import device_of


def check_parity(
    artifact: Artifact,
    shape: ModelShape,
    candidate: torch.nn.Module,
    tokens: Sequence[int],
    *,
    prompt_tokens: int,
) -> float:
    """The largest absolute logit difference between artifact and `candidate` (the module with dequantised weights).

    Compared in one prefill of all `tokens`, and again with the tokens after `prompt_tokens` decoded one by one
    from the cache. Raises ParityError above `TOLERANCE`, or when anything is not finite.
    """
    with torch.inference_mode():
        read = torch.tensor([list(tokens)], device=device_of(candidate))
        expected = candidate(input_ids=read, use_cache=False).logits[0].cpu().numpy()
    with tempfile.TemporaryDirectory(prefix=".parity-", dir=artifact.folder.parent) as scratch:
        copy = _exact_copy(artifact, Path(scratch))
        try:
            model = backend.open_model(copy, shape, GRAPH, threads=1)
            prefill = backend.cached_logits(model, tokens, ())
            decoded = backend.cached_logits(model, tokens[:prompt_tokens], tokens[prompt_tokens:])
        except Exception as exc:  # onnxruntime has an exception class for each of its status codes
            raise ExportError(f"{artifact.folder}: onnxruntime refuses the exported graph: {exc}") from exc
    differences = {
        "prefill": np.abs(prefill - expected).max(),
        "cached decode": np.abs(decoded - expected).max(),
    }
    for path, difference in differences.items():
        if not difference <= TOLERANCE:
            raise ParityError(
                f"{artifact.folder}: expected logits within {TOLERANCE} of the searched weights in {path}, "
                f"got a difference of {difference:.3g}; the artifact is not what was searched and must not ship"
            )
    return float(max(differences.values()))


def with_accuracy_level(model: onnx.ModelProto, level: int) -> onnx.ModelProto:
    """A copy of a graph whose MatMulNBits nodes all compute at `level`."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for node in changed.graph.node:
        for attribute in node.attribute:
            if node.op_type == "MatMulNBits" and attribute.name == "accuracy_level":
                attribute.i = level
    return changed


def _exact_copy(artifact: Artifact, folder: Path) -> Path:
    graph = onnx.load(artifact.folder / GRAPH, load_external_data=False)
    graph = with_accuracy_level(graph, 0)
    move_windows(graph.graph, KERNELS[artifact.target].beside)  # as the onnxruntime here counts them
    (folder / GRAPH).write_bytes(graph.SerializeToString())
    weights: Mapping[str, int] = {
        path: size for path, size in artifact.files.items() if path.startswith("weights/")
    }
    (folder / "weights").mkdir()
    for path in weights:
        try:
            (folder / path).hardlink_to(artifact.folder / path)
        except OSError:  # another file system, or one without links
            shutil.copyfile(artifact.folder / path, folder / path)
    return folder
