"""The exporter of ONNX targets from end to end: narrow the graph, put the codes in, check parity, make the canary."""

from __future__ import annotations

from pathlib import Path

from toggle_runtime.canary import write_canary

from toggle_edge.export.canary import canary_of
from toggle_edge.export.narrowing import narrowed, narrowed_shape
from toggle_edge.export.onnx import export_onnx, predicted_bytes
from toggle_edge.export.parity import check_parity
from toggle_edge.export.request import Made, Request
from toggle_edge.export.skeleton import Skeleton


def export_graph(skeleton: Skeleton, request: Request, folder: Path, *, target: str) -> Made:
    """Export a candidate of the skeleton's model into the new `folder`. Raises as its parts do."""
    shape = request.model.shape
    if request.kept is not None:
        skeleton = narrowed(skeleton, request.model.anatomy, request.config.structure)
        shape = narrowed_shape(shape, request.kept)
    artifact = export_onnx(skeleton, request.layers, folder, target=target)
    parity = check_parity(
        artifact, shape, request.candidate, request.tokens, prompt_tokens=request.prompt_tokens
    )
    canary = canary_of(
        request.candidate,
        request.tokens,
        vocabulary=shape.vocabulary,
        context_tokens=shape.context_tokens,
    )
    write_canary(folder.with_suffix(".npz"), canary)
    remaining = request.model.remaining(request.config.structure)
    predicted = predicted_bytes(skeleton, remaining, request.config, target=target)
    return Made(artifact, parity, folder.with_suffix(".npz"), predicted_bytes=predicted)
