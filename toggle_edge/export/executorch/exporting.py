"""The exporter of `executorch-xnnpack`, on the host's side: refuse what cannot be, then let another process lower.

The artifact is `model.pte`, a program with two methods, and `weights/`, a data file for each layer. Candidates share
the files of layers that they have in common; the program, a few kB for each block, is each one's own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from toggle_runtime import canary as compared

from toggle_edge.compress.quantise import CompressedLayer
from toggle_edge.errors import ConfigError, ExportError, ParityError
from toggle_edge.export import canary
from toggle_edge.export.artifact import artifact_in
from toggle_edge.export.executorch import EXECUTORCH
from toggle_edge.export.executorch.job import (
    ARTIFACT,
    CANARY,
    EXPORT_CODE,
    PARITY_CODE,
    RESULT,
    Job,
    read_result,
    write_job,
)
from toggle_edge.export.executorch.overlay import PINS, overlay
from toggle_edge.export.request import Made, Request
from toggle_edge.export.shelf import key_of, put, taken
from toggle_edge.model.layers import Layer
from toggle_edge.model.load import LanguageModel
from toggle_edge.model.placement import device_of
from toggle_edge.targets import EMBEDDING, target_named

ARCHITECTURES = ("gpt2", "llama", "qwen2", "qwen3")
"""Those that are written out for XNNPACK. Tested with structure removed too."""

CAPACITY = 1024
"""Most tokens of a text: attention reads the whole cache at each step, and the program plans memory for it."""

SIGNAL_TOKENS = 256
"""Most tokens of a probe: all attention rows are kept until the end of a call."""


def why_not(model: LanguageModel) -> str | None:
    """Why a model cannot be lowered, None where it may be."""
    config: Any = model.module.config
    if config.model_type not in ARCHITECTURES:
        return (
            f"expected an architecture among {', '.join(ARCHITECTURES)}, got {config.model_type!r}; others can be "
            "searched and checked, and not exported yet"
        )
    activation = getattr(config, "hidden_act", None) or getattr(config, "activation_function", None)
    expected = "gelu_new" if config.model_type == "gpt2" else "silu"
    if activation != expected:
        return f"expected {expected!r} as its activation, got {activation!r}"
    if getattr(config, "use_sliding_window", False):
        return "its attention slides, and only attention to all tokens before is written out"
    by_layer = getattr(config, "scale_attn_by_inverse_layer_idx", False)
    if by_layer or not getattr(config, "scale_attn_weights", True):
        return "its attention is scaled in another way than by the root of a head's size"
    return None


_SOURCES = Path(__file__).resolve().parent


def begin(model: LanguageModel, _cache: Path) -> None:
    """Refuse early: raises ExportError for a model that cannot be lowered, or where the overlay cannot be fetched.
    There is nothing that all candidates of a model share."""
    if (why := why_not(model)) is not None:
        raise ExportError(f"export of {model.folder}: {why}")
    overlay()


def export(_begun: None, request: Request, folder: Path) -> Made:
    """Lower a candidate into the new `folder`, or take it from the shelf, where it was lowered before.

    Raises ConfigError for a format without a kernel, naming the nearest; ParityError when the program is not what was
    searched; ExportError when it cannot be made.
    """
    layers = {layer.name: layer for layer in request.model.remaining(request.config.structure)}
    require_kernels(request.layers, layers)
    tokens = tuple(request.tokens[:SIGNAL_TOKENS])
    with torch.inference_mode():
        read = torch.tensor([list(tokens)], device=device_of(request.candidate))
        logits = request.candidate(input_ids=read, use_cache=False).logits[0].cpu()
    with tempfile.TemporaryDirectory(prefix=".lowering-", dir=folder.parent) as scratch:
        work = Path(scratch)
        context = request.model.shape.context_tokens
        job = Job(
            request.model.folder,
            request.model.digest,
            request.layers,
            request.kept,
            min(CAPACITY, context),
            min(SIGNAL_TOKENS, context),
            tokens,
            min(request.prompt_tokens, len(tokens) - 1),
            logits,
        )
        write_job(job, work)
        key, shelf = job_key(work), request.shelf
        if shelf is None or not taken(shelf, key, work):
            _run(work)
            if shelf is not None:
                made = [path for path in (work / ARTIFACT).rglob("*") if path.is_file()]
                put(shelf, key, work, [CANARY, RESULT, *(str(path.relative_to(work)) for path in made)])
        result = read_result(work)
        shutil.move(work / ARTIFACT, folder)
        shutil.move(work / CANARY, folder.with_suffix(".npz"))
    return Made(
        artifact_in(EXECUTORCH, folder),
        result.parity,
        folder.with_suffix(".npz"),
        activations=result.activations,
        exact_share=result.exact_share,
    )


def job_key(job: Path) -> str:
    """By what a lowered job is found again: its files, what lowers it, and the versions that it does that with."""
    sources = [*_SOURCES.glob("*.py"), *(Path(str(each.__file__)) for each in (canary, compared))]
    named = {f"{path.parent.name}/{path.name}": path for path in sources}
    named |= {path.name: path for path in job.iterdir() if path.is_file()}
    return key_of((*PINS, torch.__version__), named)


def require_kernels(compressed: Mapping[str, CompressedLayer], layers: Mapping[str, Layer]) -> None:
    """Raises ConfigError where a layer is stored in a way that no kernel of the target reads, naming the nearest."""
    target = target_named(EXECUTORCH)
    for name, layer in compressed.items():
        role, fmt = layers[name].role, layer.format
        known = target.formats(role)
        if role == EMBEDDING and layers[name].multiplied:  # the head is multiplied by it
            known &= target.matrices
        if fmt not in known:
            tied = role == EMBEDDING and fmt in target.formats(role)
            raise ConfigError(
                f"{name}: {EXECUTORCH} has no kernel for {fmt}{', and its head is multiplied by it' if tied else ''}; "
                f"the nearest format that it has one for is {target.nearest(fmt, '' if tied else role)}"
            )
        if layer.zero_points is not None:
            raise ConfigError(
                f"{name}: {EXECUTORCH}'s kernels have no zero-point, and the quantiser's lies between two codes; "
                "choose another than seq"
            )
        if layer.scales is not None and not bool((layer.scales > 0).all()):
            raise ConfigError(
                f"{name}: {EXECUTORCH}'s kernels take positive scales only; search for this target, or quantise with "
                "--target executorch-xnnpack"
            )
        if role == EMBEDDING and layer.scales is not None and layer.codes[0].numel() != layer.columns:
            raise ConfigError(
                f"{name}: {fmt} needs a width that is a multiple of {fmt.group} for an embedding, got "
                f"{layer.columns}; choose a smaller group, or int8-axis"
            )


def environment() -> dict[str, str]:
    """This process's environment with the overlay before all else on the path."""
    paths = [str(overlay()), *(path for path in sys.path if path)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}


def _run(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "toggle_edge.export.executorch.lowering", str(folder)],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    if done.returncode in (PARITY_CODE, EXPORT_CODE):
        raise {PARITY_CODE: ParityError, EXPORT_CODE: ExportError}[done.returncode](last)
    raise ExportError(f"executorch: lowering failed with exit code {done.returncode}: {last}")
