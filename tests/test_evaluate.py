"""The host's judgement of a config: the baseline is perfect, and worse configs are never judged better."""

from __future__ import annotations

import dataclasses

import pytest
from toggle_runtime.records import MARGINAL, SATISFIED, UNSET, VIOLATED, ModeSpecification

from toggle_edge.compress.bank import LayerBank
from toggle_edge.config import FP16, Config, Format
from toggle_edge.evaluate import Evaluator
from toggle_edge.model.load import LanguageModel
from toggle_edge.probes import Probe

SPECIFICATION = {
    "optimal": ModeSpecification(
        {"coherence": "always (jsd <= 0.25)", "factual_accuracy": "always (factual >= 0.7)"}, 0.95, 95.0
    )
}


def evaluator_of(model: LanguageModel, bank: LayerBank, probes: tuple[Probe, ...]) -> Evaluator:
    return Evaluator(model, bank, probes, SPECIFICATION)


def uniform(model: LanguageModel, fmt: Format) -> Config:
    return Config.uniform(tuple(layer.name for layer in model.layers), fmt)


def test_the_baseline_keeps_every_contract(
    tiny: LanguageModel, bank: LayerBank, probes: tuple[Probe, ...]
) -> None:
    evaluation = evaluator_of(tiny, bank, probes[:-1]).evaluate(uniform(tiny, FP16))
    judged = evaluation.modes["optimal"]
    assert judged.verdict == SATISFIED
    assert evaluation.avgpp == pytest.approx(100.0, abs=1e-4)
    assert evaluation.holds("optimal", SPECIFICATION)


def test_fewer_bits_are_judged_worse_and_cost_less(
    tiny: LanguageModel, bank: LayerBank, probes: tuple[Probe, ...]
) -> None:
    evaluator = evaluator_of(tiny, bank, probes[:-1])
    evaluations = [
        evaluator.evaluate(uniform(tiny, fmt)) for fmt in (Format(2, 64), Format(4, 32), Format(8, 64))
    ]
    assert sorted(e.avgpp or 0.0 for e in evaluations) == [e.avgpp for e in evaluations]
    costs = [e.cost.proxy_flops for e in evaluations]
    assert costs == sorted(costs)
    assert evaluations[0].modes["optimal"].verdict == VIOLATED


def test_a_probe_without_an_answer_makes_factual_accuracy_unset(
    tiny: LanguageModel, bank: LayerBank, probes: tuple[Probe, ...]
) -> None:
    evaluation = evaluator_of(tiny, bank, probes).evaluate(uniform(tiny, FP16))
    assert evaluation.modes["optimal"].verdict == UNSET
    assert not evaluation.holds("optimal", SPECIFICATION)


def test_a_candidate_that_computes_nan_does_not_pass(tiny: LanguageModel, probes: tuple[Probe, ...]) -> None:
    bank = LayerBank(tiny)
    name = "model.layers.0.mlp.gate_proj"
    layer = bank.layer(name, Format(8, 64))
    assert layer.scales is not None
    layer.scales[0, 0] = float("nan")
    config = Config.of({**dict(uniform(tiny, FP16)), name: Format(8, 64)})
    evaluation = evaluator_of(tiny, bank, probes[:-1]).evaluate(config)
    assert evaluation.avgpp is None
    assert not evaluation.holds("optimal", SPECIFICATION)


def test_a_mode_holds_only_with_its_avgpp(
    tiny: LanguageModel, bank: LayerBank, probes: tuple[Probe, ...]
) -> None:
    evaluation = evaluator_of(tiny, bank, probes[:-1]).evaluate(uniform(tiny, FP16))
    demanding = {"optimal": dataclasses.replace(SPECIFICATION["optimal"], avgpp=100.1)}
    assert not evaluation.holds("optimal", demanding)


def test_evaluating_twice_gives_the_same_and_order_does_not_matter(
    tiny: LanguageModel, bank: LayerBank, probes: tuple[Probe, ...]
) -> None:
    evaluator = evaluator_of(tiny, bank, probes[:-1])
    first = evaluator.evaluate(uniform(tiny, Format(4, 32)))
    evaluator.evaluate(uniform(tiny, Format(2, 64)))
    assert evaluator.evaluate(uniform(tiny, Format(4, 32))) == first
    assert first.modes["optimal"].verdict != MARGINAL
