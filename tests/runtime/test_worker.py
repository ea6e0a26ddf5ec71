"""The worker: its passes on a real exported bundle, in a process of its own, with nothing but numpy and the engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toggle_runtime import facts
from toggle_runtime.canary import write_canary
from toggle_runtime.records import (
    CapacitySample,
    ColdLoad,
    LatencySample,
    Manifest,
    MemorySample,
    ModeSpecification,
    ModeVerdict,
    ParitySample,
    SustainedSample,
    from_data,
)
from toggle_runtime.reduction import Limits, reduce_baseline
from toggle_runtime.reduction_files import write_reduced
from toggle_runtime.signals import SIGNALS
from toggle_runtime.trace_files import read_traces

from toggle_edge.bundle import BASELINE, CANARY, PROBES, Bundle, build_bundle
from toggle_edge.compress.bank import LayerBank
from toggle_edge.config import Config, Format
from toggle_edge.export.canary import canary_of
from toggle_edge.export.graphs import build_skeleton
from toggle_edge.export.onnx import export_onnx
from toggle_edge.export.skeleton import Skeleton
from toggle_edge.fleet.agent_client import agent_archive
from toggle_edge.fleet.device import Device
from toggle_edge.fleet.environment import worker_wheels
from toggle_edge.fleet.facts import read_facts
from toggle_edge.model.load import LanguageModel
from toggle_edge.probes import Probe, probes_to_json
from toggle_edge.signals import baseline_outputs, traces_of

SPECIFICATION = {
    "optimal": ModeSpecification(
        {"coherence": "always (jsd <= 0.25)", "long_range_dependency": "always (attention >= 0.7)"},
        0.95,
        95.0,
    )
}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The worker's environment as a device has it: wheels unpacked into a folder."""
    folder = tmp_path_factory.mktemp("environment")
    for wheel in worker_wheels(read_facts(facts.gather(folder), Device(name="here", transport="local"))):
        with zipfile.ZipFile(wheel.path) as archive:
            archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def bundle(
    tiny: LanguageModel,
    skeleton: Skeleton,
    probes: tuple[Probe, ...],
    tmp_path_factory: pytest.TempPathFactory,
) -> Bundle:
    return bundle_of(tiny, skeleton, Format(8, 64), probes, tmp_path_factory.mktemp("bundle"))


def bundle_of(
    model: LanguageModel, skeleton: Skeleton, fmt: Format, probes: tuple[Probe, ...], folder: Path
) -> Bundle:
    config = Config.uniform(tuple(layer.name for layer in model.layers), fmt)
    artifact = export_onnx(skeleton, LayerBank(model).compressed(config), folder / "artifact")
    (folder / "probes.json").write_text(probes_to_json(probes))
    baseline = baseline_outputs(model.module, probes, free_running=True)
    write_reduced(
        folder / "baseline.npz",
        [
            # A random model attends to everything a little.
            reduce_baseline(
                outputs,
                np.array(probe.continuation),
                probe.prompt_tokens,
                SIGNALS,
                Limits(attention_ids=1024),
            )
            for probe, outputs in zip(probes, baseline, strict=True)
        ],
    )
    candidate = LayerBank(model).assemble(config)
    write_canary(
        folder / "canary.npz",
        canary_of(candidate, probes[0].tokens, vocabulary=512, context_tokens=model.shape.context_tokens),
    )
    return build_bundle(
        folder / "bundle",
        artifact,
        config=config,
        shape=model.shape,
        specification=SPECIFICATION,
        default_mode="optimal",
        extra={
            PROBES: folder / "probes.json",
            BASELINE: folder / "baseline.npz",
            CANARY: folder / "canary.npz",
        },
        environment={},
        key=None,
    )


