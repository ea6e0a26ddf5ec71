"""`toggle-edge export`: one config of a model, or what a study selects, as a signed bundle."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from toggle_edge.bundle import Bundle, unpack
from toggle_edge.cache import cache_folder
from toggle_edge.config import Config
from toggle_edge.errors import ConfigError, InputError, StudyError
from toggle_edge.export import exporter_for
from toggle_edge.export.kernels import KERNELS
from toggle_edge.export.packing import container
from toggle_edge.model.load import require_whole
from toggle_edge.pipeline.checking import known_mode
from toggle_edge.pipeline.confirming import confirmed
from toggle_edge.pipeline.inputs import check_config_text, config_from, prepared_for
from toggle_edge.pipeline.packing import export, write_probes
from toggle_edge.pipeline.preparing import DEFAULT_TARGET, Prepared, identity_of
from toggle_edge.report.export import ExportResult, StoredLayer
from toggle_edge.report.progress import Reporter
from toggle_edge.signing import signing_key
from toggle_edge.store import DEFAULT_URL, Store, open_store
from toggle_edge.targets import target_named
from toggle_edge.workspace import naming_errors


@dataclass(frozen=True)
class ExportOptions:
    """What `toggle-edge export` may be told. With `config`, `source` is a model's folder; with `mode` or `trial`
    it is a study's name, which knows its profile, probes, quantiser and pruner. `output` must not exist yet, nor
    `unpacked`, where artifact and tokenizer are laid out as engines open them."""

    source: str
    output: Path
    config: str | None = None
    mode: str | None = None
    trial: int | None = None
    target: str = DEFAULT_TARGET
    profile: str = "default"
    probes: tuple[str, ...] = ()
    store: str = DEFAULT_URL
    unsigned: bool = False
    quantiser: str | None = None
    pruner: str | None = None
    unpacked: Path | None = None


def run_export(options: ExportOptions, report: Reporter) -> ExportResult:
    """Write the bundle. Nothing is left at `output` unless all of it could be made and its parity holds."""
    exporter_for(options.target)
    for name, folder in (("output", options.output), ("unpacked", options.unpacked)):
        if folder is not None and folder.exists():
            raise InputError(f"{name} {folder}: expected a new folder, it exists; choose another")
    chosen = [name for name in ("config", "mode", "trial") if getattr(options, name) is not None]
    if len(chosen) != 1:
        raise InputError(
            "export: expected one of --config (of a model), --mode or --trial (of a study), got "
            f"{' and '.join('--' + name for name in chosen) or 'none of them'}"
        )
    if options.config is not None:
        check_config_text(options.config)
        prepared = prepared_for(
            Path(options.source),
            options.profile,
            options.probes,
            report,
            quantiser=options.quantiser,
            pruner=options.pruner,
            target=options.target,
        )
        return _written(prepared, config_from(options.config, prepared.model), None, options, report)
    with open_store(options.store) as store:
        prepared, config, trial = _of_study(store, options, report)
    return _written(prepared, config, trial, options, report)


def _of_study(store: Store, options: ExportOptions, report: Reporter) -> tuple[Prepared, Config, int]:
    study = store.study(options.source)
    exporter_for(study.target)
    if study.model_folder is None or study.profile_path is None or study.probes_path is None:
        raise StudyError(
            f"study {study.name!r} was begun by an older toggle-edge, which did not note where its model, profile and "
            "probes are; export with a model and --config instead"
        )
    prepared = prepared_for(
        Path(study.model_folder),
        Path(study.profile_path),
        study.probes_path.split("\n"),
        report,
        quantiser=study.quantiser,
        pruner=study.pruner,
        target=study.target,
    )
    # Refuses when any of them has changed.
    store.open_study(study.name, identity_of(prepared, study.seed, study.batch))
    trials = store.ledger(study.id).trials()
    if options.mode is not None:
        mode = known_mode(options.mode, prepared.specification)
        selected = confirmed(prepared, trials, store, study.id, report, modes=[mode])[mode]
        if selected is None:
            raise ConfigError(
                f"study {study.name!r}: none of its {len(trials)} trials is feasible in mode {options.mode}; "
                "search on with more --trials"
            )
        return prepared, selected.trial.config, selected.trial.index
    for trial in trials:
        if trial.index == options.trial:
            return prepared, trial.config, trial.index
    raise ConfigError(
        f"study {study.name!r}: expected a trial from 0 to {len(trials) - 1}, got {options.trial}"
    )


def _written(
    prepared: Prepared, config: Config, trial: int | None, options: ExportOptions, report: Reporter
) -> ExportResult:
    remaining = prepared.model.remaining(config.structure)
    target_named(prepared.target).require(config, {layer.name: layer.role for layer in remaining})
    require_whole(prepared.model)
    key = None if options.unsigned else signing_key()
    report("export", 0, 2, "preparing")
    with naming_errors(options.output.parent):
        begun = exporter_for(prepared.target).begin(prepared.model, cache_folder() / "skeletons")
        report("export", 1, 2, "packing the weights")
        with tempfile.TemporaryDirectory(prefix="toggle-edge-") as scratch:
            extra = write_probes(prepared, Path(scratch))
            exported = export(prepared, config, begun, extra, options.output, key=key, report=report)
        if options.unpacked is not None:
            _unpack(exported.bundle, options.unpacked)
    whose = "the searched weights" if exported.activations is None else "torchao's on the same codes"
    report("export", 2, 2, f"logits within {exported.parity:.1e} of {whose}")
    return ExportResult(
        exported.bundle,
        config,
        trial,
        exported.parity,
        prepared.cost(config).proxy_bytes,
        exported.predicted_bytes,
        _stored(prepared, config),
        options.unpacked,
        exported.activations,
        exported.exact_share,
    )


def _unpack(bundle: Bundle, folder: Path) -> None:
    """Lay it out, or leave no bundle either: what was asked for is there whole or not at all."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unpack(bundle, folder)
    except BaseException:
        shutil.rmtree(bundle.folder, ignore_errors=True)
        raise


def _stored(prepared: Prepared, config: Config) -> tuple[StoredLayer, ...]:
    """What each layer takes; nothing where a target's format does not keep them apart."""
    if prepared.target not in KERNELS:
        return ()
    formats = dict(config)
    return tuple(
        StoredLayer(
            each.name,
            each.role,
            str(formats[each.name]),
            each.weights,
            container(formats[each.name], each.rows, each.columns),
        )
        for each in prepared.model.remaining(config.structure)
    )
