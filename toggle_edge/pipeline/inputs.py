"""What a command was given, found: the model, the profile, the probes, and one config written as text or a file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from toggle_edge.compress.bank import require_layers
from toggle_edge.compress.prune import pruner_named
from toggle_edge.compress.quantise import quantiser_named
from toggle_edge.config import Config, Format
from toggle_edge.errors import ConfigError, ProbeError
from toggle_edge.model.load import LanguageModel
from toggle_edge.pipeline.preparing import DEFAULT_TARGET, Prepared, prepare
from toggle_edge.profiles import Profile, load_profile
from toggle_edge.report.progress import Reporter
from toggle_edge.sources import ProbeSource
from toggle_edge.specification import weakened

MAX_CONFIG_BYTES = 64 << 20


def demo_folder() -> Path:
    """Where the demo model lies: in an installed wheel, else in the checkout."""
    package = Path(__file__).resolve().parents[1]
    packed = package / "_data" / "demo"
    return packed if packed.is_dir() else package.parent / "demo"


def sources_for(model: Path, profile: Profile, given: Sequence[str]) -> tuple[tuple[ProbeSource, ...], str]:
    """The probes to use and a sentence that says which: those given, the profile's, the model's own, or the built-in
    stories. What is chosen is never replaced by something else when it cannot be read."""
    if given:
        return tuple(ProbeSource.parse(text) for text in given), f"probes from {', '.join(given)}"
    if profile.probes.data:
        named = ", ".join(profile.probes.data)
        folder = profile.path.parent
        return (
            tuple(ProbeSource.parse(text, folder) for text in profile.probes.data),
            f"probes of profile {profile.name}: {named}",
        )
    own = model / "probes.jsonl"
    if own.is_file():
        return (ProbeSource(None, str(own)),), f"probes from {own}"
    return (
        (ProbeSource(None, str(demo_folder() / "probes.jsonl")),),
        "built-in probes (beginnings of children's stories); pass --probes for texts of your own use",
    )


def prepared_for(
    model: Path,
    profile: str | Path,
    probes: Sequence[str],
    report: Reporter,
    *,
    relax: float = 0.0,
    quantiser: str | None = None,
    pruner: str | None = None,
    target: str = DEFAULT_TARGET,
) -> Prepared:
    """Load and check everything that a command on a model needs. Bad input is refused before anything is written.

    `relax` weakens the profile's thresholds by that share of their size, before any mode does; `quantiser` and
    `pruner` replace the profile's.
    """
    contract = weakened(load_profile(profile), relax)
    if quantiser is not None:
        quantiser_named(quantiser)
        contract = dataclasses.replace(contract, quantiser=quantiser)
    if pruner is not None:
        pruner_named(pruner)
        contract = dataclasses.replace(contract, pruner=pruner)
    sources, which = sources_for(model, contract, probes)
    try:
        prepared = prepare(model, contract, sources, report, target=target)
    except ProbeError as exc:
        if probes or not contract.probes.data:
            raise
        raise ProbeError(
            f"{exc}\n  These are the probes that profile {contract.path} names in probes.data; "
            "name others with --probes [KIND:]PATH"
        ) from exc
    report("probes", 1, 1, which)
    return prepared


def check_config_text(text: str) -> None:
    """Raises ConfigError for what is neither a config's file nor a format, before a model is loaded for it."""
    if _is_file(text):
        _read_config(Path(text))
        return
    try:
        Format.parse(text)
    except ConfigError as exc:
        raise ConfigError(f"config {text!r}: neither a file nor a format: {exc}") from exc


def _is_file(text: str) -> bool:
    return Path(text).suffix == ".json" or Path(text).is_file()


def config_from(text: str, model: LanguageModel) -> Config:
    """A config from the name of a file that holds `{layer: format}` (or formats, sparsities and structure), or one
    format for all layers.

    Raises ConfigError when it is neither, or when the file's layers are not those that its structure leaves.
    """
    check_config_text(text)
    if not _is_file(text):
        return Config.uniform(tuple(layer.name for layer in model.layers), Format.parse(text))
    path = Path(text)
    config = _read_config(path)
    try:
        require_layers(model, config)
    except ConfigError as exc:
        raise ConfigError(f"config {path}: {exc}; is it a config of another model?") from exc
    return config


def _read_config(path: Path) -> Config:
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ConfigError(f"config {path}: expected at most {MAX_CONFIG_BYTES} bytes")
        data = json.loads(path.read_text(encoding="utf-8"))
        return Config.from_json(data)
    except OSError as exc:
        raise ConfigError(f"config {path}: expected a readable file: {exc.strerror}") from exc
    except (ValueError, RecursionError) as exc:  # ConfigError is one too, and then says which layer
        raise ConfigError(f"config {path}: {exc}") from exc