def run_pass(
    name: str, bundle: Bundle, unpacked: Path, folder: Path, **more: Any
) -> tuple[int, list[dict[str, Any]]]:
    """Start the worker as the agent does; return its exit status and its events."""
    pyz, run_folder, output = folder / "agent.pyz", folder / "run", folder / "output"
    pyz.write_bytes(agent_archive())
    output.mkdir(exist_ok=True)
    for path, blob in bundle.manifest.files.items():
        target = run_folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            target.hardlink_to(bundle.blob_path(blob.sha256))
    request = {
        "pass": name,
        "environment": str(unpacked),
        "bundle": str(run_folder),
        "manifest": asdict(bundle.manifest),
        "output": str(output),
        "threads": 1,
        "generations": 3,
        "warmups": 1,
        "tokens": 6,
        **more,
    }
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(pyz), "worker", str(os.getpid())],
        input=json.dumps(request) + "\n",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def result_of(events: list[dict[str, Any]]) -> dict[str, Any]:
    assert [event["event"] for event in events[:-1]] == ["progress"] * (len(events) - 1)
    assert events[-1]["event"] == "result", events[-1]
    return events[-1]


def test_verify_computes_the_hosts_signals_up_to_kernel_noise(
    tiny: LanguageModel, probes: tuple[Probe, ...], bundle: Bundle, environment: Path, tmp_path: Path
) -> None:
    status, events = run_pass("verify", bundle, environment, tmp_path)
    result = result_of(events)
    assert status == 0
    traces, repeated = read_traces(tmp_path / "output" / result["traces"])
    assert len(traces) == len(repeated) == len(probes)
    candidate = LayerBank(tiny).assemble(Config.from_json(bundle.manifest.config))
    host = traces_of(candidate, probes, baseline_outputs(tiny.module, probes, free_running=True))
    for ours, theirs in zip(traces, host, strict=True):
        assert ours.lower.keys() == ours.upper.keys() == theirs.signals.keys()
        for name, values in theirs.signals.items():
            if name == "departure":  # one other choice may be the first one
                assert (ours.lower[name] == ours.upper[name]).all()
                continue
            assert (ours.lower[name] <= values + 0.1).all(), name
            assert (ours.upper[name] >= values - 0.1).all(), name
            assert (ours.upper[name] - ours.lower[name]).max() < 0.05, name
    (judged,) = (from_data(ModeVerdict, mode) for mode in result["modes"])
    assert {verdict.property for verdict in judged.verdicts} == set(SPECIFICATION["optimal"].properties)
    assert result["environment"]["execution_provider"] == "CPUExecutionProvider"


def test_a_traced_graph_runs_as_the_others_do(
    gpt_neox: LanguageModel, probes: tuple[Probe, ...], environment: Path, tmp_path: Path
) -> None:
    traced = bundle_of(gpt_neox, build_skeleton(gpt_neox, tmp_path), Format(8, 32), probes, tmp_path)
    results = {}
    for name in ("parity", "verify", "latency"):
        (tmp_path / name).mkdir()
        status, events = run_pass(name, traced, environment, tmp_path / name, generations=1, warmups=0)
        results[name] = result_of(events)
        assert status == 0
    assert from_data(ParitySample, results["parity"]["sample"]).max_abs_logit_difference <= 1e-4
    assert from_data(LatencySample, results["latency"]["sample"]).load_ns > 0
    traces, _ = read_traces(tmp_path / "verify" / "output" / results["verify"]["traces"])
    candidate = LayerBank(gpt_neox).assemble(Config.from_json(traced.manifest.config))
    host = traces_of(candidate, probes, baseline_outputs(gpt_neox.module, probes, free_running=True))
    for ours, theirs in zip(traces, host, strict=True):
        assert ours.lower.keys() == theirs.signals.keys()
        for name in ("jsd", "attention"):
            np.testing.assert_allclose(ours.lower[name], theirs.signals[name], atol=0.1, err_msg=name)


def test_the_workers_process_holds_numpy_and_the_engine_and_nothing_else(
    bundle: Bundle, environment: Path, tmp_path: Path
) -> None:
    # Looked at in the worker's own sys.modules, after it has done its work.
    for name in ("verify", "latency", "memory"):
        _, events = run_pass(name, bundle, environment, tmp_path)
        assert set(result_of(events)["modules"]) <= {"numpy", "onnxruntime"}


