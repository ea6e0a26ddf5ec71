"""What `toggle-edge certify` found, and how it is shown."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text
from toggle_runtime.records import ModeVerdict

from toggle_edge.certify import Certificate
from toggle_edge.report.cells import STYLES, TITLE, place, print_entry, print_outcome, signed
from toggle_edge.report.verdicts import coverage_json, coverage_sentence, verdicts_json


@dataclass(frozen=True)
class CertifyResult:
    """A kept run, judged again. `verdict` is the device's claim; both it and `certificate` are None where the run did
    not end well."""

    outcome: str
    reason: str | None
    mode: str
    run_id: str
    bundle: str
    verdict: ModeVerdict | None
    certificate: Certificate | None


def certificate_json(result: CertifyResult) -> dict[str, object]:
    """The one object that `toggle-edge certify --json` prints. An infinite difference is null: one monitor gives a
    value where the other gives none, and `disagreements` says so."""
    verdict, certificate = result.verdict, result.certificate
    bound = certificate.bounds.get(result.mode) if certificate else None
    differences = certificate.differences if certificate else {}
    return {
        "outcome": result.outcome,
        "reason": result.reason,
        "mode": result.mode,
        "run": result.run_id,
        "bundle": {"digest": result.bundle},
        "certified": certificate.certified if certificate else False,
        "disagreements": list(certificate.disagreements) if certificate else [],
        "differences": {name: each if math.isfinite(each) else None for name, each in differences.items()},
        "verdict": verdict.verdict if verdict else None,
        "verdicts": verdicts_json(verdict) if verdict else [],
        "coverage": coverage_json(verdict, bound) if verdict else None,
        "avgpp": verdict.avgpp if verdict else None,
        "statement": bound.statement if bound else None,
    }


def print_certificate(result: CertifyResult, console: Console) -> None:
    """For people: the run, what both monitors say of each property, where they differ, the bound, the outcome."""
    print_entry(console, "run", f"{result.run_id} of bundle {result.bundle[:12]}, mode {result.mode}")
    certificate = result.certificate
    if result.verdict is not None and certificate is not None:
        console.print()
        console.print(_table(result.verdict, certificate))
        print_entry(console, "coverage", coverage_sentence(result.verdict))
        if result.mode in certificate.bounds:
            print_entry(console, "bound", certificate.bounds[result.mode].statement)
        word = "RTAMT agrees in every number" if certificate.certified else "NOT certified"
        print_entry(console, "certified", word)
        for disagreement in certificate.disagreements:
            print_entry(console, "", disagreement)
    print_outcome(console, result.outcome, result.reason)


def _table(verdict: ModeVerdict, certificate: Certificate) -> Table:
    table = Table(box=SIMPLE_HEAD, title=f"the device's claim and RTAMT, mode {verdict.mode}", **TITLE)
    table.add_column("property", no_wrap=True, min_width=24)
    table.add_column("verdict", no_wrap=True, min_width=9)
    table.add_column("robustness", justify="right", no_wrap=True)
    table.add_column("monitors apart by", justify="right")
    table.add_column("decided at")
    for each in verdict.verdicts:
        table.add_row(
            each.property.replace("_", " "),
            Text(each.verdict, style=STYLES[each.verdict]),
            signed(each.robustness, each.robustness_upper),
            f"{certificate.differences.get(each.property, math.inf):.1e}",
            Text(each.reason or place(each.argmin, {})),
        )
    return table
