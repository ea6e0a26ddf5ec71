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

import numpy as np
import torch
from toggle_runtime.plan import Plan

from toggle_edge.config import Config
from toggle_edge.cost import predicted_cost
from toggle_edge.fleet.deploy import run_bundle
from toggle_edge.fleet.device import Device, load_device
from toggle_edge.fleet.sshd import LoopbackSshd, sshd_path
from toggle_edge.pareto import kendall_tau, non_dominated
from toggle_edge.pipeline.loop import (
    TARGET,
    Exported,
    Judged,
    Prepared,
    export,
    flops_ratio,
    judge_run,
    prepare,
    search,
    skeleton_of,
    write_probes,
)
from toggle_edge.probes import excerpt
from toggle_edge.profiles import load_profile
from toggle_edge.report.loop import CandidateResult, LoopResult, Predicted
from toggle_edge.report.progress import Reporter
from toggle_edge.search.finalists import finalists, predicted_selection
from toggle_edge.search.trial import Trial
from toggle_edge.selection import Contender, measured_front, select, why_changed
from toggle_edge.store import Store, open_store

BASELINE_ID = "fp16"
DEVICE_NAME = "this-machine"
PLAN = Plan(["verify", "latency", "memory", "energy"], restarts=3, generations=10, warmups=2, tokens=48)


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


def demo_folder() -> Path:
    """Where the demo model lies: in an installed wheel, else in the checkout."""
    package = Path(__file__).resolve().parents[1]
    packed = package / "_data" / "demo"
    return packed if packed.is_dir() else package.parent / "demo"


def run_demo(options: DemoOptions, report: Reporter) -> LoopResult:
    """The whole loop, once. Raises ToggleEdgeError when a stage cannot be done at all."""
    started = time.monotonic()
    # One thread: a model this small gains nothing from more, and on a busy machine threads that wait for each
    # other cost far more than they bring. The result then does not depend on the number of cores either.
    torch.set_num_threads(1)
    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    profile = load_profile(options.profile)
    prepared = prepare(demo_folder() / "model", profile, demo_folder() / "probes.jsonl", report)
    with open_store(f"sqlite:///{work / 'toggle-edge.sqlite'}") as store:
        study = f"demo-{options.seed}"
        stored = store.open_study(
            study,
            model=prepared.model.folder.name,
            model_digest=prepared.model.digest,
            profile=profile.name,
            target=TARGET,
            seed=options.seed,
        )
        ledger = store.ledger(stored.id)
        trials = search(prepared, ledger, seed=options.seed, max_trials=options.trials, report=report)
        chosen = finalists(trials, tuple(prepared.specification), options.candidates)
        exported = _export_all(prepared, chosen, work, report)
        with _device(work, options.local) as device:
            judged = _run_all(prepared, exported, device, options.plan, work, store, stored.id, report)
    return _result(prepared, options, study, device, trials, chosen, exported, judged, work, started)


def candidate_id(trial: Trial) -> str:
    return f"trial-{trial.index}"


def _export_all(
    prepared: Prepared, chosen: Sequence[Trial], work: Path, report: Reporter
) -> dict[str, Exported]:
    report("export", 0, len(chosen) + 1, "building the graph")
    skeleton = skeleton_of(prepared, work / "skeletons")
    extra = write_probes(prepared, work / "probes")
    configs = {BASELINE_ID: prepared.baseline, **{candidate_id(trial): trial.config for trial in chosen}}
    exported = {}
    for index, (name, config) in enumerate(configs.items()):
        (work / "configs").mkdir(exist_ok=True)
        _config_file(work, name).write_text(json.dumps(config.to_json(), indent=1) + "\n", encoding="utf-8")
        exported[name] = export(prepared, config, skeleton, extra, work / "bundles" / name)
        worst = max(entry.parity for entry in exported.values())
        report("export", index + 1, len(configs), f"logits within {worst:.1e} of the searched weights")
    return exported


