"""Signals of candidates without some heads, channels and blocks: host, device and an independent computation agree."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.spatial.distance
import torch
from architectures import CASES, built, saved
from reductions import UNCAPPED
from toggle_runtime import signals as device
from toggle_runtime.intervals import bounds_of
from toggle_runtime.records import SATISFIED, UNSET, ModeSpecification
from toggle_runtime.reduction import reduce_baseline
from toggle_runtime.signals import SIGNALS, Outputs, SignalsError
from toggle_runtime.trace_files import read_traces, write_traces
from toggle_runtime.verdicts import judge, noise_floor

from toggle_edge.certify import certify
from toggle_edge.compress.bank import LayerBank
from toggle_edge.config import FP32, Config
from toggle_edge.evaluate import Evaluator
from toggle_edge.model.load import LanguageModel, load_model
from toggle_edge.probes import Probe
from toggle_edge.signals import baseline_outputs, traces_of
from toggle_edge.structure import Kept, Structure

STRUCTURES = {
    "heads and a block": Structure((1,), ((0, 1), (2, 1)), ((0, 30), (3, 20))),
    "the last block": Structure((3,), ((1, 1),)),
    "only the third block left": Structure((0, 1, 3)),
}


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    kind, options = CASES[request.param]
    sizes = {**options, "num_hidden_layers": 4, "max_position_embeddings": 256}
    return load_model(saved(built(kind, sizes), tmp_path_factory.mktemp(request.param)))


@pytest.fixture(scope="module")
def baseline(model: LanguageModel, probes: tuple[Probe, ...]) -> list[Outputs]:
    return baseline_outputs(model.module, probes)


def candidate_of(model: LanguageModel, structure: Structure) -> tuple[torch.nn.Module, Kept]:
    bank = LayerBank(model)
    config = Config.of({layer.name: FP32 for layer in model.remaining(structure)}, structure=structure)
    kept = bank.kept(structure)
    assert kept is not None
    return bank.assemble(config), kept


def outputs_of(module: Any, kept: Kept, probe: Probe, heads: int) -> Outputs:
    """The candidate's whole outputs by transformers' own recording, in the baseline's layout."""
    with torch.inference_mode():
        result = module(
            input_ids=torch.tensor([probe.tokens[:-1]]),
            output_attentions=True,
            output_hidden_states=True,
            use_cache=False,
        )
    steps = slice(probe.prompt_tokens - 1, len(probe.tokens) - 1)
    keys = len(probe.tokens) - 1
    attention = np.zeros((kept.blocks, heads, probe.steps, keys), np.float32)
    for each, rows in zip(kept.remaining, result.attentions, strict=True):
        size = rows.shape[1] // len(each.kv_groups)
        for index, group in enumerate(each.kv_groups):
            own = rows[0, index * size : (index + 1) * size, steps].numpy()
            attention[each.block, group * size : (group + 1) * size] = own
    hidden = np.stack([states[0, steps].numpy() for states in result.hidden_states[1:]])
    compared = (*kept.numbers[:-1], kept.blocks - 1)
    return Outputs(result.logits[0, steps].numpy(), attention, hidden, None, compared)


@pytest.mark.parametrize("name", STRUCTURES)
def test_host_device_and_scipy_agree(
    name: str, model: LanguageModel, probes: tuple[Probe, ...], baseline: list[Outputs]
) -> None:
    module, kept = candidate_of(model, STRUCTURES[name])
    heads = baseline[0].attention.shape[1]
    traces = traces_of(module, probes, baseline, kept)
    for probe, reference, host in zip(probes, baseline, traces, strict=True):
        outputs = outputs_of(module, kept, probe, heads)
        gold, answer = np.array(probe.continuation), np.isin(np.arange(probe.steps), probe.answer_steps)
        trace = device.trace_of(reference, outputs, gold, answer)
        assert trace.signals.keys() == host.signals.keys()
        for signal, values in trace.signals.items():
            np.testing.assert_allclose(host.signals[signal], values, rtol=0, atol=1e-5, err_msg=signal)
        for signal, rows in trace.layers.items():
            np.testing.assert_allclose(host.layers[signal], rows, rtol=0, atol=1e-5, err_msg=signal)
        reduced = reduce_baseline(
            reference, gold, probe.prompt_tokens, [s for s in SIGNALS if s != "departure"], UNCAPPED
        )
        bounds = bounds_of(reduced, outputs, gold, answer)
        for signal, values in bounds.lower.items():
            assert (values <= host.signals[signal] + 1e-5).all(), signal
            assert (bounds.upper[signal] >= host.signals[signal] - 1e-5).all(), signal
            assert (bounds.upper[signal] - values).max() < 0.15, signal
        step = probe.steps - 1
        for block in range(kept.blocks):
            flat = [each.attention[block, :, step].ravel().astype(float) for each in (reference, outputs)]
            expected = 1 - scipy.spatial.distance.cosine(*flat) if flat[1].any() else 0.0
            assert host.layers["attention"][block, step] == pytest.approx(expected, abs=1e-6)
        for row, block in enumerate(outputs.compared or ()):
            pair = [reference.hidden[block, step].astype(float), outputs.hidden[row, step].astype(float)]
            expected = 1 - scipy.spatial.distance.cosine(*pair)
            assert host.layers["context"][block, step] == pytest.approx(expected, abs=1e-6)


