"""The last stage: what was measured beside what was predicted, the two fronts, and what each mode selects now."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from toggle_runtime.records import ERROR, FAIL, PASS

from toggle_edge.fleet.device import Device
from toggle_edge.pareto import kendall_tau, non_dominated
from toggle_edge.pipeline.judging import Judged
from toggle_edge.pipeline.packing import Exported
from toggle_edge.pipeline.preparing import Prepared
from toggle_edge.pipeline.standing import is_uniform
from toggle_edge.probes import excerpt
from toggle_edge.report.loop import CandidateResult, LoopResult, Predicted, TrialRow
from toggle_edge.search.finalists import predicted_selection
from toggle_edge.search.trial import Trial
from toggle_edge.selection import (
    Choice,
    MeasuredCandidate,
    budget_of,
    measured_front,
    select,
    why_changed,
)

BASELINE_ID = "fp16"


def candidate_id(trial: Trial) -> str:
    return f"trial-{trial.index}"


def rerank(
    prepared: Prepared,
    device: Device,
    study: str,
    trials: Sequence[Trial],
    proposed: Mapping[str, Trial | None],
    chosen: Sequence[Trial],
    exported: Mapping[str, Exported],
    judged: Mapping[str, Judged],
    *,
    config_files: Mapping[str, str],
    seconds: float,
) -> LoopResult:
    """Put prediction and measurement side by side, and let the measurement decide.

    `proposed` is what each mode selects before anything is measured.
    `exported` and `judged` hold the baseline under `BASELINE_ID` and each of `chosen` under `candidate_id`.
    """
    modes = tuple(prepared.specification)
    by_id = {candidate_id(trial): trial for trial in chosen}
    rows = {
        name: _candidate(prepared, name, by_id.get(name), exported[name], judged[name]) for name in exported
    }
    candidates = tuple(rows[name] for name in by_id)
    ran = [
        MeasuredCandidate(
            id=row.id,
            avgpp=row.avgpp,
            artifact_bytes=row.artifact_bytes,
            measured=row.measured,
            shortfall={
                mode: judged[row.id].shortfall(mode, prepared.specification, row.host_modes) for mode in modes
            },
            proxy_flops=row.predicted.proxy_flops,
        )
        for row in candidates
    ]
    budget = {**prepared.profile.budget, **budget_of(device)}
    selected = {mode: select(ran, mode, budget) for mode in modes}
    predicted = {mode: _id_of(proposed[mode], by_id) for mode in modes}
    outcome, reason = _outcome(prepared.profile.default_mode, judged, selected)
    return LoopResult(
        outcome=outcome,
        reason=reason,
        study=study,
        device=device.name,
        transport=device.transport,
        conditions={**judged[BASELINE_ID].record.conditions, **judged[BASELINE_ID].record.environment},
        default_mode=prepared.profile.default_mode,
        trials=tuple(trial_row(prepared, trial) for trial in trials),
        cheapest_uniform=cheapest_uniform(prepared, trials, prepared.profile.default_mode),
        baseline=rows[BASELINE_ID],
        candidates=candidates,
        predicted_front=_predicted_front(chosen),
        measured_front=tuple(measured_front([c for c in ran if None in c.shortfall.values()])),
        kendall_tau=_tau(tuple(rows.values())),
        selected=selected,
        predicted_selection=predicted,
        explanations={mode: why_changed(predicted[mode], selected[mode], ran) for mode in modes},
        config_files=config_files,
        excerpts=excerpts_of(prepared, candidates),
        seconds=seconds,
    )


def trial_row(prepared: Prepared, trial: Trial) -> TrialRow:
    """A trial in short."""
    return TrialRow(
        index=trial.index,
        origin=trial.origin,
        config_digest=trial.config.digest,
        formats=trial.config.summary(),
        proxy_flops_ratio=prepared.flops_ratio(trial.config),
        # That of the probes that refute most candidates is not that of all.
        avgpp=None if trial.observation.refuted else trial.observation.avgpp,
        feasible=trial.observation.feasible,
        refuted=trial.observation.refuted,
    )


def cheapest_uniform(prepared: Prepared, trials: Sequence[Trial], mode: str) -> TrialRow | None:
    """The cheapest trial with one format everywhere that is feasible in the mode, on the search probes."""
    selected = predicted_selection([trial for trial in trials if is_uniform(trial.config)], mode)
    return trial_row(prepared, selected) if selected else None


def uniform_of_size(prepared: Prepared, trials: Sequence[Trial], trial: Trial) -> TrialRow | None:
    """The trial with one format everywhere whose proxy cost is nearest to that of `trial`."""
    cost = math.log(trial.observation.proxy_flops)
    nearest = min(
        (each for each in trials if is_uniform(each.config)),
        key=lambda each: abs(math.log(each.observation.proxy_flops) - cost),
        default=None,
    )
    return trial_row(prepared, nearest) if nearest else None


def _candidate(
    prepared: Prepared, name: str, trial: Trial | None, exported: Exported, judged: Judged
) -> CandidateResult:
    config = exported.config
    cost = prepared.cost(config)
    return CandidateResult(
        id=name,
        trial=trial.index if trial else None,
        config=config,
        predicted=Predicted(
            proxy_flops=cost.proxy_flops,
            proxy_flops_ratio=prepared.flops_ratio(config),
            proxy_bytes=cost.proxy_bytes,
            artifact_bytes=exported.bundle.artifact_bytes
            if exported.predicted_bytes is None
            else exported.predicted_bytes,
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


def excerpts_of(prepared: Prepared, rows: Sequence[CandidateResult]) -> dict[tuple[int, int], str]:
    places = {
        (verdict.argmin.probe, verdict.argmin.step)
        for row in rows
        for judged in row.modes.values()
        for verdict in judged.verdicts
        if verdict.argmin is not None
    }
    probes = prepared.probes.certificate
    # A claim that was not certified is shown too, and may name a place that does not exist.
    return {
        (probe, step): excerpt(prepared.model.tokenizer, probes[probe], step)
        for probe, step in places
        if 0 <= probe < len(probes) and 0 <= step < probes[probe].steps
    }


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


def _outcome(
    mode: str, judged: Mapping[str, Judged], selected: Mapping[str, Choice]
) -> tuple[str, str | None]:
    failed = {name: run for name, run in judged.items() if run.outcome not in (PASS, FAIL)}
    if failed:
        name, run = next(iter(failed.items()))
        return ERROR, f"{name}: {run.outcome}: {run.reason}"
    if selected[mode].id is None:
        return FAIL, f"no candidate satisfies mode {mode} on this device"
    return PASS, None
