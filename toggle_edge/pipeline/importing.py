"""`toggle-edge import`: a run that was measured without a host, brought home, certified as any is, and kept once."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from toggle_runtime.blobs import mismatch
from toggle_runtime.records import RecordError, RunRecord, digest_of, from_json, to_json

from toggle_edge.bundle import Bundle, keep_contract, probes_of, read_bundle, read_contract
from toggle_edge.errors import ConfigError, RunFolderError
from toggle_edge.fleet.device import is_plain_name
from toggle_edge.pipeline.carried import unpack_carried
from toggle_edge.pipeline.certifying import MAX_JOBS
from toggle_edge.pipeline.checking import known_mode
from toggle_edge.pipeline.judging import judge_run
from toggle_edge.pipeline.validation import contract_outcome
from toggle_edge.report.imported import ImportResult
from toggle_edge.report.progress import Reporter
from toggle_edge.store import DEFAULT_URL, Store, open_store
from toggle_edge.workspace import workspace

CONTRACT = "contract"

_RUN_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}")


@dataclass(frozen=True)
class ImportOptions:
    """What `toggle-edge import` may be told. `records` is a run's folder or the file that the agent packed; `bundle`
    the bundle's folder where the store does not know it; `device` what to call the device; `mode` None is the bundle's
    default; `jobs` None is one process per core."""

    records: Path
    bundle: Path | None = None
    device: str = "imported"
    mode: str | None = None
    store: str = DEFAULT_URL
    allow_unsigned: bool = False
    output: Path = Path("toggle-edge-runs")
    jobs: int | None = None


def run_import(options: ImportOptions, report: Reporter) -> ImportResult:
    """Take a run home: judged from its traces, whatever it claims, and kept as `validate` keeps one.

    Raises InputError for what is no run, is larger than a run may be, was altered, is of a bundle that neither the
    store nor `bundle` knows, or was imported before.
    """
    if not is_plain_name(options.device):
        raise ConfigError(f"--device: expected a plain name, got {options.device[:80]!r}")
    if options.jobs is not None and not 1 <= options.jobs <= MAX_JOBS:
        raise ConfigError(f"jobs: expected a whole number from 1 to {MAX_JOBS}, got {options.jobs}")
    with workspace(options.output / options.device) as output:
        fresh = output / "import.partial"
        store = _store(options.store)
        try:
            unpack_carried(options.records, fresh)
            record, traces = _read(fresh, options.records)
            study = _study_of(store, record)
            bundle = _contract(options, record, fresh, known=study is not None)
            mode = known_mode(options.mode or bundle.manifest.default_mode, bundle.manifest.specification)
            folder = output / record.run_id
            _refuse_repetition(record, options.output, store, unfinished=folder if study else None)
            report("certify", 0, 1, f"{len(probes_of(bundle))} probes, two runs")
            judged = judge_run(
                record,
                traces,
                bundle,
                probes_of(bundle),
                candidates=1,
                stated=[mode],
                jobs=options.jobs or len(os.sched_getaffinity(0)),
            )
            report("certify", 1, 1, judged.outcome)
            keep_contract(bundle, fresh / "bundle")
            shutil.rmtree(fresh / CONTRACT, ignore_errors=True)
            shutil.rmtree(
                folder, ignore_errors=True
            )  # of an import that was killed before the store had the run
            fresh.rename(folder)
            if store is not None and study is not None:
                certificate = judged.certificate
                store.record_run(
                    study,
                    options.device,
                    record,
                    measurements=judged.measured,
                    certified=certificate.certified if certificate else None,
                    certificate=dataclasses.asdict(certificate) if certificate else None,
                    traces=str(folder / "traces.npz") if traces else None,
                )
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
            if store is not None:
                store.close()
    outcome, reason = contract_outcome(judged, mode)
    return ImportResult(
        outcome=outcome,
        reason=reason,
        mode=mode,
        device=options.device,
        record=record,
        bundle=bundle.digest,
        signed_by=bundle.signed_by,
        verdict=judged.modes.get(mode),
        certificate=judged.certificate,
        measured=judged.measured,
        record_file=str(folder / "record.json"),
        stored=study is not None,
    )


def _read(folder: Path, source: Path) -> tuple[RunRecord, Path | None]:
    """The record, and the traces where it names some, whole. Raises RunFolderError for anything else."""
    try:
        record = from_json(RunRecord, (folder / "record.json").read_text(encoding="utf-8"))
        if _RUN_ID.fullmatch(record.run_id) is None:
            raise RunFolderError(f"{source}: run_id: expected a plain name, got {record.run_id[:80]!r}")
        if record.traces is None:
            return record, None
        problem = mismatch(folder / "traces.npz", record.traces)
    except (OSError, UnicodeDecodeError, RecordError) as exc:
        raise RunFolderError(f"{source}: the record cannot be read: {exc}") from exc
    if problem is not None:
        raise RunFolderError(f"{source}: the traces are not those of the record: {problem}")
    return record, folder / "traces.npz"


def _store(url: str) -> Store | None:
    """The store; None where there is no such file: an import is no reason to make one."""
    file = url.removeprefix("sqlite:///")
    return None if file != url and not Path(file).is_file() else open_store(url)


def _study_of(store: Store | None, record: RunRecord) -> int | None:
    """The first study that knows the record's bundle."""
    if store is None:
        return None
    known = (
        each.id for each in store.studies() if record.bundle in {b.digest for b in store.bundles(each.id)}
    )
    return next(known, None)


