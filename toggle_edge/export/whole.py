"""The exporter of ONNX targets from end to end: narrow the graph, put the codes in, check parity, make the canary."""

from __future__ import annotations

import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import toggle_runtime
import torch
import transformers
from toggle_runtime.canary import write_canary
from toggle_runtime.records import ModelShape

from toggle_edge.export.artifact import Artifact
from toggle_edge.export.canary import canary_of
from toggle_edge.export.narrowing import narrowed, narrowed_shape
from toggle_edge.export.onnx import export_onnx, predicted_bytes
from toggle_edge.export.parity import check_parity
from toggle_edge.export.request import Made, Request
from toggle_edge.export.shelf import key_of, put, taken
from toggle_edge.export.skeleton import Skeleton

_CANARY, _PARITY = "canary.npz", "parity.json"


def export_graph(skeleton: Skeleton, request: Request, folder: Path, *, target: str) -> Made:
    """Export a candidate of the skeleton's model into the new `folder`. Raises as its parts do.

    Its files are written each time. What they are compared with is computed once for the same files: that takes
    longest, and memory for all weights.
    """
    shape = request.model.shape
    if request.kept is not None:
        skeleton = narrowed(skeleton, request.model.anatomy, request.config.structure)
        shape = narrowed_shape(shape, request.kept)
    artifact = export_onnx(skeleton, request.layers, folder, target=target)
    with tempfile.TemporaryDirectory(prefix=".compared-", dir=folder.parent) as scratch:
        compared, key = Path(scratch), _key(artifact, request)
        if request.shelf is None or not taken(request.shelf, key, compared):
            _compare(artifact, shape, request, compared)
            if request.shelf is not None:
                put(request.shelf, key, compared, [_CANARY, _PARITY])
        parity = float(json.loads((compared / _PARITY).read_text(encoding="utf-8")))
        shutil.move(compared / _CANARY, folder.with_suffix(".npz"))
    remaining = request.model.remaining(request.config.structure)
    predicted = predicted_bytes(skeleton, remaining, request.config, target=target)
    return Made(artifact, parity, folder.with_suffix(".npz"), predicted_bytes=predicted)


def _compare(artifact: Artifact, shape: ModelShape, request: Request, folder: Path) -> None:
    """Write the parity and the canary of what passed into `folder`."""
    parity = check_parity(
        artifact, shape, request.candidate, request.tokens, prompt_tokens=request.prompt_tokens
    )
    canary = canary_of(
        request.candidate,
        request.tokens,
        vocabulary=shape.vocabulary,
        context_tokens=shape.context_tokens,
    )
    write_canary(folder / _CANARY, canary)
    (folder / _PARITY).write_text(json.dumps(parity), encoding="utf-8")


def _key(artifact: Artifact, request: Request) -> str:
    """By what a comparison is found again: the files, what they were compared with, and what did that."""
    words = (
        artifact.target,
        request.model.digest,
        request.config.digest,
        json.dumps([list(request.tokens), request.prompt_tokens]),
        _makers(),
    )
    return key_of(words, {name: artifact.folder / name for name in artifact.files})


@cache
def _makers() -> str:
    """All of our own sources, and the versions of what they stand on: whatever of it changes may change a number."""
    packages = (Path(__file__).resolve().parents[1], Path(str(toggle_runtime.__file__)).resolve().parent)
    sources = {
        f"{package.name}/{path.relative_to(package).as_posix()}": path
        for package in packages
        for path in package.rglob("*.py")
    }
    versions = [
        f"{each.__name__}=={each.__version__}" for each in (np, onnx, onnxruntime, torch, transformers)
    ]
    return key_of(versions, sources)
