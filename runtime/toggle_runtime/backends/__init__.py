"""One module per inference engine, found by the bundle's target. Imported by the worker only.

A backend module has `open_model(folder, shape, graph, threads)` and, on what that returns,
`generate(model, prompt, tokens)`, `stream(model, prompt, tokens)`, `outputs(model, batch, states)`,
`choices(model, batch)` and `cached_logits(model, prompt, continuation)`; `write_exact_graph(folder)` names the
graph that the parity pass opens, `provider(model)` and `versions()` say what computes.
"""

import importlib
from typing import Any

BACKENDS = {
    **dict.fromkeys(("onnx-cpu", "onnx-cpu-1.23", "onnx-cpu-1.19"), "toggle_runtime.backends.onnx"),
    "onnx-cuda": "toggle_runtime.backends.onnx_cuda",
    "executorch-xnnpack": "toggle_runtime.backends.executorch",
}


def backend_for(target: str) -> Any:
    """The backend module of a target. Raises ValueError naming the known targets."""
    if target not in BACKENDS:
        raise ValueError(f"target: this agent runs {sorted(BACKENDS)}, the bundle is for {target!r}")
    return importlib.import_module(BACKENDS[target])
