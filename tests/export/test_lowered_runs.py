"""A bundle for ExecuTorch on a device: the real agent, the real runner, and the signals that the host computes."""

from __future__ import annotations

import dataclasses
import platform
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lowerings import MIXED, NARROW, request_of
from runners import why_not_run
from toggle_runtime.canary import read_canary, write_canary
from toggle_runtime.plan import Plan
from toggle_runtime.records import PASS, ModeSpecification
from toggle_runtime.reduction import Limits, reduce_baseline
from toggle_runtime.reduction_files import write_reduced
from toggle_runtime.signals import SIGNALS
from toggle_runtime.trace_files import read_traces

from toggle_edge.bundle import BASELINE, CANARY, PROBES, Bundle, build_bundle
from toggle_edge.export import Made, narrowed_shape
from toggle_edge.fleet.active import switch_in, talk
from toggle_edge.fleet.deploy import RunResult, run_bundle
from toggle_edge.fleet.device import Device
from toggle_edge.model.load import LanguageModel
from toggle_edge.pipeline.judging import judge_run
from toggle_edge.probes import Probe, probes_to_json
from toggle_edge.signals import baseline_outputs, traces_of
from toggle_edge.structure import WHOLE

# Random models follow nothing, so the contract asks for what any would keep: what is looked at are signals.
SPECIFICATION = {
    "optimal": ModeSpecification(
        {"coherence": "always (jsd <= 1.0)", "rows": "always (attention >= -1.0)"}, 1.0, 0.0
    )
}
PLAN = Plan(
    ["parity", "verify", "latency", "memory", "energy"],
    restarts=2,
    generations=2,
    warmups=1,
    tokens=6,
    idle_s=0.0,
)
CASES = {
    "llama": ("llama", MIXED, WHOLE),
    "narrowed": ("llama", MIXED, NARROW),
    "gpt2": ("gpt2", ("fp32",), WHOLE),
}


@pytest.fixture(scope="module", autouse=True)
def _runner() -> None:
    if (why := why_not_run(platform.machine())) is not None:
        pytest.skip(why)


@pytest.fixture(scope="module")
def texts() -> tuple[Probe, ...]:
    rng = np.random.default_rng(5)
    rows = [rng.integers(3, 512, size).tolist() for size in (24, 31, 40)]
    return tuple(
        Probe(str(index), tuple(row), prompt_tokens=10 + index, answer_steps=(len(row) - 12 - index,))
        for index, row in enumerate(rows)
    )


def bundle_of(name: str, model: LanguageModel, made: Made, texts: tuple[Probe, ...], folder: Path) -> Bundle:
    _, formats, structure = CASES[name]
    request = request_of(model, formats, structure)
    (folder / "probes.json").write_text(probes_to_json(texts))
    baseline = baseline_outputs(model.module, texts, free_running=True)
    write_reduced(
        folder / "baseline.npz",
        [
            reduce_baseline(
                outputs, np.array(text.continuation), text.prompt_tokens, SIGNALS, Limits(attention_ids=1024)
            )
            for text, outputs in zip(texts, baseline, strict=True)
        ],
    )
    return build_bundle(
        folder / "bundle",
        made.artifact,
        config=request.config,
        shape=model.shape if request.kept is None else narrowed_shape(model.shape, request.kept),
        specification=SPECIFICATION,
        default_mode="optimal",
        extra={PROBES: folder / "probes.json", BASELINE: folder / "baseline.npz", CANARY: made.canary},
        environment={},
        key=None,
    )


def ran(bundle: Bundle, folder: Path) -> tuple[Device, RunResult]:
    device = Device(name="here", transport="local", root=str(folder / "device"), python=sys.executable)
    return device, run_bundle(device, bundle, PLAN, folder / "home", allow_unsigned=True)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", CASES)
