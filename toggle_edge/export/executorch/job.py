"""What the process that exports tells the one that lowers, and what comes back. Files in one folder, no pickle."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from toggle_edge.compress.quantise import CompressedLayer
from toggle_edge.config import Format
from toggle_edge.structure import Kept, KeptBlock

ARTIFACT, CANARY, RESULT = "artifact", "canary.npz", "result.json"
PARITY_CODE, EXPORT_CODE = 4, 5
"""Exit codes of the process for a ParityError and for any other error of ours."""

_JOB, _LAYERS = "job.json", "layers.safetensors"
_LOGITS = "/logits"


@dataclass(frozen=True)
class Job:
    """A candidate to lower: the model's folder and digest, its compressed layers by their names in the baseline, what
    is kept of its structure (None: all), and a text with the logits of the searched weights, tokens x vocabulary.

    The program decodes up to `capacity` tokens, and gives signals of up to `signal_tokens`.
    """

    model: Path
    digest: str
    layers: Mapping[str, CompressedLayer]
    kept: Kept | None
    capacity: int
    signal_tokens: int
    tokens: tuple[int, ...]
    prompt_tokens: int
    logits: torch.Tensor


@dataclass(frozen=True)
class Lowered:
    """Largest absolute logit differences: of the program to torchao's reference of the same codes (`parity`), of the
    written-out decoder with the searched weights to the model's own modules (`decoder`), and of torchao's reference to
    these (`activations`). `exact_share` of short texts agree where rounding of activations hides it, else None."""

    parity: float
    exact_share: float | None
    decoder: float
    activations: float


def write_job(job: Job, folder: Path) -> None:
    tensors, formats = {_LOGITS: job.logits.float().contiguous()}, {}
    for name, layer in job.layers.items():
        formats[name] = [str(layer.format), layer.rows, layer.columns]
        tensors[f"{name}/codes"] = layer.codes.contiguous()
        if layer.scales is not None:
            tensors[f"{name}/scales"] = layer.scales.contiguous()
    save_file(tensors, folder / _LAYERS)
    data = {
        **dataclasses.asdict(dataclasses.replace(job, layers={}, logits=torch.empty(0))),
        "model": str(job.model.absolute()),
        "layers": formats,
        "logits": None,
    }
    (folder / _JOB).write_text(json.dumps(data), encoding="utf-8")


def read_job(folder: Path) -> Job:
    data, tensors = json.loads((folder / _JOB).read_text(encoding="utf-8")), load_file(folder / _LAYERS)
    layers = {}
    for name, (text, rows, columns) in data["layers"].items():
        codes: torch.Tensor = tensors[f"{name}/codes"]
        layers[name] = CompressedLayer(
            Format.parse(text), rows, columns, codes, tensors.get(f"{name}/scales")
        )
    kept = data["kept"] and Kept(
        data["kept"]["blocks"],
        tuple(
            KeptBlock(each["block"], tuple(each["kv_groups"]), tuple(each["channels"]))
            for each in data["kept"]["remaining"]
        ),
    )
    return Job(
        Path(data["model"]),
        data["digest"],
        layers,
        kept,
        data["capacity"],
        data["signal_tokens"],
        tuple(data["tokens"]),
        data["prompt_tokens"],
        tensors[_LOGITS],
    )


def write_result(result: Lowered, folder: Path) -> None:
    """Written last: without it the process did not finish."""
    (folder / RESULT).write_text(json.dumps(dataclasses.asdict(result)), encoding="utf-8")


def read_result(folder: Path) -> Lowered:
    return Lowered(**json.loads((folder / RESULT).read_text(encoding="utf-8")))
