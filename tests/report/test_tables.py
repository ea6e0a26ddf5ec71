"""What people read: it fits 100 columns, says what could not be measured, and never hides a violation."""

from __future__ import annotations

import dataclasses
import io
import json

from rich.console import Console
from toggle_runtime.records import Argmin, Coverage, Measurement, ModeVerdict, Verdict, unavailable

from toggle_edge.certify import Certificate, CoverageBound
from toggle_edge.config import Config, Format
from toggle_edge.report.cells import WIDTH
from toggle_edge.report.loop import CandidateResult, LoopResult, Predicted, TrialRow, loop_json
from toggle_edge.report.tables import print_loop
from toggle_edge.selection import Choice

UNIFORM = TrialRow(2, "uniform int8-g64", "d" * 64, "int8-g64 ×2", 2.0, 99.8, {"optimal": True})


def judged(verdict: str, robustness: float) -> ModeVerdict:
    verdicts = [
        Verdict("coherence", "SATISFIED", 0.061, Argmin(17, 9), 0.02),
        Verdict("factual_accuracy", verdict, robustness, Argmin(52, 30), robustness),
    ]
    return ModeVerdict("optimal", verdict, robustness, Coverage(56, 59, 57), 97.5, verdicts)


def candidate(id: str, verdict: str, robustness: float, milliseconds: float) -> CandidateResult:
    interval = [milliseconds * 0.98, milliseconds * 1.02]
    bound = CoverageBound(
        "optimal", 56, 59, 5, 0.8, "With 95 % confidence, at least 80.0 % of prompts satisfy it."
    )
    return CandidateResult(
        id=id,
        trial=7,
        config=Config.of({"a": Format(4, 32), "b": Format(16)}),
        predicted=Predicted(1e6, 3.3, 1_000_000, 1_100_000, 97.0),
        artifact_bytes=1_100_000,
        parity=1e-5,
        outcome="PASS",
        reason=None,
        measured={
            "ttft_ms": Measurement(3.1, "ms", "clock", 30, [3.0, 3.2]),
            "decode_ms_p50": Measurement(milliseconds, "ms", "clock", 30, interval),
            "memory_bytes": Measurement(7e7, "bytes", "VmHWM", 1),
            "energy_mj_per_token": unavailable("mJ/token", "none", "no meter on this device"),
        },
        modes={"optimal": judged(verdict, robustness)},
        host_modes={"optimal": judged("SATISFIED", 0.02)},
        certificate=Certificate(True, (), {"optimal": bound}, {}),
    )


def loop() -> LoopResult:
    good, bad = candidate("trial-7", "SATISFIED", 0.02, 0.5), candidate("trial-9", "VIOLATED", -0.118, 0.4)
    baseline = dataclasses.replace(
        candidate("fp16", "SATISFIED", 0.25, 1.0), trial=None, artifact_bytes=2_000_000
    )
    chosen = Choice("optimal", "trial-7", "trial-7 decodes fastest.", (), {"trial-9": "violated"})
    none = Choice("strict", None, "Nothing qualifies for strict.", (), {})
    return LoopResult(
        outcome="PASS",
        reason=None,
        study="demo-0",
        device="this-machine",
        transport="ssh",
        conditions={"cpu_model": "Cortex-A78AE", "governor_before": "schedutil", "onnxruntime": "1.31.1"},
        default_mode="optimal",
        trials=(UNIFORM, dataclasses.replace(UNIFORM, index=3, feasible={"optimal": False})),
        cheapest_uniform=UNIFORM,
        baseline=baseline,
        candidates=(good, bad),
        predicted_front=("trial-7", "trial-9"),
        measured_front=("trial-7",),
        kendall_tau=0.33,
        selected={"strict": none, "optimal": chosen, "relaxed": dataclasses.replace(chosen, mode="relaxed")},
        predicted_selection={"strict": None, "optimal": "trial-9", "relaxed": "trial-7"},
        explanations={"strict": "Nothing.", "optimal": "trial-9 fell out.", "relaxed": "Confirmed."},
        config_files={"fp16": "f.json", "trial-7": "work/configs/trial-7.json", "trial-9": "c.json"},
        excerpts={(52, 30): "torque: 45 [Nm] and then"},
        seconds=90.0,
    )


def printed(result: LoopResult) -> str:
    stream = io.StringIO()
    print_loop(result, Console(file=stream, width=WIDTH, color_system=None))
    return stream.getvalue()


def test_it_fits_100_columns_without_colour() -> None:
    text = printed(loop())
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "\x1b" not in text


def test_a_violation_is_shown_with_its_place_and_what_the_host_said() -> None:
    (line,) = [line for line in printed(loop()).splitlines() if "factual" in line and "VIOLATED" in line]
    assert "-0.118" in line
    assert "+0.020" in line
    assert "torque: 45 [Nm]" in " ".join(printed(loop()).split())


def test_what_was_decided_stands_with_its_evidence() -> None:
    text = printed(loop())
    assert "this-machine over ssh, host key pinned" in text
    assert "Cortex-A78AE, governor schedutil, load unavailable" in text
    assert "0.500 [0.490, 0.510] ms, fp16 baseline 1.000 [0.980, 1.020] ms: 2.00× faster" in text
    assert "0.55 of it" in text
    assert "2 configs evaluated, 1 feasible in some mode" in text
    assert "int8-g64 ×2 with 2.00× fewer proxy FLOPs" in " ".join(text.split())
    assert "unavailable: no meter on this device" in text
    assert "optimal and relaxed select the same candidate, trial-7" in text
    assert "formula is not public" in text
    assert "work/configs/trial-7.json" in text


def test_a_slower_candidate_is_called_slower() -> None:
    result = loop()
    slow = dataclasses.replace(
        result.candidates[0],
        measured={
            **result.candidates[0].measured,
            "decode_ms_p50": Measurement(2.0, "ms", "c", 30, [1.9, 2.1]),
        },
    )
    assert "2.00× slower" in printed(dataclasses.replace(result, candidates=(slow, result.candidates[1])))


def test_a_run_that_failed_says_why_in_its_row() -> None:
    result = loop()
    failed = dataclasses.replace(
        result.candidates[1],
        outcome="ERROR",
        reason="pass verify: killed by SIGKILL",
        modes={},
        certificate=None,
        measured={},
    )
    text = printed(dataclasses.replace(result, candidates=(result.candidates[0], failed)))
    assert "pass verify: killed by SIGKILL" in text
    assert "unavailable" in text


def test_the_json_has_every_key_and_no_nan() -> None:
    data = json.loads(json.dumps(loop_json(loop()), allow_nan=False))
    assert set(data) >= {
        "outcome",
        "study",
        "device",
        "baseline",
        "candidates",
        "front",
        "kendall_tau",
        "selected",
    }
    assert data["selected"]["strict"] is None
    assert data["selected"]["optimal"]["config_file"] == "work/configs/trial-7.json"
    assert data["uniform"]["cheapest_feasible"]["index"] == 2
    assert [trial["index"] for trial in data["trials"]] == [2, 3]
    first = data["candidates"][0]
    assert set(first) >= {
        "id", "config_digest", "avgpp", "predicted", "artifact_bytes", "measured", "verdicts", "certified"
    }  # fmt: skip
    assert first["verdicts"][0]["robustness_host"] == 0.061
    assert first["measured"]["energy_mj_per_token"]["reason"] == "no meter on this device"
    assert first["coverage"] == {"satisfied": 56, "probes": 59, "required": 57, "lower_bound": 0.8}
