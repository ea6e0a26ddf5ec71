"""Runs onnxruntime-genai's model builder on a model without its weights: only the graph is wanted of it.

A process of its own: the builder prints as it goes, and leaves global state of torch behind. Its arguments are our
process's id and the builder's own.
"""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

WEIGHT = re.compile(
    r"model\.layers\.\d+\.(attn|mlp)\.\w+_proj\.MatMul\.weight|lm_head\.MatMul\.weight|model\.embed_tokens\.weight"
)
"""What the builder calls the matrices that we put our own weights in place of."""


def main() -> None:
    """Raises what the builder raises; the process then ends with a traceback."""
    from toggle_runtime.supervise import die_with_parent

    die_with_parent(int(sys.argv.pop(1)))
    source = Path(sys.argv[sys.argv.index("-i") + 1])
    import onnx_ir
    import transformers

    module = hollow(source)
    loader: Any = transformers.AutoModelForCausalLM
    loader.from_pretrained = lambda *_, **__: module
    onnx_ir.save = _without_weights(onnx_ir.save)
    runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__", alter_sys=True)


def hollow(folder: Path) -> Any:
    """The model in `folder` with zeros for its layers' weights, all of them one number in memory."""
    import torch

    from toggle_edge.model.load import load_model

    module: Any = load_model(folder, streamed=True).module
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None and parameter.is_meta:
                zeros = torch.zeros(()).expand(parameter.shape)
                owner._parameters[name] = torch.nn.Parameter(zeros, requires_grad=False)
    return module


def _without_weights(save: Callable[..., Any]) -> Callable[..., Any]:
    """onnx_ir's `save`, of a graph whose weights are empty: else gigabytes of zeros would be written."""

    def saved(model: Any, *arguments: Any, **options: Any) -> Any:
        import numpy as np
        import onnx_ir

        for name, value in model.graph.initializers.items():
            if WEIGHT.fullmatch(name):
                value.const_value = onnx_ir.tensor(np.zeros(0, dtype=np.float32), name=name)
        return save(model, *arguments, **options)

    return saved
