"""What a run on this device found, for a person to read and for a program: verdicts, figures with units, and what could
not be measured and why."""

import dataclasses
import statistics
from typing import IO, Any, Dict, List, Optional, Tuple

from toggle_runtime import records
from toggle_runtime.conditions import disturbances
from toggle_runtime.records import Manifest, RunRecord

_WIDTH = 13


def judged(
    record: RunRecord, manifest: Manifest, mode: str
) -> Tuple[str, Optional[str], Optional[Dict[str, Any]]]:
    """Outcome, reason and verdict of a run under a mode. A run that did not go through keeps its own outcome."""
    verdicts = {verdict.mode: verdict for verdict in record.modes}
    default = verdicts.get(manifest.default_mode)
    undecided = record.outcome == records.ERROR and default is not None and default.verdict == records.UNSET
    found = verdicts.get(mode)
    data = None if found is None else dataclasses.asdict(found)
    if found is None or not (record.outcome in (records.PASS, records.FAIL) or undecided):
        outcome = records.ERROR if record.outcome == records.PASS else record.outcome
        return outcome, record.reason or f"the run has no verdict for mode {mode}", data
    coverage = found.coverage
    counted = f"{coverage.satisfied} of {coverage.probes} probes satisfy {mode}, it needs {coverage.required}"
    if found.verdict in (records.SATISFIED, records.MARGINAL):
        return records.PASS, None, data
    if found.verdict == records.VIOLATED:
        return records.FAIL, counted, data
    return records.ERROR, f"mode {mode} could not be decided: {found.reason or 'no reason given'}", data


def print_result(result: Dict[str, Any], out: IO[str]) -> None:
    """A page of at most 100 columns where the values allow it."""
    record = records.from_data(RunRecord, result["record"])
    signed = result["bundle"]["signed_by"]
    _entry(out, "bundle", f"{result['bundle']['digest'][:12]} mode {result['mode']}")
    _entry(out, "", f"signed by {signed}" if signed else "NOT signed")
    engine = result["engine"]
    _entry(out, "device", f"{result['device']['name']}: {record.conditions.get('cpu_model', 'unknown')}")
    _entry(
        out,
        "engine",
        f"onnxruntime {engine['onnxruntime']}, numpy {engine['numpy']}, {engine['found']}",
    )
    known = {
        key[: -len("_before")]: text for key, text in record.conditions.items() if key.endswith("_before")
    }
    told = {key.replace("_", " "): text for key, text in sorted(known.items())}
    read = [f"{key} {text}" for key, text in told.items() if not text.startswith(records.UNAVAILABLE)]
    _entry(out, "conditions", ", ".join(read) or "nothing could be read")
    unread = [key for key, text in told.items() if text.startswith(records.UNAVAILABLE)]
    if unread:
        _entry(out, "", f"unavailable: {', '.join(unread)} (why: --json)")
    for disturbance in disturbances(record.passes):
        _entry(out, "disturbed", disturbance)
    if record.parity is not None:
        within = record.parity.max_abs_logit_difference
        _entry(out, "parity", f"logits within {within:.1e} of the searched weights")
    out.write("\n")
    if result["verdict"] is not None:
        for line in _verdict_lines(result["verdict"]):
            out.write(f"{line}\n")
        out.write("\n")
    for name, text in figures(record):
        _entry(out, name, text)
    out.write("\n")
    _entry(out, "run", result["run_folder"])
    carried = result["carried"] or result["run_folder"]
    _entry(out, "next", f"at home: toggle-edge import {carried.rsplit('/', 1)[-1]}")
    _entry(out, "", "this device's own verdict; RTAMT judges it again there")
    out.write(f"\n{result['outcome']}{'  ' + result['reason'] if result['reason'] else ''}\n")


def figures(record: RunRecord) -> List[Tuple[str, str]]:
    """What was measured, by name, with unit and n; `unavailable: why` for what was not."""
    timed = [each for sample in record.latency for each in sample.generations if not each.warmup]
    ended = record.outcome not in (records.PASS, records.FAIL)
    why = "the run ended before that, for the reason below" if ended else "it was not asked for"
    decode = [statistics.median(each.token_ns) / 1e6 for each in timed if each.token_ns]
    cold = [each.load_ns / 1e6 for each in record.cold or () if each.load_ns is not None]
    found = [
        ("decode", _spread(decode, "ms/token", why)),
        ("first token", _spread([each.first_token_ns / 1e6 for each in timed], "ms", why)),
        ("load", _spread([sample.load_ns / 1e6 for sample in record.latency], "ms", why)),
        (
            "cold load",
            _spread(cold, "ms", next((each.reason for each in record.cold or () if each.reason), why)),
        ),
    ]
    memory = record.memory
    if memory is None or memory.peak_bytes is None:
        found.append(("peak memory", f"unavailable: {why if memory is None else memory.reason or why}"))
    else:
        found.append(
            ("peak memory", f"{memory.peak_bytes / 1e6:.1f} MB  n=1 ({memory.method}){_doubts(memory.flags)}")
        )
    energy = record.energy
    if energy is None or energy.gross_mj is None or energy.tokens < 1:
        found.append(("energy", f"unavailable: {why if energy is None else energy.reason or why}"))
    else:
        each = energy.gross_mj / energy.tokens
        told = f"{each:.2f} mJ/token gross  n=1 ({energy.method}; {energy.scope}){_doubts(energy.flags)}"
        found.append(("energy", told))
    return found


def _doubts(flags: List[str]) -> str:
    return f"  {records.DEGRADED}: {'; '.join(flags)}" if flags else ""


def _spread(values: List[float], unit: str, why: str) -> str:
    if not values:
        return f"unavailable: {why}"
    return f"{statistics.median(values):.4g} {unit} [{min(values):.4g} to {max(values):.4g}]  n={len(values)}"


def _verdict_lines(verdict: Dict[str, Any]) -> List[str]:
    lines = [f"{'property':<26} {'verdict':<10} robustness"]
    for each in verdict["verdicts"]:
        robustness, argmin = each["robustness"], each["argmin"]
        told = each["reason"] or ("" if robustness is None else f"{robustness:+.4f}")
        if argmin is not None:
            told += f"  worst at probe {argmin['probe']}, step {argmin['step']}"
        lines.append(f"{each['property'].replace('_', ' '):<26} {each['verdict']:<10} {told}")
    coverage, avgpp = verdict["coverage"], verdict["avgpp"]
    lines.append(
        f"{coverage['satisfied']} of {coverage['probes']} probes satisfy all of it, {coverage['required']} are needed; "
        f"AvgPP {'unavailable' if avgpp is None else format(avgpp, '.2f') + ' %'}"
    )
    return lines


def _entry(out: IO[str], name: str, text: str) -> None:
    # What a file or a kernel says may hold anything; none of it may command the terminal.
    out.write(f"{name:<{_WIDTH}}{''.join(c if c.isprintable() else '?' for c in text)}\n")
