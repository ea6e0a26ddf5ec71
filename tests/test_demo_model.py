"""The demo model is an honest test bed: it reacts to compression as the model card says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from toggle_edge.compress.bank import LayerBank
from toggle_edge.config import FP16, Config, Format
from toggle_edge.model.layers import EMBEDDING
from toggle_edge.model.load import LanguageModel, load_model
from toggle_edge.probes import Probe, load_probes, split_probes
from toggle_edge.reading import perplexity
from toggle_edge.signals import baseline_outputs, traces_of

DEMO = Path(__file__).parents[1] / "demo"


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return load_model(DEMO / "model")


@pytest.fixture(scope="module")
def demo_probes(model: LanguageModel) -> tuple[Probe, ...]:
    return load_probes(DEMO / "probes.jsonl", model.tokenizer, steps=32, context_tokens=512)


@pytest.fixture(scope="module")
def perplexities(model: LanguageModel, demo_probes: tuple[Probe, ...]) -> dict[str, float]:
    bank = LayerBank(model)
    layers = tuple(layer.name for layer in model.layers)
    texts = [probe.tokens for probe in demo_probes]
    return {
        text: perplexity(bank.assemble(Config.uniform(layers, Format.parse(text))), texts)
        for text in ("fp16", "int8-g64", "int4-g32", "int2-g64")
    }


def test_it_is_small_enough_to_live_in_the_repository() -> None:
    sizes = {
        path: path.stat().st_size for path in DEMO.rglob("*") if path.is_file() and path.suffix != ".pyc"
    }
    assert sum(sizes.values()) <= 6_000_000
    assert sizes[DEMO / "probes.jsonl"] <= 200_000


def test_weights_are_fp16_and_tied(model: LanguageModel) -> None:
    stored = json.loads((DEMO / "model" / "config.json").read_text())
    assert stored["tie_word_embeddings"]
    assert stored["dtype"] == "float16"
    for parameter in model.module.parameters():
        assert torch.equal(parameter.half().float(), parameter)


def test_two_bits_at_least_double_its_perplexity(perplexities: dict[str, float]) -> None:
    assert perplexities["int2-g64"] >= 2 * perplexities["fp16"]


def test_eight_bits_move_it_by_less_than_one_percent(perplexities: dict[str, float]) -> None:
    assert perplexities["int8-g64"] == pytest.approx(perplexities["fp16"], rel=0.01)


def test_four_bits_lie_between(perplexities: dict[str, float]) -> None:
    assert perplexities["int8-g64"] < perplexities["int4-g32"] < perplexities["int2-g64"]


def test_layers_differ_in_sensitivity_at_least_threefold(
    model: LanguageModel, demo_probes: tuple[Probe, ...]
) -> None:
    # The ends of the model card's table, the embedding aside, which differs from all of them.
    bank, probes = LayerBank(model), demo_probes[:24]
    baseline = baseline_outputs(model.module, probes)
    formats = dict.fromkeys((layer.name for layer in model.layers), FP16)
    losses = {}
    for name in (EMBEDDING, "model.layers.1.self_attn.v_proj", "model.layers.2.self_attn.k_proj"):
        module = bank.assemble(Config.of({**formats, name: Format(2, 64)}))
        traces = traces_of(module, probes, baseline)
        losses[name] = sum(float(trace.signals["jsd"].mean()) for trace in traces)
    embedding, high, low = losses.values()
    assert high >= 3 * low
    assert embedding >= 3 * high


def test_its_probes_fill_both_sides_and_all_have_answers(demo_probes: tuple[Probe, ...]) -> None:
    split = split_probes(demo_probes, search=59, certificate=59)
    for probe in (*split.search, *split.certificate):
        assert probe.steps == 32
        assert probe.answer_steps