@contextmanager
def _device(work: Path, local: bool) -> Iterator[Device]:
    """This machine as a device: behind a real sshd of our own where there is one, else directly."""
    if local or sshd_path() is None:
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
    steps = len(plan.passes) - 1 + plan.restarts
    judged = {}
    for index, (name, entry) in enumerate(exported.items()):
        done = index * steps

        def on_progress(event: Mapping[str, object], name: str = name, done: int = done) -> None:
            report("device", done, len(exported) * steps, _note(name, event))

        for_candidates = max(1, len(exported) - 1)
        result = run_bundle(device, entry.bundle, plan, work / "runs" / name, on_progress=on_progress)
        judged[name] = judge_run(
            result.record, result.traces, entry.bundle, prepared, candidates=for_candidates
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
        report("device", done + steps, len(exported) * steps, f"{name}: {judged[name].outcome}")
    return judged


def _note(name: str, event: Mapping[str, object]) -> str:
    words = [str(event[key]) for key in ("pass", "step") if key in event]
    share = f"{event['done']}/{event['of']}" if "done" in event and "of" in event else ""
    return " ".join([name, *words, share]).strip()


def _result(
    prepared: Prepared,
    options: DemoOptions,
    study: str,
    device: Device,
    trials: Sequence[Trial],
    chosen: Sequence[Trial],
    exported: Mapping[str, Exported],
    judged: Mapping[str, Judged],
    work: Path,
    started: float,
) -> LoopResult:
    modes = tuple(prepared.specification)
    by_id = {candidate_id(trial): trial for trial in chosen}
    overhead = _overhead_bytes(prepared, exported[BASELINE_ID])
    rows = {
        name: _candidate(prepared, name, by_id.get(name), exported[name], judged[name], overhead)
        for name in exported
    }
    candidates = tuple(rows[name] for name in by_id)
    contenders = [
        Contender(
            id=row.id,
            avgpp=row.avgpp,
            artifact_bytes=row.artifact_bytes,
            measured=row.measured,
            satisfied={mode: judged[row.id].satisfies(mode, prepared.specification) for mode in modes},
            proxy_flops=row.predicted.proxy_flops,
        )
        for row in candidates
    ]
    budget = _budget(device, prepared.profile.budget)
    selected = {mode: select(contenders, mode, budget) for mode in modes}
    predicted = {mode: _id_of(predicted_selection(trials, mode), by_id) for mode in modes}
    outcome, reason = _outcome(prepared.profile.default_mode, judged, selected)
    return LoopResult(
        outcome=outcome,
        reason=reason,
        study=study,
        device=device.name,
        transport=device.transport,
        default_mode=prepared.profile.default_mode,
        trials=len(trials),
        feasible_trials=sum(any(trial.observation.feasible.values()) for trial in trials),
        baseline=rows[BASELINE_ID],
        candidates=candidates,
        predicted_front=_predicted_front(chosen),
        measured_front=tuple(measured_front([c for c in contenders if any(c.satisfied.values())])),
        kendall_tau=_tau(tuple(rows.values())),
        selected=selected,
        predicted_selection=predicted,
        explanations={mode: why_changed(predicted[mode], selected[mode], contenders) for mode in modes},
        config_files={name: str(_config_file(work, name)) for name in exported},
        excerpts=_excerpts(prepared, candidates),
        seconds=time.monotonic() - started,
    )


def _candidate(
    prepared: Prepared, name: str, trial: Trial | None, exported: Exported, judged: Judged, overhead: int
) -> CandidateResult:
    config = exported.config
    cost = predicted_cost(prepared.model.layers, config, prepared.model.kept_parameters)
    return CandidateResult(
        id=name,
        trial=trial.index if trial else None,
        config=config,
        predicted=Predicted(
            proxy_flops=cost.proxy_flops,
            proxy_flops_ratio=flops_ratio(prepared, config),
            proxy_bytes=cost.proxy_bytes,
            artifact_bytes=cost.proxy_bytes + overhead,
            avgpp=trial.observation.avgpp if trial else None,
        ),
        artifact_bytes=exported.bundle.artifact_bytes,
        parity=exported.parity,
        outcome=judged.outcome,
        reason=judged.reason,
        measured=judged.measured,
        modes=judged.modes,
        host_modes=prepared.certifier.evaluate(config).modes,
        certificate=judged.certificate,
    )


def _excerpts(prepared: Prepared, rows: Sequence[CandidateResult]) -> dict[tuple[int, int], str]:
    places = {
        (verdict.argmin.probe, verdict.argmin.step)
        for row in rows
        for judged in row.modes.values()
        for verdict in judged.verdicts
        if verdict.argmin is not None
    }
    probes = prepared.probes.certificate
    return {(probe, step): excerpt(prepared.model.tokenizer, probes[probe], step) for probe, step in places}


def _overhead_bytes(prepared: Prepared, baseline: Exported) -> int:
    """What an artifact weighs beyond its weights (graphs, tables): measured on the baseline, assumed of all."""
    config: Config = prepared.baseline
    predicted = predicted_cost(prepared.model.layers, config, prepared.model.kept_parameters).proxy_bytes
    return baseline.bundle.artifact_bytes - predicted


def _predicted_front(chosen: Sequence[Trial]) -> tuple[str, ...]:
    feasible = [trial for trial in chosen if any(trial.observation.feasible.values())]
    if not feasible:
        return ()
    points = np.array([[t.observation.proxy_flops, -(t.observation.avgpp or 0.0)] for t in feasible])
    return tuple(candidate_id(t) for t, kept in zip(feasible, non_dominated(points), strict=True) if kept)


def _tau(rows: Sequence[CandidateResult]) -> float | None:
    pairs = [
        (row.predicted.proxy_flops, row.measured["decode_ms_p50"].value)
        for row in rows
        if row.measured["decode_ms_p50"].value is not None
    ]
    return kendall_tau([flops for flops, _ in pairs], [float(ms or 0.0) for _, ms in pairs])


def _id_of(trial: Trial | None, by_id: Mapping[str, Trial]) -> str | None:
    return candidate_id(trial) if trial and candidate_id(trial) in by_id else None


def _budget(device: Device, profile_budget: Mapping[str, float]) -> dict[str, float]:
    limits = {
        "decode_ms_p50": device.budget.decode_ms,
        "memory_bytes": device.budget.memory_bytes,
        "energy_mj_per_token": device.budget.energy_mj_per_token,
    }
    return {**profile_budget, **{name: limit for name, limit in limits.items() if limit is not None}}


def _outcome(
    mode: str, judged: Mapping[str, Judged], selected: Mapping[str, object]
) -> tuple[str, str | None]:
    failed = {name: run for name, run in judged.items() if run.outcome not in ("PASS", "FAIL")}
    if failed:
        name, run = next(iter(failed.items()))
        return "ERROR", f"{name}: {run.outcome}: {run.reason}"
    if getattr(selected[mode], "id", None) is None:
        return "FAIL", f"no candidate satisfies mode {mode} on this device"
    return "PASS", None


def _config_file(work: Path, name: str) -> Path:
    return work / "configs" / f"{name}.json"
