"""`toggle-edge deploy` and `rollback`: validate a bundle on a device, then switch it in, or go back."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from toggle_runtime.plan import Plan
from toggle_runtime.records import PASS

from toggle_edge.bundle import read_bundle
from toggle_edge.errors import InputError, StudyError
from toggle_edge.fleet.active import roll_back, switch_in
from toggle_edge.fleet.device import load_device
from toggle_edge.pipeline.exporting import ExportOptions, run_export
from toggle_edge.pipeline.validation import PLAN, ValidateOptions, describe, run_validate
from toggle_edge.profiles import load_profile
from toggle_edge.report.deployment import DeployResult, RollbackResult
from toggle_edge.report.progress import Reporter
from toggle_edge.store import DEFAULT_URL, open_store
from toggle_edge.workspace import workspace


@dataclass(frozen=True)
class DeployOptions:
    """What `toggle-edge deploy` may be told. With `bundle` that one is deployed; else what `study` (None: the store's
    only one) selects in `mode`, exported into `bundles`. `output` keeps the runs, as `validate` does."""

    device: str
    bundle: Path | None = None
    mode: str | None = None
    study: str | None = None
    store: str = DEFAULT_URL
    bundles: Path = Path("toggle-edge-bundles")
    allow_unsigned: bool = False
    output: Path = Path("toggle-edge-runs")
    plan: Plan = PLAN
    restarts: int | None = None


def run_deploy(options: DeployOptions, report: Reporter) -> DeployResult:
    """Ship, validate, switch in. Whatever is not PASS switches nothing.

    Raises InputError before anything is sent, FleetError when the device cannot be used, AgentError where the bundle is
    not healthy there; what was active before then still is.
    """
    device = load_device(options.device)
    if options.bundle is not None and options.study is not None:
        raise InputError("deploy: expected --bundle or --study, got both; a bundle is deployed as it is")
    folder = options.bundle or _exported(options, report)
    validation = run_validate(
        ValidateOptions(
            options.device,
            folder,
            options.mode,
            options.allow_unsigned,
            options.output,
            options.plan,
            restarts=options.restarts,
        ),
        report,
    )
    if validation.outcome != PASS:
        return DeployResult(options.device, validation, None)

    def on_progress(event: Mapping[str, object]) -> None:
        report("deploy", 0, 1, describe(event))

    deployment = switch_in(
        device,
        read_bundle(folder, allow_unsigned=options.allow_unsigned),
        allow_unsigned=options.allow_unsigned,
        on_progress=on_progress,
    )
    report("deploy", 1, 1, "switched in")
    return DeployResult(options.device, validation, deployment)


def run_rollback(name: str, report: Reporter) -> RollbackResult:
    """Switch a device back to the bundle before. Raises FleetError where there is none, or it cannot be used."""
    device = load_device(name)
    deployment = roll_back(device, on_progress=lambda event: report("rollback", 0, 1, describe(event)))
    report("rollback", 1, 1, "switched back")
    return RollbackResult(device, deployment)


def _exported(options: DeployOptions, report: Reporter) -> Path:
    """What the study selects, as a bundle in `bundles`; the same selection is the same folder."""
    with open_store(options.store) as store:
        names = sorted(study.name for study in store.studies())
        if options.study is None and len(names) != 1:
            raise StudyError(
                f"deploy: expected --bundle or --study, since {options.store} has "
                f"{'no studies' if not names else 'several: ' + ', '.join(names)}"
            )
        study = store.study(options.study or names[0])
    if study.profile_path is None:
        raise StudyError(f"study {study.name!r} does not note its profile; export a bundle, and deploy that")
    mode = options.mode or load_profile(study.profile_path).default_mode
    with workspace(options.bundles) as bundles:
        fresh = bundles / "export.partial"
        exported = run_export(ExportOptions(study.name, fresh, mode=mode, store=options.store), report)
        folder = bundles / exported.bundle.digest[:16]
        if folder.exists():
            shutil.rmtree(fresh)
        else:
            fresh.rename(folder)
        return folder
