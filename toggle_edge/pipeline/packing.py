"""One config as a signed bundle on the host: exported, compared with what was searched, packed with its probes."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from toggle_runtime.reduction import Limits, reduce_baseline
from toggle_runtime.reduction_files import write_reduced
from toggle_runtime.signals import SignalsError
from toggle_runtime.verdicts import signals_read

from toggle_edge import __version__
from toggle_edge.bundle import BASELINE, CANARY, PROBES, Bundle, build_bundle
from toggle_edge.config import Config
from toggle_edge.errors import ProbeError
from toggle_edge.export import Request, exporter_for, narrowed_shape
from toggle_edge.pipeline.preparing import Prepared
from toggle_edge.probes import probes_to_json
from toggle_edge.signing import SigningKey


@dataclass(frozen=True)
class Exported:
    """A config as a bundle on the host, the largest logit difference of its parity, and what its artifact was predicted
    to weigh in bytes, None where it is not predicted. `activations` as of `Made`."""

    config: Config
    bundle: Bundle
    parity: float
    predicted_bytes: int | None
    activations: float | None = None


def write_probes(prepared: Prepared, folder: Path) -> dict[str, Path]:
    """Write what bundles carry beside the artifact: certificate probes with their reduced baseline, the tokenizer.

    Raises ProbeError when a probe's baseline is larger than the profile allows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    probes, baseline = folder / "probes.json", folder / "baseline.npz"
    probes.write_text(probes_to_json(prepared.probes.certificate), encoding="utf-8")
    counts, wanted = prepared.profile.probes, signals_read(prepared.specification)
    limits = Limits(
        distribution_ids=counts.distribution_ids,
        attention_ids=counts.attention_ids,
        probe_bytes=counts.probe_bytes,
    )
    pairs = zip(prepared.probes.certificate, prepared.certifier.baseline, strict=True)
    try:
        reduced = [
            reduce_baseline(outputs, np.array(probe.continuation), probe.prompt_tokens, wanted, limits)
            for probe, outputs in pairs
        ]
    except SignalsError as exc:
        raise ProbeError(f"probes: their baseline cannot be reduced for the device: {exc}") from exc
    write_reduced(baseline, reduced)
    extra = {PROBES: probes, BASELINE: baseline}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (prepared.model.folder / name).is_file():
            extra[f"tokenizer/{name}"] = prepared.model.folder / name
    return extra


def export(
    prepared: Prepared,
    config: Config,
    begun: Any,
    extra: Mapping[str, Path],
    folder: Path,
    *,
    key: SigningKey | None,
) -> Exported:
    """Export one config, check its parity with the searched weights, and bundle it into `folder`, signed by `key`.

    `begun` is what the target's exporter began with. An existing `folder` is replaced. Raises ParityError when the
    artifact is not what was searched.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    model, exporter, probe = prepared.model, exporter_for(prepared.target), prepared.probes.certificate[0]
    kept = prepared.bank.kept(config.structure)
    layers = prepared.bank.compressed(config)
    candidate = prepared.bank.assemble(config)
    request = Request(model, config, layers, kept, candidate, probe.tokens, probe.prompt_tokens)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=folder.parent) as scratch:
        made = exporter.export(begun, request, Path(scratch) / "artifact")
        built = build_bundle(
            Path(scratch) / "bundle",
            made.artifact,
            config=config,
            shape=model.shape if kept is None else narrowed_shape(model.shape, kept),
            specification=prepared.specification,
            default_mode=prepared.profile.default_mode,
            extra={**extra, CANARY: made.canary},
            key=key,
            environment={
                "toggle_edge": __version__,
                "exporter": prepared.target,
                "model": model.digest,
            },
        )
        if folder.exists():
            shutil.rmtree(folder)
        built.folder.rename(folder)
    bundle = dataclasses.replace(built, folder=folder)
    return Exported(config, bundle, made.parity, made.predicted_bytes, made.activations)
