"""What `toggle-edge validate` found, and how it is shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text
from toggle_runtime.conditions import disturbances
from toggle_runtime.records import OK, Measurement, ModeVerdict, ParitySample, PassConditions

from toggle_edge.bundle import Bundle
from toggle_edge.certify import Certificate
from toggle_edge.fleet.device import Device
from toggle_edge.report.cells import TITLE, interval, print_entry, print_outcome
from toggle_edge.report.verdicts import coverage_json, coverage_sentence, verdict_table, verdicts_json

_SHOWN = {
    "decode_ms_p50": ("decode", "ms/token", 1.0, 3),
    "decode_ms_p95": ("decode p95", "ms/token", 1.0, 3),
    "decode_bandwidth_share": ("of bandwidth", "%", 100.0, 0),
    "decode_drift_ratio": ("drift", "times the first", 1.0, 3),
    "ttft_ms": ("first token", "ms", 1.0, 2),
    "prefill_compute_share": ("of arithmetic", "%", 100.0, 0),
    "load_cold_ms": ("load, cold", "ms", 1.0, 0),
    "load_ms": ("load, warm", "ms", 1.0, 0),
    "memory_bytes": ("peak memory", "MB", 1e-6, 1),
    "memory_steady_bytes": ("steady memory", "MB", 1e-6, 1),
    "energy_mj_per_token": ("energy", "mJ/token", 1.0, 2),
}


_ONLY_IF_ASKED = frozenset({"decode_drift_ratio"})


@dataclass(frozen=True)
class ValidationResult:
    """One bundle on one device. `verdict` and `certificate` are None when the run did not end well; `over` says of
    each broken limit of the device's budget how; `record_file` is where the run's record was kept."""

    outcome: str
    reason: str | None
    mode: str
    device: Device
    bundle: Bundle
    run_id: str
    conditions: Mapping[str, str]
    parity: ParitySample | None
    verdict: ModeVerdict | None
    certificate: Certificate | None
    measured: Mapping[str, Measurement]
    budget: Mapping[str, float]
    over: Mapping[str, str]
    record_file: str
    passes: Sequence[PassConditions] = ()


def validation_json(result: ValidationResult) -> dict[str, object]:
    """The one object that `toggle-edge validate --json` prints."""
    verdict, certificate = result.verdict, result.certificate
    bound = certificate.bounds.get(result.mode) if certificate else None
    return {
        "outcome": result.outcome,
        "reason": result.reason,
        "mode": result.mode,
        "device": {"name": result.device.name, "transport": result.device.transport},
        "bundle": {"digest": result.bundle.digest, "signed_by": result.bundle.signed_by},
        "run": result.run_id,
        "record_file": result.record_file,
        "conditions": dict(result.conditions),
        "parity": dataclasses.asdict(result.parity) if result.parity else None,
        "verdict": verdict.verdict if verdict else None,
        "verdicts": verdicts_json(verdict) if verdict else [],
        "coverage": coverage_json(verdict, bound) if verdict else None,
        "avgpp": verdict.avgpp if verdict else None,
        "certified": certificate.certified if certificate else False,
        "disagreements": list(certificate.disagreements) if certificate else [],
        "measured": {name: dataclasses.asdict(each) for name, each in result.measured.items()},
        "budget": dict(result.budget),
        "over_budget": dict(result.over),
        "passes": [dataclasses.asdict(each) for each in result.passes],
    }


def print_validation(result: ValidationResult, console: Console) -> None:
    """For people: device, bundle, conditions, the contract, what was measured, the outcome."""
    link = "over ssh, host key pinned" if result.device.transport == "ssh" else "local transport"
    print_entry(console, "device", f"{result.device.name}, {link}")
    signature = f"signed by {result.bundle.signed_by}" if result.bundle.signed_by else "NOT signed"
    print_entry(console, "bundle", f"{result.bundle.digest[:12]} mode {result.mode}, {signature}")
    known = {
        key.removesuffix("_before"): value.partition(":")[0]
        for key, value in result.conditions.items()
        if "_after" not in key
    }
    print_entry(
        console, "conditions", ", ".join(f"{key} {value}" for key, value in known.items()) or "unknown"
    )
    for disturbance in disturbances(result.passes):
        print_entry(console, "disturbed", disturbance)
    if result.parity is not None:
        parity = result.parity
        part = (
            "" if parity.share == 1.0 else f", in the {parity.share:.0%} of texts that rounding touches least"
        )
        print_entry(
            console,
            "parity",
            f"logits within {parity.max_abs_logit_difference:.1e} of the searched weights{part}",
        )
    console.print()
    if result.verdict is not None:
        console.print(verdict_table(f"the contract on the device, mode {result.mode}", result.verdict, {}))
        agrees = result.certificate is not None and result.certificate.certified
        word = "certified: RTAMT agrees in every number" if agrees else "NOT certified"
        print_entry(console, "coverage", f"{coverage_sentence(result.verdict)}; {word}")
        console.print()
    console.print(_measured_table(result))
    print_entry(console, "record", result.record_file)
    print_outcome(console, result.outcome, result.reason)


def _measured_table(result: ValidationResult) -> Table:
    table = Table(box=SIMPLE_HEAD, title="measured on the device", **TITLE)
    table.add_column("", no_wrap=True, min_width=12)
    table.add_column("measured [95 %]")
    table.add_column("budget", no_wrap=True)
    for name, (label, unit, factor, digits) in _SHOWN.items():
        each = result.measured.get(name)
        if name in _ONLY_IF_ASKED and (each is None or each.value is None):
            continue
        limit = result.budget.get(name)
        allowed = (
            "" if limit is None else f"{limit * factor:g} {unit}  {'OVER' if name in result.over else 'ok'}"
        )
        table.add_row(label, Text(_text(each, unit, factor, digits)), allowed)
    return table


def _text(each: Measurement | None, unit: str, factor: float, digits: int) -> str:
    if each is None or each.value is None:
        return f"unavailable: {each.reason if each else 'not measured'}"
    ci95 = None if each.ci95 is None else [bound * factor for bound in each.ci95]
    scaled = dataclasses.replace(each, value=each.value * factor, ci95=ci95)
    doubtful = "" if each.status == OK else f"{each.status}: "
    why = f"; {doubtful}{each.reason}" if each.reason else ""
    return f"{interval(scaled, digits)} {unit}  n={each.n}{why}"