def test_removed_parts_are_seen_as_the_contract_says(
    model: LanguageModel, probes: tuple[Probe, ...], baseline: list[Outputs]
) -> None:
    module, kept = candidate_of(model, STRUCTURES["heads and a block"])
    trace = traces_of(module, probes[:1], baseline[:1], kept)[0]
    rows = trace.layers["attention"]
    assert (rows[1] == 0).all()
    assert (rows[0] < 0.95).all()  # a part of its heads attends to nothing
    np.testing.assert_allclose(trace.signals["attention"], rows.mean(axis=0))
    assert (trace.signals["attention_min"] == 0).all()
    context = trace.layers["context"]
    assert np.isnan(context[1]).all()
    np.testing.assert_allclose(trace.signals["context_min"], np.nanmin(context, axis=0))
    np.testing.assert_allclose(trace.signals["context"], context[3])


def test_what_is_kept_whole_preserves_everything(
    model: LanguageModel, probes: tuple[Probe, ...], baseline: list[Outputs]
) -> None:
    inner = model.anatomy.channels(0)
    module, kept = candidate_of(model, Structure(channels=((0, inner),)))
    for trace in traces_of(module, probes, baseline, kept):
        for name, values in trace.signals.items():
            assert np.allclose(values, 0.0 if name == "jsd" else 1.0, atol=1e-6), name


def test_the_layer_to_blame_is_never_one_with_nothing_to_compare(
    model: LanguageModel, probes: tuple[Probe, ...], baseline: list[Outputs]
) -> None:
    module, kept = candidate_of(model, Structure((1,)))
    traces = traces_of(module, probes, baseline, kept)
    mode = {"m": ModeSpecification({"c": "always (context_min >= -2.0)"}, 1.0, 0.0)}
    (verdict,) = judge(mode, traces, {"c": 0.0})
    assert verdict.verdict == SATISFIED
    argmin = verdict.verdicts[0].argmin
    assert argmin is not None
    states = traces[argmin.probe].layers["context"][:, argmin.step]
    assert argmin.layer == int(np.nanargmin(states)) != 1


def test_what_is_judged_without_a_block_is_certified_as_well(
    model: LanguageModel, probes: tuple[Probe, ...], baseline: list[Outputs], tmp_path: Path
) -> None:
    module, kept = candidate_of(model, STRUCTURES["heads and a block"])
    traces = traces_of(module, probes, baseline, kept)
    properties = {name: f"always ({name} >= -2.0)" for name in ("context_min", "attention_min", "context")}
    mode = {"m": ModeSpecification(properties, 1.0, 0.0)}
    floor = noise_floor(mode, traces, traces)
    write_traces(tmp_path / "traces.npz", traces, traces)
    run, repeated = read_traces(tmp_path / "traces.npz")
    certificate = certify(judge(mode, traces, floor), mode, run, repeated, floor, candidates=1)
    assert certificate.certified, certificate.disagreements


def test_a_nan_in_what_remains_stays_one(
    model: LanguageModel, probes: tuple[Probe, ...], baseline: list[Outputs]
) -> None:
    module, kept = candidate_of(model, Structure((1,)))
    blocks: Any = module.get_submodule("transformer.h" if hasattr(module, "transformer") else "model.layers")
    with torch.no_grad():
        next(blocks[1].parameters())[0] = torch.nan
    traces = traces_of(module, probes[:1], baseline[:1], kept)
    mode = {"m": ModeSpecification({"c": "always (context_min >= -2.0)"}, 1.0, 0.0)}
    (verdict,) = judge(mode, traces, {"c": 0.0})
    assert verdict.verdict == UNSET


@pytest.mark.parametrize("compared", [(), (0, 1), (2, 0, 3), (0, 0, 3), (-1, 3)])
def test_the_device_refuses_states_of_no_known_block(
    compared: Sequence[int], model: LanguageModel, probes: tuple[Probe, ...], baseline: list[Outputs]
) -> None:
    probe, reference = probes[0], baseline[0]
    gold, answer = np.array(probe.continuation), np.zeros(probe.steps, bool)
    reduced = reduce_baseline(reference, gold, probe.prompt_tokens, ["context_min"], UNCAPPED)
    hidden = reference.hidden[: len(compared)]
    outputs = dataclasses.replace(reference, hidden=hidden, compared=tuple(compared))
    with pytest.raises(SignalsError, match="states after some of 4 blocks and the last"):
        bounds_of(reduced, outputs, gold, answer)


def test_an_evaluation_of_a_structure_is_whole_or_refuted_alike(
    model: LanguageModel, probes: tuple[Probe, ...]
) -> None:
    specification = {"m": ModeSpecification({"a": "always (attention >= 0.99)"}, 1.0, 99.0)}
    evaluator = Evaluator(model, LayerBank(model), probes, specification)
    structure = STRUCTURES["heads and a block"]
    config = Config.of({layer.name: FP32 for layer in model.remaining(structure)}, structure=structure)
    whole, stopped = evaluator.evaluate(config), evaluator.evaluate(config, range(len(probes)))
    assert whole.modes["m"].verdict == stopped.modes["m"].verdict != SATISFIED
    assert whole.cost == stopped.cost
    untouched = Config.uniform(tuple(layer.name for layer in model.layers), FP32)
    assert whole.cost.proxy_bytes < evaluator.evaluate(untouched).cost.proxy_bytes
    first = whole.modes["m"].verdicts[0].argmin
    assert first is not None
    assert first.layer == 1