def test_parity_holds_for_what_was_searched_and_needs_a_canary(
    tiny: LanguageModel, bundle: Bundle, environment: Path, tmp_path: Path
) -> None:
    status, events = run_pass("parity", bundle, environment, tmp_path)
    result = result_of(events)
    sample = from_data(ParitySample, result["sample"])
    assert status == 0
    assert sample.max_abs_logit_difference <= sample.tolerance == 1e-4
    assert sample.compared == 2 * 64 * tiny.shape.vocabulary
    assert set(result["modules"]) <= {"numpy", "onnxruntime"}
    (tmp_path / "run" / CANARY).unlink()
    (tmp_path / "run" / CANARY).write_bytes(b"")
    status, events = run_pass("parity", bundle, environment, tmp_path)
    assert (status, events[-1]["event"]) == (1, "error")
    assert "canary.npz: expected a whole .npz" in events[-1]["message"]


def test_latency_keeps_every_token_and_flags_warmups(
    bundle: Bundle, environment: Path, tmp_path: Path
) -> None:
    _, events = run_pass("latency", bundle, environment, tmp_path)
    sample = from_data(LatencySample, result_of(events)["sample"])
    assert [generation.warmup for generation in sample.generations] == [True, False, False, False]
    assert sample.load_ns > 0
    for generation in sample.generations:
        assert len(generation.token_ns) == 5  # the first of 6 tokens is timed as the first
        assert min(generation.first_token_ns, *generation.token_ns) > 0


def test_memory_is_the_workers_own_peak(bundle: Bundle, environment: Path, tmp_path: Path) -> None:
    _, events = run_pass("memory", bundle, environment, tmp_path)
    sample = from_data(MemorySample, result_of(events)["sample"])
    assert sample.peak_bytes is not None
    assert 20e6 < sample.peak_bytes < 1e9


def test_energy_generates_for_as_long_as_it_is_told(
    bundle: Bundle, environment: Path, tmp_path: Path
) -> None:
    _, events = run_pass("energy", bundle, environment, tmp_path, seconds=0.3)
    assert {"event": "progress", "step": "loaded"} in events
    assert result_of(events)["tokens"] % 6 == 0
    assert result_of(events)["tokens"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pass": "dance"}, "dance"),
        ({"environment": "/nonexistent"}, "numpy"),
        ({"tokens": 10_000}, "do not fit a context"),
    ],
)
def test_what_cannot_be_done_is_an_error_and_not_silence(
    bundle: Bundle, environment: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    status, events = run_pass("latency", bundle, environment, tmp_path, **change)
    assert status == 1
    assert events[-1]["event"] == "error"
    assert message in events[-1]["message"]


def test_a_target_that_this_agent_does_not_run_is_refused(
    bundle: Bundle, environment: Path, tmp_path: Path
) -> None:
    manifest = {**asdict(bundle.manifest), "target": "gguf"}
    _, events = run_pass("latency", bundle, environment, tmp_path, manifest=manifest)
    assert "this agent runs ['executorch-xnnpack', 'onnx-cpu', " in events[-1]["message"]
    assert from_data(Manifest, manifest).target == "gguf"


def test_longer_prompts_are_timed_where_they_fit(
    tiny: LanguageModel, bundle: Bundle, environment: Path, tmp_path: Path
) -> None:
    room = tiny.shape.context_tokens
    _, events = run_pass("latency", bundle, environment, tmp_path, contexts=[20, room])
    sample = from_data(LatencySample, result_of(events)["sample"])
    assert [(each.warmup, each.prompt_tokens) for each in sample.contexts or ()] == [(True, 20), (False, 20)]


def test_a_cold_load_is_timed_or_says_why_not(bundle: Bundle, environment: Path, tmp_path: Path) -> None:
    _, events = run_pass("cold", bundle, environment, tmp_path)
    sample = from_data(ColdLoad, result_of(events)["sample"])
    assert (sample.load_ns is None) == (sample.first_token_ns is None) == (sample.reason is not None)
    assert sample.load_ns is None or sample.load_ns > 0


def test_a_sustained_run_and_the_devices_limits_are_measured(
    bundle: Bundle, environment: Path, tmp_path: Path
) -> None:
    _, events = run_pass("sustained", bundle, environment, tmp_path, seconds=0.3)
    sample = from_data(SustainedSample, result_of(events)["sample"])
    assert sample.starts_ns[0] < 0.1e9
    assert sample.starts_ns[-1] < 0.3e9
    _, events = run_pass("capacity", bundle, environment, tmp_path)
    capacity = from_data(CapacitySample, result_of(events)["sample"])
    assert min(*capacity.copied_per_s, *capacity.int8_per_s) > 0
