"""One config as a signed bundle on the host: exported, compared with what was searched, packed with its probes."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from toggle_runtime.reduction import Limits, reduce_baseline
from toggle_runtime.reduction_files import write_reduced
from toggle_runtime.signals import SignalsError
from toggle_runtime.verdicts import signals_read

from toggle_edge import __version__
from toggle_edge.bundle import BASELINE, CANARY, PROBES, TOKENIZER, Bundle, build_bundle
from toggle_edge.cache import cache_folder
from toggle_edge.compress.quantise import CompressedLayer
from toggle_edge.config import Config
from toggle_edge.errors import ProbeError
from toggle_edge.export import Request, exporter_for, narrowed_shape
from toggle_edge.pipeline.preparing import Prepared
from toggle_edge.probes import probes_to_json
from toggle_edge.report.progress import Reporter, silent
from toggle_edge.signing import SigningKey

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
"""What transformers saves of a tokenizer, as far as a model has it."""


@dataclass(frozen=True)
class Exported:
    """A config as a bundle on the host, the largest logit difference of its parity, and what its artifact was predicted
    to weigh in bytes, None where it is not predicted. `activations` and `exact_share` as of
    `Made`."""

    config: Config
    bundle: Bundle
    parity: float
    predicted_bytes: int | None
    activations: float | None = None
    exact_share: float | None = None


class _Reported(Mapping[str, CompressedLayer]):
    """Layers, and word of how many of them have been asked for."""

    def __init__(self, layers: Mapping[str, CompressedLayer], report: Reporter) -> None:
        self._layers, self._report = layers, report
        self._asked: set[str] = set()

    def __getitem__(self, name: str) -> CompressedLayer:
        layer = self._layers[name]
        self._asked.add(name)
        self._report("layers", len(self._asked), len(self._layers), name)
        return layer

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


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
    return {PROBES: probes, BASELINE: baseline, **tokenizer_files(prepared.model.folder)}


def tokenizer_files(folder: Path) -> dict[str, Path]:
    """What there is of a model's tokenizer, by its path in a bundle."""
    return {f"{TOKENIZER}/{name}": folder / name for name in TOKENIZER_FILES if (folder / name).is_file()}


def export(
    prepared: Prepared,
    config: Config,
    begun: Any,
    extra: Mapping[str, Path],
    folder: Path,
    *,
    key: SigningKey | None,
    report: Reporter = silent,
) -> Exported:
    """Export one config, check its parity with the searched weights, and bundle it into `folder`, signed by `key`.

    `begun` is what the target's exporter began with. An existing `folder` is replaced. Raises ParityError when the
    artifact is not what was searched, ProbeError when a probe is too long for the target.
    """
    model, exporter, probe = prepared.model, exporter_for(prepared.target), prepared.probes.certificate[0]
    longest = max(len(each.tokens) - 1 for each in prepared.probes.certificate)
    if exporter.probe_tokens is not None and longest > exporter.probe_tokens:
        raise ProbeError(
            f"probes: artifacts for {prepared.target} give signals of texts of up to {exporter.probe_tokens} tokens, "
            f"the longest probe has {longest}; choose shorter ones"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    kept = prepared.bank.kept(config.structure)
    request = Request(
        model,
        config,
        _Reported(prepared.bank.compressed(config), report),
        kept,
        partial(prepared.bank.assemble, config),
        probe.tokens,
        probe.prompt_tokens,
        cache_folder() / "exports",
    )
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
    return Exported(config, bundle, made.parity, made.predicted_bytes, made.activations, made.exact_share)
