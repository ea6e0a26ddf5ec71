"""Signals: host and device agree, and both agree with an independent computation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.spatial.distance
import torch
from toggle_runtime import signals as device

from toggle_edge.compress.bank import LayerBank
from toggle_edge.config import FP16, Config, Format
from toggle_edge.model.load import LanguageModel
from toggle_edge.probes import Probe
from toggle_edge.signals import baseline_outputs, perplexity, traces_of


@pytest.fixture(scope="module")
def candidate(tiny: LanguageModel) -> torch.nn.Module:
    layers = tuple(layer.name for layer in tiny.layers)
    return LayerBank(tiny).assemble(Config.uniform(layers, Format(4, 32)))


def test_host_and_device_compute_the_same_signals(
    tiny: LanguageModel, candidate: torch.nn.Module, probes: tuple[Probe, ...]
) -> None:
    baseline, ours = baseline_outputs(tiny.module, probes), baseline_outputs(candidate, probes)
    for probe, reference, outputs, host in zip(
        probes, baseline, ours, traces_of(candidate, probes, baseline), strict=True
    ):
        answer = np.isin(np.arange(probe.steps), probe.answer_steps)
        trace = device.trace_of(reference, outputs, np.array(probe.continuation), answer)
        assert trace.signals.keys() == host.signals.keys()
        for name, values in trace.signals.items():
            np.testing.assert_allclose(values, host.signals[name], rtol=0, atol=1e-12, err_msg=name)
        np.testing.assert_allclose(trace.attention_layers, host.attention_layers, rtol=0, atol=1e-12)
        assert (trace.answer == host.answer).all()


def test_signals_agree_with_scipy(
    tiny: LanguageModel, candidate: torch.nn.Module, probes: tuple[Probe, ...]
) -> None:
    probe = probes[0]
    trace = traces_of(candidate, [probe], baseline_outputs(tiny.module, [probe]))[0]
    tokens = torch.tensor([probe.tokens])
    step = probe.answer_steps[0]
    position = probe.prompt_tokens + step - 1
    results = [
        module(input_ids=tokens, output_attentions=True, output_hidden_states=True)
        for module in (tiny.module, candidate)
    ]
    base, ours = (r.logits[0, position].double().softmax(-1).numpy() for r in results)
    distance = scipy.spatial.distance.jensenshannon(base, ours, base=2)
    assert trace.signals["jsd"][step] == pytest.approx(distance**2, abs=1e-9)
    gold = probe.tokens[position + 1]
    assert trace.signals["factual"][step] == pytest.approx(ours[gold] / base[gold], rel=1e-5)
    hidden = [r.hidden_states[-1][0, position].double().numpy() for r in results]
    assert trace.signals["context"][step] == pytest.approx(
        1 - scipy.spatial.distance.cosine(*hidden), abs=1e-6
    )
    per_layer = [
        1
        - scipy.spatial.distance.cosine(
            *(r.attentions[layer][0, :, position].flatten().double() for r in results)
        )
        for layer in range(tiny.shape.layers)
    ]
    assert trace.signals["attention"][step] == pytest.approx(np.mean(per_layer), abs=1e-6)
    np.testing.assert_allclose(trace.attention_layers[:, step], per_layer, atol=1e-6)


def test_the_baseline_against_itself_is_perfect(tiny: LanguageModel, probes: tuple[Probe, ...]) -> None:
    for trace in traces_of(tiny.module, probes, baseline_outputs(tiny.module, probes)):
        assert trace.signals["jsd"].max() < 1e-9
        assert trace.signals["attention"].min() > 1 - 1e-9
        assert trace.signals["context"].min() > 1 - 1e-9


def test_factual_is_one_off_the_answer_and_absent_without_one(
    tiny: LanguageModel, candidate: torch.nn.Module, probes: tuple[Probe, ...]
) -> None:
    traces = traces_of(candidate, probes, baseline_outputs(tiny.module, probes))
    assert all("factual" in trace.signals for trace in traces[:-1])
    assert "factual" not in traces[-1].signals
    for trace in traces[:-1]:
        assert (trace.signals["factual"][~trace.answer] == 1.0).all()
        assert (trace.signals["factual"][trace.answer] != 1.0).all()


def test_batching_changes_nothing(
    tiny: LanguageModel, candidate: torch.nn.Module, probes: tuple[Probe, ...]
) -> None:
    baseline = baseline_outputs(tiny.module, probes)
    together = traces_of(candidate, probes, baseline)
    for index, probe in enumerate(probes):
        alone = traces_of(candidate, [probe], [baseline[index]])[0]
        for name, values in alone.signals.items():
            np.testing.assert_allclose(values, together[index].signals[name], rtol=0, atol=1e-5)


def test_a_broken_candidate_gives_nan_and_not_a_number_that_passes(
    tiny: LanguageModel, probes: tuple[Probe, ...]
) -> None:
    layers = tuple(layer.name for layer in tiny.layers)
    broken = LayerBank(tiny).assemble(Config.uniform(layers, FP16))
    with torch.no_grad():
        broken.get_submodule("model.layers.1.mlp.up_proj").weight[0, 0] = float("nan")
    trace = traces_of(broken, probes[:1], baseline_outputs(tiny.module, probes[:1]))[0]
    assert np.isnan(trace.signals["jsd"]).any()


def test_perplexity_is_the_exponent_of_the_mean_loss(tiny: LanguageModel, probes: tuple[Probe, ...]) -> None:
    losses = []
    for probe in probes:
        tokens = torch.tensor([probe.tokens])
        logits = tiny.module(input_ids=tokens).logits[0, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none"))
    assert perplexity(tiny.module, [probe.tokens for probe in probes]) == pytest.approx(
        float(torch.cat(losses).mean().exp()), rel=1e-5
    )


def test_traces_survive_the_way_home(
    tiny: LanguageModel, candidate: torch.nn.Module, probes: tuple[Probe, ...], tmp_path: Path
) -> None:
    traces = traces_of(candidate, probes, baseline_outputs(tiny.module, probes))
    device.write_traces(tmp_path / "traces.npz", traces, traces[:3])
    back, repeated = device.read_traces(tmp_path / "traces.npz")
    assert len(back) == len(probes)
    assert len(repeated) == 3
    for sent, came in zip(traces, back, strict=True):
        assert all((sent.signals[name] == came.signals[name]).all() for name in sent.signals)
        assert sent.signals.keys() == came.signals.keys()


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_truncated_traces_file_is_refused(
    tiny: LanguageModel, candidate: torch.nn.Module, probes: tuple[Probe, ...], tmp_path: Path, kept: float
) -> None:
    path = tmp_path / "traces.npz"
    device.write_traces(path, traces_of(candidate, probes[:2], baseline_outputs(tiny.module, probes[:2])), [])
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(device.SignalsError):
        device.read_traces(path)


def test_arrays_that_would_need_pickle_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "traces.npz"
    np.savez(path, **{"run.0.answer": np.array([{"a": 1}], dtype=object)})
    with pytest.raises(device.SignalsError, match="plain arrays"):
        device.read_traces(path)


def test_signals_of_the_wrong_length_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "traces.npz"
    np.savez(
        path,
        **{
            "run.0.answer": np.zeros(4, dtype=bool),
            "run.0.attention_layers": np.zeros((2, 4)),
            "run.0.signals.jsd": np.zeros(3),
        },
    )
    with pytest.raises(device.SignalsError, match="expected 4 float64 values"):
        device.read_traces(path)
