"""onnxruntime on a GPU: the same graphs and loop, with CUDA's execution provider in front of the CPU's.

onnxruntime goes on without a word on the CPU where it cannot have the GPU. A bundle for `onnx-cuda` must not, or what
is measured would be of another processor: it is refused with what the session really uses.
"""

from pathlib import Path
from typing import Sequence

import onnxruntime

from toggle_runtime.backends import onnx
from toggle_runtime.backends.onnx import (
    GRAPH,
    SIGNALS_GRAPH,
    OnnxModel,
    cached_logits,
    choices,
    generate,
    outputs,
    provider,
    stream,
    versions,
    write_exact_graph,
)
from toggle_runtime.records import ModelShape

__all__ = [
    "GRAPH",
    "SIGNALS_GRAPH",
    "cached_logits",
    "choices",
    "generate",
    "open_model",
    "outputs",
    "provider",
    "stream",
    "versions",
    "write_exact_graph",
]

CUDA = "CUDAExecutionProvider"


def open_model(folder: Path, shape: ModelShape, graph: str, threads: int) -> OnnxModel:
    """Open `graph` on the GPU. Raises ValueError where the session does not have it."""
    _require(onnxruntime.get_available_providers())
    session, load_ns = onnx.open_session(folder / graph, threads, [CUDA, onnx.CPU])
    _require(session.get_providers())
    return OnnxModel(session, shape, load_ns, "cuda")


def _require(providers: Sequence[str]) -> None:
    if CUDA not in providers:
        raise ValueError(
            f"execution provider: expected {CUDA}, there is {', '.join(providers)}; this onnxruntime or this device "
            "has no CUDA: install onnxruntime-gpu (on a Jetson NVIDIA's own wheel), or export for onnx-cpu"
        )
