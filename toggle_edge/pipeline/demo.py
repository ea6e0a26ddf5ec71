"""`toggle-edge demo`: every stage once, on the demo model, with this machine as the device."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from toggle_runtime.plan import Plan

from toggle_edge.export import build_skeleton
from toggle_edge.fleet.deploy import run_bundle
from toggle_edge.fleet.device import Device, load_device
from toggle_edge.fleet.sshd import LoopbackSshd, sshd_path
from toggle_edge.pipeline.confirming import confirmed
from toggle_edge.pipeline.inputs import demo_folder
from toggle_edge.pipeline.judging import Judged, judge_run
from toggle_edge.pipeline.packing import Exported, export, write_probes
from toggle_edge.pipeline.preparing import Prepared, identity_of, prepare
from toggle_edge.pipeline.reranking import BASELINE_ID, candidate_id, rerank
from toggle_edge.pipeline.trials import search, stored_sensitivities
from toggle_edge.pipeline.validation import describe, processes_of, starts_a_process
from toggle_edge.profiles import load_profile
from toggle_edge.report.loop import LoopResult
from toggle_edge.report.progress import Reporter
from toggle_edge.search.finalists import finalists
from toggle_edge.search.trial import Trial
from toggle_edge.signing import signing_key
from toggle_edge.sources import ProbeSource
from toggle_edge.store import Store, open_store
from toggle_edge.workspace import workspace

DEVICE_NAME = "this-machine"
DEMO_PROBES = ProbeSource(None, str(demo_folder() / "probes.jsonl"))
PLAN = Plan(
    ["parity", "verify", "capacity", "latency", "memory", "energy"],
    restarts=10,
    generations=3,
    warmups=1,
    tokens=48,
)


@dataclass(frozen=True)
class DemoOptions:
    """What `toggle-edge demo` may be told. `work` is where everything is kept; a second run goes on there."""

    work: Path
    trials: int = 36
    candidates: int = 5
    seed: int = 0
    local: bool = False
    plan: Plan = PLAN
    profile: str = "default"


def run_demo(options: DemoOptions, report: Reporter) -> LoopResult:
    """The whole loop, once. Raises ToggleEdgeError when a stage cannot be done at all."""
    started = time.monotonic()
    # One thread: a model this small gains nothing from more, and on a busy machine threads that wait for each
    # other cost far more than they bring. The result then does not depend on the number of cores either.
    torch.set_num_threads(1)
    profile = load_profile(options.profile)
    with workspace(options.work) as work:
        prepared = prepare(demo_folder() / "model", profile, [DEMO_PROBES], report)
        with open_store(f"sqlite:///{work / 'toggle-edge.sqlite'}") as store:
            stored = store.open_study(f"demo-{options.seed}", identity_of(prepared, options.seed))
            trials = search(
                prepared,
                store.ledger(stored.id),
                sensitivities=stored_sensitivities(prepared, store, stored, report),
                seed=options.seed,
                max_trials=options.trials,
                report=report,
            )
            confirmations = confirmed(prepared, trials, store, stored.id, report)
            selected = {mode: each.trial if each else None for mode, each in confirmations.items()}
            chosen = finalists(trials, selected, options.candidates)
            exported = _export_all(prepared, chosen, work, report)
            with this_machine(work, local=options.local, report=report) as device:
                judged = _run_all(prepared, exported, device, options.plan, work, store, stored.id, report)
    return rerank(
        prepared,
        device,
        stored.name,
        trials,
        selected,
        chosen,
        exported,
        judged,
        config_files={name: str(_config_file(work, name)) for name in exported},
        seconds=time.monotonic() - started,
    )


def _export_all(
    prepared: Prepared, chosen: Sequence[Trial], work: Path, report: Reporter
) -> dict[str, Exported]:
    report("export", 0, len(chosen) + 1, "building the graph")
    skeleton = build_skeleton(prepared.model, work / "skeletons")
    extra, key = write_probes(prepared, work / "probes"), signing_key()
    configs = {BASELINE_ID: prepared.baseline, **{candidate_id(trial): trial.config for trial in chosen}}
    exported = {}
    for index, (name, config) in enumerate(configs.items()):
        (work / "configs").mkdir(exist_ok=True)
        _config_file(work, name).write_text(json.dumps(config.to_json(), indent=1) + "\n", encoding="utf-8")
        exported[name] = export(prepared, config, skeleton, extra, work / "bundles" / name, key=key)
        worst = max(entry.parity for entry in exported.values())
        report("export", index + 1, len(configs), f"logits within {worst:.1e} of the searched weights")
    return exported


@contextmanager
def this_machine(work: Path, *, local: bool, report: Reporter) -> Iterator[Device]:
    """This machine as a device: behind a real sshd of our own where there is one, else directly."""
    if local or sshd_path() is None:
        if not local:
            report("sshd", 1, 1, "not found: using the local transport; install openssh-server for SSH")
        device = Device(
            name=DEVICE_NAME, transport="local", root=str(work / "device" / "device"), python=sys.executable
        )
        yield _through_file(device, work)
    else:
        with LoopbackSshd(work / "device", DEVICE_NAME) as sshd:
            yield _through_file(sshd.device, work)


def _through_file(device: Device, work: Path) -> Device:
    # Written and read back: the demo's device is registered the way every device is.
    path = work / "devices" / f"{device.name}.toml"
    path.parent.mkdir(exist_ok=True)
    keys = (
        "name",
        "target",
        "transport",
        "host",
        "port",
        "user",
        "host_key",
        "identity",
        "root",
        "python",
        "threads",
    )
    lines = [f"{key} = {json.dumps(getattr(device, key))}" for key in keys]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return load_device(path)


def _run_all(
    prepared: Prepared,
    exported: Mapping[str, Exported],
    device: Device,
    plan: Plan,
    work: Path,
    store: Store,
    study_id: int,
    report: Reporter,
) -> dict[str, Judged]:
    steps = processes_of(plan)
    judged = {}
    for index, (name, entry) in enumerate(exported.items()):
        started = 0

        def on_progress(event: Mapping[str, object], name: str = name, before: int = index * steps) -> None:
            nonlocal started
            started += starts_a_process(event)
            report("device", before + max(0, started - 1), len(exported) * steps, f"{name} {describe(event)}")

        for_candidates = max(1, len(exported) - 1)
        result = run_bundle(device, entry.bundle, plan, work / "runs" / name, on_progress=on_progress)
        judged[name] = judge_run(
            result.record,
            result.traces,
            entry.bundle,
            prepared.probes.certificate,
            candidates=for_candidates,
        )
        certificate = judged[name].certificate
        store.record_bundle(
            study_id,
            entry.bundle.manifest,
            config_digest=entry.config.digest,
            artifact_bytes=entry.bundle.artifact_bytes,
        )
        store.record_run(
            study_id,
            device.name,
            result.record,
            measurements=judged[name].measured,
            certified=certificate.certified if certificate else None,
            certificate=dataclasses.asdict(certificate) if certificate else None,
            traces=str(result.traces) if result.traces else None,
        )
        report("device", (index + 1) * steps, len(exported) * steps, f"{name}: {judged[name].outcome}")
    return judged


def _config_file(work: Path, name: str) -> Path:
    return work / "configs" / f"{name}.json"
