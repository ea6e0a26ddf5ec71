"""What one turn of the loop found, and its JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from toggle_runtime.records import Measurement, ModeVerdict

from toggle_edge.certify import Certificate
from toggle_edge.config import Config
from toggle_edge.selection import Choice

DEMO_MEASUREMENTS = (
    "ttft_ms",
    "decode_ms_p50",
    "decode_ms_p95",
    "decode_tokens_per_s",
    "memory_bytes",
    "energy_mj_per_token",
)


@dataclass(frozen=True)
class Predicted:
    """What the host says of a candidate before it is measured. `avgpp` (percent) is on the search probes."""

    proxy_flops: float
    proxy_flops_ratio: float
    proxy_bytes: int
    artifact_bytes: int
    avgpp: float | None


@dataclass(frozen=True)
class CandidateResult:
    """One exported candidate (or the fp16 baseline): predicted, measured, judged twice.

    `modes` are the device's verdicts, `host_modes` the host's on the same certificate probes; both empty when
    the run did not end well, and then `reason` says why.
    """

    id: str
    trial: int | None
    config: Config
    predicted: Predicted
    artifact_bytes: int
    parity: float
    outcome: str
    reason: str | None
    measured: Mapping[str, Measurement]
    modes: Mapping[str, ModeVerdict]
    host_modes: Mapping[str, ModeVerdict]
    certificate: Certificate | None

    @property
    def certified(self) -> bool:
        return self.certificate is not None and self.certificate.certified

    @property
    def avgpp(self) -> float | None:
        """AvgPP in percent as judged on the device; None when the run did not end well."""
        return next((verdict.avgpp for verdict in self.modes.values()), None)


@dataclass(frozen=True)
class TrialRow:
    """One evaluated config in short. `avgpp` (percent) is on the search probes, None for a trial that was refuted
    before it had read them all; `feasible` says it by mode."""

    index: int
    origin: str
    config_digest: str
    formats: str
    proxy_flops_ratio: float
    avgpp: float | None
    feasible: Mapping[str, bool]
    refuted: bool = False


@dataclass(frozen=True)
class LoopResult:
    """Everything `toggle-edge demo` shows.

    `conditions` is what the device said of itself while the baseline ran (processor, governor, load, engine);
    what it could not read says `unavailable: ...`. `selected` maps each mode to the measured choice,
    `predicted_selection` to the id that the proxy would have chosen, `explanations` to one sentence on the
    difference. `cheapest_uniform` is the cheapest trial with one format everywhere that is feasible in the default
    mode. `excerpts` maps a probe and a step to the words around it, the predicted token in brackets.
    """

    outcome: str
    reason: str | None
    study: str
    device: str
    transport: str
    conditions: Mapping[str, str]
    default_mode: str
    trials: tuple[TrialRow, ...]
    cheapest_uniform: TrialRow | None
    baseline: CandidateResult
    candidates: tuple[CandidateResult, ...]
    predicted_front: tuple[str, ...]
    measured_front: tuple[str, ...]
    kendall_tau: float | None
    selected: Mapping[str, Choice]
    predicted_selection: Mapping[str, str | None]
    explanations: Mapping[str, str]
    config_files: Mapping[str, str]
    excerpts: Mapping[tuple[int, int], str]
    seconds: float

    def candidate(self, id: str) -> CandidateResult:
        return next(candidate for candidate in self.candidates if candidate.id == id)


def loop_json(result: LoopResult) -> dict[str, object]:
    """The one object that `toggle-edge demo --json` prints."""
    return {
        "outcome": result.outcome,
        "reason": result.reason,
        "study": result.study,
        "device": {"name": result.device, "transport": result.transport},
        "conditions": dict(result.conditions),
        "mode": result.default_mode,
        "baseline": {
            "artifact_bytes": result.baseline.artifact_bytes,
            "measured": _measured_json(result.baseline.measured),
        },
        "candidates": [_candidate_json(candidate, result.default_mode) for candidate in result.candidates],
        "front": {"predicted": list(result.predicted_front), "measured": list(result.measured_front)},
        "kendall_tau": result.kendall_tau,
        "selected": {mode: _selected_json(result, mode) for mode in result.selected},
        "uniform": {
            "cheapest_feasible": dataclasses.asdict(result.cheapest_uniform)
            if result.cheapest_uniform
            else None
        },
        "trials": [dataclasses.asdict(trial) for trial in result.trials],
        "seconds": round(result.seconds, 1),
    }


def _candidate_json(candidate: CandidateResult, mode: str) -> dict[str, object]:
    judged, host = candidate.modes.get(mode), candidate.host_modes.get(mode)
    host_robustness = {v.property: v.robustness for v in host.verdicts} if host else {}
    verdicts = [
        {**dataclasses.asdict(verdict), "robustness_host": host_robustness.get(verdict.property)}
        for verdict in (judged.verdicts if judged else ())
    ]
    certificate = candidate.certificate
    return {
        "id": candidate.id,
        "trial": candidate.trial,
        "config_digest": candidate.config.digest,
        "config": candidate.config.to_json(),
        "avgpp": candidate.avgpp,
        "predicted": {
            "proxy_flops_ratio": candidate.predicted.proxy_flops_ratio,
            "proxy_bytes": candidate.predicted.proxy_bytes,
            "artifact_bytes": candidate.predicted.artifact_bytes,
        },
        "artifact_bytes": candidate.artifact_bytes,
        "parity": {"max_abs_logit_difference": candidate.parity},
        "measured": _measured_json(candidate.measured),
        "verdict": judged.verdict if judged else None,
        "coverage": _coverage_json(judged, certificate),
        "verdicts": verdicts,
        "modes": {name: verdict.verdict for name, verdict in candidate.modes.items()},
        "certified": candidate.certified,
        "disagreements": list(certificate.disagreements) if certificate else [],
        "outcome": candidate.outcome,
        "reason": candidate.reason,
    }


def _measured_json(measured: Mapping[str, Measurement]) -> dict[str, object]:
    return {name: dataclasses.asdict(measurement) for name, measurement in measured.items()}


def _coverage_json(judged: ModeVerdict | None, certificate: Certificate | None) -> dict[str, object] | None:
    if judged is None:
        return None
    bound = certificate.bounds[judged.mode].lower_bound if certificate else None
    return {**dataclasses.asdict(judged.coverage), "lower_bound": bound}


def _selected_json(result: LoopResult, mode: str) -> dict[str, object] | None:
    choice = result.selected[mode]
    if choice.id is None:
        return None
    candidate = result.candidate(choice.id)
    return {
        "id": candidate.id,
        "trial": candidate.trial,
        "config_digest": candidate.config.digest,
        "config_file": result.config_files[candidate.id],
        "avgpp": candidate.avgpp,
        "proxy_flops_ratio": candidate.predicted.proxy_flops_ratio,
        "predicted": result.predicted_selection[mode],
        "reason": choice.reason,
        "changed": result.explanations[mode],
    }
