"""A run that came home, judged: what the device claims, what RTAMT makes of its traces, and what follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from toggle_runtime.canary import least_share, widest_tolerance
from toggle_runtime.records import (
    ERROR,
    FAIL,
    MARGINAL,
    PASS,
    SATISFIED,
    UNSET,
    VIOLATED,
    Measurement,
    ModeSpecification,
    ModeVerdict,
    RunRecord,
)
from toggle_runtime.signals import SignalsError, Trace
from toggle_runtime.trace_files import read_traces

from toggle_edge.bundle import Bundle, BundledProbe
from toggle_edge.certify import Certificate, certify
from toggle_edge.errors import CertificationError
from toggle_edge.fleet.measurements import measured
from toggle_edge.probes import Probe


@dataclass(frozen=True)
class Judged:
    """A run that came home: the device's claim, its measurements, and what RTAMT says of its traces."""

    record: RunRecord
    measured: Mapping[str, Measurement]
    modes: Mapping[str, ModeVerdict]
    certificate: Certificate | None
    outcome: str
    reason: str | None

    @property
    def is_judged(self) -> bool:
        """Whether every mode has a certified verdict; the default mode's may be UNSET, and the outcome ERROR then."""
        certified = self.certificate is not None and self.certificate.certified
        return certified and (self.outcome in (PASS, FAIL) or self.outcome == self.record.outcome)

    def shortfall(
        self, mode: str, specification: Mapping[str, ModeSpecification], host: Mapping[str, ModeVerdict]
    ) -> str | None:
        """Why the candidate may not be selected for `mode`; None when it may.

        It may when it is certified, SATISFIED or MARGINAL on the device, and at the mode's AvgPP target there.
        `host` is the host's judgement on the same probes: it tells whether the probes or the kernels are to blame.
        """
        if mode not in self.modes:
            return f"the run ended with {self.outcome}"
        if not self.is_judged:
            return "its verdict was not certified"
        verdict, target = self.modes[mode], specification[mode].avgpp
        if verdict.verdict == UNSET:
            return f"UNSET: {verdict.reason}"
        if verdict.verdict not in (SATISFIED, MARGINAL):
            coverage = verdict.coverage
            blame = (
                "the host says the same on these probes, which the search did not see"
                if host[mode].verdict == verdict.verdict
                else f"the host says {host[mode].verdict}, so it is this device's kernels"
            )
            return (
                f"{verdict.verdict}: {coverage.satisfied} of {coverage.probes} certificate probes satisfy {mode}, "
                f"it needs {coverage.required}; {blame}"
            )
        if verdict.avgpp is None or verdict.avgpp < target:
            reached = "unknown" if verdict.avgpp is None else f"{verdict.avgpp:.2f}"
            return f"AvgPP is {reached}, {mode} needs {target:g}"
        return None


def judge_run(
    record: RunRecord,
    traces: Path | None,
    bundle: Bundle,
    probes: Sequence[Probe | BundledProbe],
    *,
    candidates: int,
    stated: Sequence[str] | None = None,
    jobs: int = 1,
) -> Judged:
    """Certify a run's claim from its own traces. A disagreement is an ERROR, whatever the device said.

    `probes` are those that were sent; `candidates`, `stated` and `jobs` are as in `certify`. A run whose parity pass is
    missing or failed proves nothing of what was searched, and is an ERROR too.
    """
    summary = measured(record, bundle.manifest)
    if record.outcome not in (PASS, FAIL) and not _is_undecided(record, bundle):
        return Judged(record, summary, {}, None, record.outcome, record.reason)
    if record.bundle != bundle.digest:
        reason = f"expected the record of bundle {bundle.digest[:12]}, got one of {record.bundle[:12]}"
        return Judged(record, summary, {}, None, ERROR, reason)
    parity, widest = record.parity, widest_tolerance(bundle.manifest.target, bundle.manifest.config.values())
    allowed = 0.0 if parity is None else min(parity.tolerance, widest)
    fits = parity is not None and parity.max_abs_logit_difference <= allowed and parity.compared >= 1
    if parity is None or not fits or not parity.share >= least_share(bundle.manifest.target):
        seen = (
            "no parity pass"
            if parity is None
            else f"parity {parity.max_abs_logit_difference:.3g} in {parity.share:.0%} of the texts"
        )
        reason = (
            f"the device says {record.outcome} with {seen}; expected at most {widest:g} against the canary"
        )
        return Judged(record, summary, {}, None, ERROR, reason)
    if traces is None:
        reason = f"the device says {record.outcome} but sent no traces, so nothing can be certified"
        return Judged(record, summary, {}, None, ERROR, reason)
    try:
        run, repeated = read_traces(traces)
        for part in (run, repeated):
            require_same_probes(part, probes)
        certificate = certify(
            record.modes,
            bundle.manifest.specification,
            run,
            repeated,
            record.noise_floor,
            candidates=candidates,
            stated=stated,
            jobs=jobs,
        )
    except (SignalsError, CertificationError) as exc:
        return Judged(record, summary, {}, None, ERROR, f"the traces cannot be certified: {exc}")
    modes = {verdict.mode: verdict for verdict in record.modes}
    if not certificate.certified:
        reason = f"device and RTAMT disagree: {certificate.disagreements[0]}"
        return Judged(record, summary, modes, certificate, ERROR, reason)
    implied = implied_outcome(modes[bundle.manifest.default_mode])
    if implied != record.outcome:
        reason = f"the device says {record.outcome}, its certified verdict means {implied}"
        return Judged(record, summary, modes, certificate, ERROR, reason)
    return Judged(record, summary, modes, certificate, implied, record.reason)


def _is_undecided(record: RunRecord, bundle: Bundle) -> bool:
    """Whether the run went through and is an ERROR only because the default mode's verdict is UNSET."""
    default = bundle.manifest.default_mode
    return record.outcome == ERROR and any(
        verdict.mode == default and verdict.verdict == UNSET for verdict in record.modes
    )


def implied_outcome(judged: ModeVerdict) -> str:
    """The outcome that a verdict of the default mode stands for. UNSET is an ERROR: nothing was decided."""
    if judged.verdict in (SATISFIED, MARGINAL):
        return PASS
    return FAIL if judged.verdict == VIOLATED else ERROR


def require_same_probes(traces: Sequence[Trace], probes: Sequence[Probe | BundledProbe]) -> None:
    """Raises CertificationError unless the traces are of exactly these probes, by number, steps and answer steps.

    A device that left out a hard probe, or moved an answer, would otherwise be judged on easier ones.
    """
    if len(traces) != len(probes):
        raise CertificationError(f"expected traces of {len(probes)} certificate probes, got {len(traces)}")
    for index, (trace, probe) in enumerate(zip(traces, probes, strict=True)):
        answer_steps = tuple(int(step) for step in np.flatnonzero(trace.answer))
        if len(trace.answer) != probe.steps or answer_steps != probe.answer_steps:
            raise CertificationError(
                f"probe {index}: expected {probe.steps} steps with the answer at {probe.answer_steps}, "
                f"got {len(trace.answer)} steps with the answer at {answer_steps}"
            )
