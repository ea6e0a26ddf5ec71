"""`toggle-edge certify`: a run that validate kept, judged again by RTAMT. Needs neither the device nor the artifact."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from toggle_runtime.blobs import mismatch
from toggle_runtime.records import RecordError, RunRecord, from_json

from toggle_edge.bundle import Bundle, probes_of, read_contract
from toggle_edge.errors import ConfigError, RunFolderError
from toggle_edge.fleet.deploy import MAX_RECORD_BYTES, MAX_TRACES_BYTES
from toggle_edge.pipeline.checking import known_mode
from toggle_edge.pipeline.judging import judge_run
from toggle_edge.pipeline.validation import contract_outcome
from toggle_edge.report.certificate import CertifyResult
from toggle_edge.report.progress import Reporter

MAX_JOBS = 64


@dataclass(frozen=True)
class CertifyOptions:
    """What `toggle-edge certify` may be told. `mode` None is the bundle's default; `candidates` were judged on the
    same probes, this one among them; `jobs` None is one process per core."""

    run: Path
    mode: str | None = None
    candidates: int = 1
    jobs: int | None = None


def run_certify(options: CertifyOptions, report: Reporter) -> CertifyResult:
    """Judge a kept run again. Raises InputError for what is not such a run, or was altered since."""
    for name, value, most in (("candidates", options.candidates, 10**6), ("jobs", options.jobs, MAX_JOBS)):
        if value is not None and not 1 <= value <= most:
            raise ConfigError(f"{name}: expected a whole number from 1 to {most}, got {value}")
    record, traces, bundle = _read_run(options.run)
    mode = known_mode(options.mode or bundle.manifest.default_mode, bundle.manifest.specification)
    jobs = options.jobs or len(os.sched_getaffinity(0))
    report("certify", 0, 1, f"{len(probes_of(bundle))} probes, two runs, {jobs} processes")
    judged = judge_run(
        record,
        traces,
        bundle,
        probes_of(bundle),
        candidates=options.candidates,
        stated=[mode],
        jobs=jobs,
    )
    report("certify", 1, 1, judged.outcome)
    outcome, reason = contract_outcome(judged, mode)
    return CertifyResult(
        outcome=outcome,
        reason=reason,
        mode=mode,
        run_id=record.run_id,
        bundle=bundle.digest,
        verdict=judged.modes.get(mode),
        certificate=judged.certificate,
    )


def _read_run(folder: Path) -> tuple[RunRecord, Path | None, Bundle]:
    path, traces = folder / "record.json", folder / "traces.npz"
    if not path.is_file():
        raise RunFolderError(
            f"run {folder}: expected a folder that validate kept, with record.json in it; "
            "validate prints its name as `record`"
        )
    try:
        if path.stat().st_size > MAX_RECORD_BYTES:
            raise RunFolderError(
                f"{path}: expected at most {MAX_RECORD_BYTES} bytes, got {path.stat().st_size}"
            )
        record = from_json(RunRecord, path.read_text(encoding="utf-8"))
        bundle = read_contract(folder / "bundle")
        if record.traces is None:
            return record, None, bundle
        if traces.stat().st_size > MAX_TRACES_BYTES:
            raise RunFolderError(f"{traces}: expected at most {MAX_TRACES_BYTES} bytes")
        problem = mismatch(traces, record.traces)
    except (OSError, UnicodeDecodeError, RecordError) as exc:
        raise RunFolderError(f"run {folder}: cannot be read: {exc}") from exc
    if problem is not None:
        raise RunFolderError(f"{traces}: altered since the run: {problem}; measure the bundle again")
    return record, traces, bundle
