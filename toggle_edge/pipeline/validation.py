"""`toggle-edge validate`: measure a bundle on a device and check the contract there again. Switches nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from toggle_runtime.backends import BACKENDS
from toggle_runtime.conditions import disturbances
from toggle_runtime.plan import Plan
from toggle_runtime.records import ERROR, FAIL, PASS, RecordError

from toggle_edge.bundle import keep_contract, probes_of, read_bundle
from toggle_edge.errors import BundleError, InputError
from toggle_edge.fleet.deploy import RunResult, run_bundle
from toggle_edge.fleet.device import load_device
from toggle_edge.pipeline.checking import known_mode
from toggle_edge.pipeline.judging import Judged, implied_outcome, judge_run
from toggle_edge.report.progress import Reporter
from toggle_edge.report.validation import ValidationResult
from toggle_edge.selection import budget_of, over_budget
from toggle_edge.workspace import workspace

PLAN = Plan(["parity", "verify", "capacity", "cold", "latency", "memory", "energy"], idle_s=30.0)
"""Idle is measured for half a minute before and after, where there is a meter: short of that it is mostly noise."""

ROOM_S = 120.0
"""What a pass may take beside the window that it was asked for."""


def measuring(*, energy_seconds: float = PLAN.energy_window_s, pin_clocks: bool = False) -> Plan:
    """The plan with another energy window: batteries want 300 s, other meters 10."""
    timeout_s = max(PLAN.pass_timeout_s, energy_seconds + ROOM_S)
    return dataclasses.replace(
        PLAN, energy_window_s=energy_seconds, pin_clocks=pin_clocks, pass_timeout_s=timeout_s
    )


@dataclass(frozen=True)
class ValidateOptions:
    """What `toggle-edge validate` may be told. `output` keeps each run in a folder of its own: its record, its traces
    and what it is judged by; `mode` None is the bundle's default. `strict_conditions` takes no times or
    energy that something else disturbed."""

    device: str
    bundle: Path
    mode: str | None = None
    allow_unsigned: bool = False
    output: Path = Path("toggle-edge-runs")
    plan: Plan = PLAN
    strict_conditions: bool = False
    sustained_s: float | None = None
    restarts: int | None = None


def run_validate(options: ValidateOptions, report: Reporter) -> ValidationResult:
    """Ship, run, certify. Raises InputError before anything is sent, FleetError when the device cannot be used."""
    device = load_device(options.device)
    bundle = read_bundle(options.bundle, allow_unsigned=options.allow_unsigned)
    if bundle.manifest.target not in BACKENDS:
        raise BundleError(
            f"{options.bundle}: devices run bundles for {' or '.join(BACKENDS)}, this one is for "
            f"{bundle.manifest.target}; export the config for one of these"
        )
    mode = known_mode(options.mode or bundle.manifest.default_mode, bundle.manifest.specification)
    probes = probes_of(bundle)
    plan = dataclasses.replace(options.plan, threads=device.threads, meter=device.meter)
    if options.restarts is not None:
        plan = changed(plan, restarts=options.restarts, colds=min(options.restarts, plan.colds))
    if options.sustained_s is not None:
        plan = with_sustained(plan, options.sustained_s)
    steps, started = processes_of(plan), 0

    def on_progress(event: Mapping[str, object]) -> None:
        nonlocal started
        started += starts_a_process(event)
        report("device", max(0, started - 1), steps, describe(event))

    with workspace(options.output / device.name) as output:
        partial = output / "latest.partial"

        def keep(result: RunResult) -> None:
            keep_contract(bundle, partial / "bundle")
            partial.rename(output / result.record.run_id)

        result = run_bundle(
            device,
            bundle,
            plan,
            partial,
            allow_unsigned=options.allow_unsigned,
            on_progress=on_progress,
            keep=keep,
        )
    folder = output / result.record.run_id
    traces = folder / "traces.npz" if result.traces else None
    judged = judge_run(result.record, traces, bundle, probes, candidates=1, stated=[mode])
    report("device", steps, steps, judged.outcome)
    budget = budget_of(device)
    over = over_budget(judged.measured, budget) if judged.modes else {}
    outcome, reason = contract_outcome(judged, mode)
    if outcome == PASS and over:
        outcome, reason = FAIL, f"over the device's budget: {'; '.join(over.values())}"
    disturbed = disturbances(result.record.passes, strict=True) if options.strict_conditions else []
    if disturbed and outcome in (PASS, FAIL):
        outcome, reason = ERROR, f"--strict-conditions: {'; '.join(disturbed)}"
    return ValidationResult(
        outcome=outcome,
        reason=reason,
        mode=mode,
        device=device,
        bundle=bundle,
        run_id=result.record.run_id,
        conditions={**result.record.conditions, **result.record.environment},
        parity=result.record.parity,
        verdict=judged.modes.get(mode),
        certificate=judged.certificate,
        measured=judged.measured,
        budget=budget,
        over=over,
        record_file=str(folder / "record.json"),
        passes=tuple(result.record.passes),
    )


def with_sustained(plan: Plan, seconds: float) -> Plan:
    """The plan with a sustained run of so many seconds after the latency pass. Raises InputError for a bad number."""
    passes = [each for each in plan.passes if each != "sustained"]
    place = passes.index("latency") + 1 if "latency" in passes else len(passes)
    return changed(plan, passes=[*passes[:place], "sustained", *passes[place:]], sustained_s=seconds)


def changed(plan: Plan, **fields: object) -> Plan:
    """The plan with other values of some fields. Raises InputError for what a plan cannot have."""
    try:
        return dataclasses.replace(plan, **fields)  # type: ignore[arg-type]
    except RecordError as exc:
        raise InputError(str(exc)) from exc


def processes_of(plan: Plan) -> int:
    """How many steps a run of the plan takes: one for each pass, but one for each restart."""
    repeated = {"latency": plan.restarts, "cold": plan.colds}
    return sum(repeated.get(name, 1) for name in plan.passes)


def starts_a_process(event: Mapping[str, object]) -> bool:
    """Whether the event says that such a step starts."""
    return event.get("step") == ("restart" if event.get("pass") in ("latency", "cold") else "started")


def describe(event: Mapping[str, object]) -> str:
    """An event of the agent in a few words."""
    words = [str(event[key]) for key in ("pass", "step") if key in event]
    share = f"{event['done']}/{event['of']}" if "done" in event and "of" in event else ""
    return " ".join([*words, share]).strip()


def contract_outcome(judged: Judged, mode: str) -> tuple[str, str | None]:
    """Outcome and reason of a run under a mode, whatever it cost: PASS, FAIL, or why nothing was decided."""
    if not judged.is_judged or mode not in judged.modes:
        return judged.outcome, judged.reason
    verdict = judged.modes[mode]
    outcome = implied_outcome(verdict)
    if outcome == ERROR:
        return ERROR, f"mode {mode} could not be decided: {verdict.reason}"
    coverage = verdict.coverage
    if outcome == FAIL:
        return FAIL, (
            f"{coverage.satisfied} of {coverage.probes} probes satisfy {mode} on this device, it needs "
            f"{coverage.required}"
        )
    return outcome, None