def _contract(options: ImportOptions, record: RunRecord, carried: Path, *, known: bool) -> Bundle:
    """What the run is judged by: the named bundle, or what came with the run of a bundle that the store knows."""
    if options.bundle is not None:
        bundle = read_bundle(options.bundle, allow_unsigned=options.allow_unsigned)
    elif known:
        bundle = read_contract(carried / CONTRACT)
    else:
        raise RunFolderError(
            f"{options.records}: is of bundle {record.bundle[:12]}, which no study in {options.store} has; name the "
            "folder that export wrote with --bundle"
        )
    if bundle.digest != record.bundle:
        raise RunFolderError(
            f"{options.records}: is of bundle {record.bundle[:12]}, got {bundle.digest[:12]} to judge it by"
        )
    return bundle


def _refuse_repetition(
    record: RunRecord, output: Path, store: Store | None, *, unfinished: Path | None
) -> None:
    """Raises RunFolderError for a run whose name or whose content is here already, under whatever name.

    A folder at `unfinished` with the same content is no repetition while the store has not got the run.
    """
    ours = _content(record)
    for where, each in (*_recorded(store), *_kept(output)):
        if each.run_id == record.run_id:
            same = _content(each) == ours
            if same and unfinished is not None and where == str(unfinished):
                continue
            told = "the same content" if same else "ANOTHER content"
            raise RunFolderError(
                f"run {record.run_id}: is here already, with {told}, in {where}; nothing was imported"
            )
        if _content(each) == ours:
            raise RunFolderError(
                f"run {record.run_id}: is run {each.run_id} in {where} under another name; nothing was imported"
            )


def _recorded(store: Store | None) -> Iterator[tuple[str, RunRecord]]:
    for study in store.studies() if store is not None else ():
        for run in store.runs(study.id) if store is not None else ():
            yield f"study {study.name!r}", run.record


def _kept(output: Path) -> Iterator[tuple[str, RunRecord]]:
    for path in sorted(output.absolute().glob("*/*/record.json")):
        if path.parent.suffix == ".partial":
            continue
        try:
            yield str(path.parent), from_json(RunRecord, path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, RecordError):
            continue  # a damaged one can be the repetition of nothing


def _content(record: RunRecord) -> str:
    """What tells runs apart, whatever they are called: nanoseconds never repeat, so they alone where there are some.
    A run that measured nothing, not even its conditions, is told by its name only."""
    if any(sample.generations for sample in record.latency):
        return digest_of(repr([record.bundle, record.latency]))
    return digest_of(to_json(dataclasses.replace(record, run_id="") if record.conditions else record))
