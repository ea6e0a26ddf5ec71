"""The whole loop, once, as a newcomer runs it: `toggle-edge demo --json` in a folder of its own.

Everything here is real: the demo model, the search, the exporter, an sshd, the agent, onnxruntime, RTAMT. One run
serves all tests of this module.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from toggle_runtime.records import Argmin, ParitySample, RunRecord, Verdict, from_data, from_json, to_json
from toggle_runtime.trace_files import read_traces

from toggle_edge.bundle import probes_of, read_bundle
from toggle_edge.certify import certify
from toggle_edge.config import FP16, Config
from toggle_edge.fleet.device import load_device
from toggle_edge.fleet.sshd import sshd_path
from toggle_edge.pipeline import demo
from toggle_edge.pipeline.judging import judge_run
from toggle_edge.pipeline.preparing import prepare
from toggle_edge.pipeline.reranking import excerpts_of
from toggle_edge.profiles import load_profile
from toggle_edge.report.loop import CandidateResult, Predicted
from toggle_edge.report.progress import silent
from toggle_edge.sources import ProbeSource
from toggle_edge.store import open_store

pytestmark = pytest.mark.timeout(900)

MEASURED = {
    "ttft_ms",
    "decode_ms_p50",
    "decode_ms_p95",
    "decode_tokens_per_s",
    "memory_bytes",
    "energy_mj_per_token",
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def result(work: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "toggle_edge", "demo", "--json", "--work", str(work / "work")],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # Exactly one object on stdout; progress goes to stderr.
    assert "search" in done.stderr
    return dict(json.loads(done.stdout))


@pytest.fixture
def folder(work: Path, result: dict[str, Any]) -> Path:
    assert result["outcome"] == "PASS"
    return work / "work"


def satisfied(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [c for c in result["candidates"] if c["verdict"] == "SATISFIED" and c["certified"]]


def test_the_loop_passes_over_ssh_where_sshd_is_there(result: dict[str, Any]) -> None:
    assert result["outcome"] == "PASS"
    expected = "ssh" if sshd_path() else "local"
    assert result["device"] == {"name": "this-machine", "transport": expected}
    assert [trial["index"] for trial in result["trials"]] == list(range(36))
    assert result["uniform"]["cheapest_feasible"]["proxy_flops_ratio"] < 4
    assert len(result["candidates"]) >= 4


def test_a_certified_candidate_is_less_than_half_of_the_baseline(result: dict[str, Any]) -> None:
    small = [
        c for c in satisfied(result) if c["artifact_bytes"] <= 0.45 * result["baseline"]["artifact_bytes"]
    ]
    assert small
    for candidate in small:
        assert candidate["coverage"]["probes"] >= 59
        assert candidate["coverage"]["satisfied"] >= candidate["coverage"]["required"]
        assert 0 < candidate["coverage"]["lower_bound"] < 1


def test_every_measured_entry_is_a_measurement_with_its_pedigree(result: dict[str, Any]) -> None:
    for entry in (result["baseline"], *result["candidates"]):
        assert set(entry["measured"]) >= MEASURED
        for name, measurement in entry["measured"].items():
            assert set(measurement) == {"value", "unit", "method", "n", "ci95", "status", "reason"}, name
            if measurement["status"] == "ok":
                assert measurement["value"] > 0
                assert measurement["n"] >= 1
            else:
                assert measurement["value"] is None
                assert measurement["reason"]
        assert entry["measured"]["decode_bandwidth_share"]["value"] > 0
        for name in ("ttft_ms", "decode_ms_p50"):
            low, high = entry["measured"][name]["ci95"]
            assert low <= entry["measured"][name]["value"] <= high
        tail = entry["measured"]["decode_ms_p95"]
        assert (tail["ci95"], tail["reason"]) == (None, "no interval: needs at least 24 restarts, has 10")


def test_every_verdict_names_its_place_and_what_the_host_said(result: dict[str, Any]) -> None:
    for candidate in result["candidates"]:
        assert {v["property"] for v in candidate["verdicts"]} == {
            "coherence",
            "long_range_dependency",
            "contextual_consistency",
            "factual_accuracy",
        }
        for verdict in candidate["verdicts"]:
            assert (verdict["robustness"] >= 0) == (verdict["verdict"] in ("SATISFIED", "MARGINAL"))
            assert set(verdict["argmin"]) == {"probe", "step", "layer"}
            assert abs(verdict["robustness"] - verdict["robustness_host"]) < 0.3
        assert candidate["certified"], candidate["disagreements"]


def test_what_was_exported_is_what_was_searched(result: dict[str, Any]) -> None:
    for candidate in result["candidates"]:
        assert candidate["parity"]["max_abs_logit_difference"] <= 1e-4
        # The prediction of the size is a formula; only graph bytes may make the difference.
        assert candidate["artifact_bytes"] == pytest.approx(
            candidate["predicted"]["artifact_bytes"], rel=0.01
        )


def test_fronts_and_selections_name_candidates(result: dict[str, Any], folder: Path) -> None:
    by_id = {candidate["id"]: candidate for candidate in result["candidates"]}
    assert set(result["front"]["predicted"]) | set(result["front"]["measured"]) <= set(by_id)
    assert result["front"]["measured"]
    assert -1 <= result["kendall_tau"] <= 1
    assert list(result["selected"]) == ["strict", "optimal", "relaxed"]
    chosen = result["selected"]["optimal"]
    assert by_id[chosen["id"]]["verdict"] in ("SATISFIED", "MARGINAL")
    assert chosen["avgpp"] >= 95
    config = Config.from_json(json.loads(Path(chosen["config_file"]).read_text()))
    assert config.digest == chosen["config_digest"] == by_id[chosen["id"]]["config_digest"]
    assert folder in Path(chosen["config_file"]).parents


def test_bundles_on_the_host_are_whole_and_share_their_probes(result: dict[str, Any], folder: Path) -> None:
    bundles = [read_bundle(folder / "bundles" / candidate["id"]) for candidate in result["candidates"]]
    assert len({bundle.digest for bundle in bundles}) == len(bundles)
    assert len({bundle.manifest.files["probes/baseline.npz"].sha256 for bundle in bundles}) == 1


def test_everything_is_in_the_store(result: dict[str, Any], folder: Path) -> None:
    with open_store(f"sqlite:///{folder / 'toggle-edge.sqlite'}") as store:
        (study,) = store.studies()
        assert len(store.ledger(study.id).trials()) == len(result["trials"])
        runs = store.runs(study.id)
        assert len(runs) == len(store.bundles(study.id)) == len(result["candidates"]) + 1
        assert all(run.certified for run in runs)


def test_the_worker_held_nothing_but_numpy_and_the_engine(result: dict[str, Any], folder: Path) -> None:
    for candidate in result["candidates"]:
        record = from_json(RunRecord, (folder / "runs" / candidate["id"] / "record.json").read_text())
        assert set(record.modules) <= {"numpy", "onnxruntime"}
        assert record.environment["execution_provider"] == "CPUExecutionProvider"


def altered(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every way to change exactly one number in a piece of JSON, with where."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from (
                (where, {**value, key: changed}) for where, changed in altered(inner, f"{path}.{key}")
            )
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            for where, changed in altered(inner, f"{path}[{index}]"):
                yield where, [*value[:index], changed, *value[index + 1 :]]
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, value + 1 if isinstance(value, int) else value + 1e-6


def test_altering_any_number_of_a_verdict_on_the_way_home_is_noticed(
    result: dict[str, Any], folder: Path
) -> None:
    candidate = satisfied(result)[0]
    home = folder / "runs" / candidate["id"]
    record = from_json(RunRecord, (home / "record.json").read_text())
    manifest = read_bundle(folder / "bundles" / candidate["id"]).manifest
    traces, repeated = read_traces(home / "traces.npz")

    def certified(claim: RunRecord) -> bool:
        return certify(
            claim.modes, manifest.specification, traces, repeated, claim.noise_floor, candidates=1
        ).certified

    assert certified(record)
    claims = json.loads(to_json(record))
    changes = [
        (where, {**claims, key: changed})
        for key in ("modes", "noise_floor")
        for where, changed in altered(claims[key], key)
    ]
    assert len(changes) > 50
    # A sample that covers every kind of number; certify's own tests go through all of them.
    for where, changed in changes[:: max(1, len(changes) // 25)]:
        assert not certified(from_data(RunRecord, changed)), where
    assert not certified(dataclasses.replace(record, modes=record.modes[1:]))


def hostile_row(record: RunRecord) -> CandidateResult:
    """A candidate whose unproved verdict names one place that exists and three that do not."""
    places = [Argmin(0, 0), Argmin(59, 0), Argmin(-1, 0), Argmin(0, 32)]
    verdicts = [Verdict("coherence", "SATISFIED", 0.1, place) for place in places]
    modes = {"optimal": dataclasses.replace(record.modes[0], verdicts=verdicts)}
    config, predicted = Config.of({"a": FP16}), Predicted(1.0, 1.0, 1, 1, None)
    return CandidateResult("x", None, config, predicted, 1, 0.0, "ERROR", "", {}, modes, {}, None)


def test_a_device_that_reports_another_outcome_than_its_verdict_is_an_error(
    result: dict[str, Any], folder: Path
) -> None:
    chosen = result["selected"]["optimal"]["id"]
    home, bundle = folder / "runs" / chosen, read_bundle(folder / "bundles" / chosen)
    record = from_json(RunRecord, (home / "record.json").read_text())
    profile, data = load_profile("default"), demo.demo_folder()
    prepared = prepare(data / "model", profile, [ProbeSource(None, str(data / "probes.jsonl"))], silent)
    # What the bundle says of its probes is as good as the host's own, so that it can be judged without the model.
    probes = probes_of(bundle)
    assert [(p.steps, p.answer_steps) for p in probes] == [
        (p.steps, p.answer_steps) for p in prepared.probes.certificate
    ]
    assert judge_run(record, home / "traces.npz", bundle, probes, candidates=5).outcome == "PASS"
    places = excerpts_of(prepared, [hostile_row(record)])
    assert set(places) == {(0, 0)}
    for parity in (None, ParitySample(2e-4, 1e-4, 9), ParitySample(0.0, 1e-4, 0)):
        unproved = dataclasses.replace(record, parity=parity)
        judged = judge_run(unproved, home / "traces.npz", bundle, probes, candidates=5)
        assert judged.outcome == "ERROR"
        assert "against the canary" in (judged.reason or "")
    lied = dataclasses.replace(record, outcome="FAIL")
    judged = judge_run(lied, home / "traces.npz", bundle, probes, candidates=5)
    assert judged.outcome == "ERROR"
    assert "its certified verdict means PASS" in (judged.reason or "")
    (home / "traces.npz").write_bytes((home / "traces.npz").read_bytes()[:-100])
    assert judge_run(record, home / "traces.npz", bundle, probes, candidates=5).outcome == "ERROR"
    assert judge_run(record, None, bundle, probes, candidates=5).outcome == "ERROR"
    other = read_bundle(folder / "bundles" / "fp16")
    assert "expected the record of bundle" in (
        judge_run(record, None, other, probes, candidates=5).reason or ""
    )


def test_candidates_are_recorded_trials(result: dict[str, Any], folder: Path) -> None:
    with open_store(f"sqlite:///{folder / 'toggle-edge.sqlite'}") as store:
        trials = store.ledger(store.studies()[0].id).trials()
    assert [trial.index for trial in trials] == list(range(len(trials)))
    by_trial = {candidate["trial"]: candidate for candidate in result["candidates"]}
    for index, candidate in by_trial.items():
        assert trials[index].config.digest == candidate["config_digest"]


def test_a_second_run_evaluates_nothing_again_and_makes_the_same_bundles(
    result: dict[str, Any], folder: Path
) -> None:
    digests = {c["id"]: read_bundle(folder / "bundles" / c["id"]).digest for c in result["candidates"]}
    arguments = [sys.executable, "-m", "toggle_edge", "demo", "--json", "--local", "--work", str(folder)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode in (0, 1), done.stderr[-3000:]
    again = json.loads(done.stdout)
    assert again["device"]["transport"] == "local"
    assert [c["config_digest"] for c in again["candidates"]] == [
        c["config_digest"] for c in result["candidates"]
    ]
    assert {c["id"]: read_bundle(folder / "bundles" / c["id"]).digest for c in again["candidates"]} == digests
    with open_store(f"sqlite:///{folder / 'toggle-edge.sqlite'}") as store:
        (study,) = store.studies()
        assert len(store.ledger(study.id).trials()) == len(result["trials"])
        # What was measured again is new: both runs of every bundle are kept.
        assert len(store.runs(study.id)) == 2 * len(store.bundles(study.id))


def test_without_sshd_the_demo_says_so_and_uses_the_local_transport(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def report(stage: str, done: int, of: int, note: str = "") -> None:
        said.append(f"{stage}: {note}")

    monkeypatch.setattr(demo, "sshd_path", lambda: None)
    with demo.this_machine(tmp_path, local=False, report=report) as device:
        assert (device.name, device.transport) == ("this-machine", "local")
        assert load_device(tmp_path / "devices" / "this-machine.toml") == device
    assert said == ["sshd: not found: using the local transport; install openssh-server for SSH"]
