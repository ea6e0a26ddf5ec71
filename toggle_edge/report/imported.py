"""What `toggle-edge import` made of a run, and how it is shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Console
from toggle_runtime.records import Measurement, ModeVerdict, RunRecord

from toggle_edge.certify import Certificate
from toggle_edge.report.cells import interval, print_entry
from toggle_edge.report.certificate import CertifyResult, certificate_json, print_certificate


@dataclass(frozen=True)
class ImportResult:
    """A run that was carried home. `stored`: whether a study of the store knows its bundle and now the run;
    `record_file` is where it is kept in any case."""

    outcome: str
    reason: str | None
    mode: str
    device: str
    record: RunRecord
    bundle: str
    signed_by: str | None
    verdict: ModeVerdict | None
    certificate: Certificate | None
    measured: Mapping[str, Measurement]
    record_file: str
    stored: bool


def imported_json(result: ImportResult) -> dict[str, object]:
    """The one object that `toggle-edge import --json` prints: as of `certify`, and what was measured and kept."""
    return {
        **certificate_json(_certified(result)),
        "device": result.device,
        "bundle": {"digest": result.bundle, "signed_by": result.signed_by},
        "measured": {name: dataclasses.asdict(each) for name, each in result.measured.items()},
        "record_file": result.record_file,
        "stored": result.stored,
    }


def print_imported(result: ImportResult, console: Console) -> None:
    """For people: where the run came from and is kept, what it measured, then as `certify` shows it."""
    print_entry(console, "device", result.device)
    for name, each in result.measured.items():
        told = (
            f"unavailable: {each.reason}"
            if each.value is None
            else f"{interval(each, 3)} {each.unit}  n={each.n}"
        )
        print_entry(console, "measured" if name == next(iter(result.measured)) else "", f"{name} {told}")
    print_entry(console, "record", result.record_file)
    print_entry(
        console, "store", "recorded" if result.stored else "no study knows this bundle; kept as a folder only"
    )
    print_certificate(_certified(result), console)


def _certified(result: ImportResult) -> CertifyResult:
    return CertifyResult(
        outcome=result.outcome,
        reason=result.reason,
        mode=result.mode,
        run_id=result.record.run_id,
        bundle=result.bundle,
        verdict=result.verdict,
        certificate=result.certificate,
    )