def test_a_run_measures_and_finds_the_hosts_signals(
    name: str,
    models: dict[str, LanguageModel],
    made: dict[str, Made],
    texts: tuple[Probe, ...],
    tmp_path: Path,
) -> None:
    kind, formats, structure = CASES[name]
    model = models[kind]
    bundle = bundle_of(name, model, made[name], texts, tmp_path)
    _, result = ran(bundle, tmp_path)
    record = result.record
    assert (record.outcome, record.reason) == (PASS, None)
    assert record.parity is not None
    assert record.parity.max_abs_logit_difference <= record.parity.tolerance
    assert record.parity.share == (1.0 if name == "gpt2" else 0.25)
    assert record.environment["execution_provider"] == "XnnpackBackend"
    assert record.environment["executorch"] == "1.5.1"
    assert "onnxruntime" not in record.modules
    assert [len(sample.generations) for sample in record.latency] == [3, 3]
    assert all(len(each.token_ns) == 5 for sample in record.latency for each in sample.generations)
    assert result.traces is not None
    assert judge_run(record, result.traces, bundle, texts, candidates=1).outcome == PASS
    traces, _ = read_traces(result.traces)
    request = request_of(model, formats, structure)
    kept = request.kept
    host = traces_of(
        request.candidate, texts, baseline_outputs(model.module, texts, free_running=True), kept=kept
    )
    slack = 1e-3 if name == "gpt2" else 0.1  # nothing of the GPT-2 is rounded
    for ours, theirs in zip(traces, host, strict=True):
        assert ours.lower.keys() == theirs.signals.keys()
        for signal, values in theirs.signals.items():
            if signal != "departure":
                assert (ours.lower[signal] <= values + slack).all(), signal
                assert (ours.upper[signal] >= values - slack).all(), signal


@pytest.mark.timeout(900)
def test_what_is_deployed_answers_with_the_candidates_greedy_tokens(
    models: dict[str, LanguageModel], made: dict[str, Made], texts: tuple[Probe, ...], tmp_path: Path
) -> None:
    bundle = bundle_of("gpt2", models["gpt2"], made["gpt2"], texts, tmp_path)
    device, _ = ran(bundle, tmp_path)
    assert switch_in(device, bundle, allow_unsigned=True).active.bundle == bundle.digest
    prompt = texts[0].tokens[:9]
    heard: list[int] = []
    found = talk(device, prompt, 8, [], heard.append)
    candidate = request_of(models["gpt2"], ("fp32",)).candidate
    read = list(prompt)
    with torch.inference_mode():
        for _ in range(8):
            read.append(
                int(candidate(input_ids=torch.tensor([read]), use_cache=False).logits[0, -1].argmax())
            )
    assert found.tokens == heard == read[len(prompt) :]
    early = talk(device, prompt, 8, [found.tokens[2]], lambda token: None)
    assert early.stopped
    assert early.tokens == found.tokens[: found.tokens.index(found.tokens[2]) + 1]


@pytest.mark.timeout(900)
def test_an_artifact_that_is_not_what_was_searched_does_not_pass_parity(
    models: dict[str, LanguageModel], made: dict[str, Made], texts: tuple[Probe, ...], tmp_path: Path
) -> None:
    other = dataclasses.replace(made["gpt2"], canary=_altered(made["gpt2"].canary, tmp_path))
    bundle = bundle_of("gpt2", models["gpt2"], other, texts, tmp_path)
    _, result = ran(bundle, tmp_path)
    assert result.record.outcome == "ERROR"
    assert "does not compute what was searched" in str(result.record.reason)
    assert judge_run(result.record, result.traces, bundle, texts, candidates=1).outcome == "ERROR"


def _altered(canary: Path, folder: Path) -> Path:
    found = read_canary(canary, 512)
    logits = found.logits.copy()
    logits[-1, -1, 7] += 5e-4
    write_canary(folder / "canary.npz", dataclasses.replace(found, logits=logits))
    return folder / "canary.npz"
