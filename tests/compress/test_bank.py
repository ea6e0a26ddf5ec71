"""Candidates are assembled from the bank; the baseline is never touched."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from toggle_edge.compress import prune
from toggle_edge.compress.bank import LayerBank
from toggle_edge.compress.calibration import Calibration
from toggle_edge.compress.quantise import QUANTISERS as REGISTRY
from toggle_edge.compress.quantise import dequantise, quantise
from toggle_edge.config import AXIS, FP16, PRUNERS, QUANTISERS, Config, Format
from toggle_edge.errors import ConfigError
from toggle_edge.model.load import LanguageModel, load_model
from toggle_edge.model.weights import weight_of
from toggle_edge.probes import load_probes
from toggle_edge.reading import perplexity

DEMO = Path(__file__).parents[2] / "demo"


def names(model: LanguageModel) -> tuple[str, ...]:
    return tuple(layer.name for layer in model.layers)


def test_an_assembled_candidate_has_the_configs_weights_and_the_baseline_its_own(
    tiny: LanguageModel, bank: LayerBank
) -> None:
    before = {name: value.clone() for name, value in tiny.module.state_dict().items()}
    config = Config.of({name: Format(2, 64) if "mlp" in name else FP16 for name in names(tiny)})
    candidate = bank.assemble(config)
    for name in names(tiny):
        expected = dequantise(bank.layer(name, config[name]))
        assert torch.equal(candidate.get_submodule(name).weight, expected)
    for name, value in tiny.module.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_order_of_assembly_leaves_no_trace(tiny: LanguageModel) -> None:
    low, high = (Config.uniform(names(tiny), fmt) for fmt in (Format(2, 64), Format(8, 64)))
    bank = LayerBank(tiny)
    bank.assemble(low)
    again = {name: value.clone() for name, value in bank.assemble(high).state_dict().items()}
    fresh = LayerBank(tiny).assemble(high).state_dict()
    assert all(torch.equal(again[name], fresh[name]) for name in fresh)


def test_a_tied_head_follows_the_embedding(tiny: LanguageModel, bank: LayerBank) -> None:
    candidate = bank.assemble(Config.uniform(names(tiny), Format(2, 64)))
    assert torch.equal(
        candidate.get_submodule("lm_head").weight, candidate.get_submodule("model.embed_tokens").weight
    )


def test_a_config_for_other_layers_is_refused(tiny: LanguageModel, bank: LayerBank) -> None:
    with pytest.raises(ConfigError, match="differs in"):
        bank.assemble(Config.uniform((*names(tiny), "model.layers.9.mlp.up_proj"), FP16))
    with pytest.raises(ConfigError, match="no layer"):
        bank.layer("nonsense", FP16)


def test_gpt2s_matrices_are_written_the_right_way_round(gpt2: LanguageModel) -> None:
    names = tuple(layer.name for layer in gpt2.layers)
    tokens = torch.arange(3, 40).unsqueeze(0)
    with torch.inference_mode():
        expected = gpt2.module(tokens).logits
        bank = LayerBank(gpt2)
        whole = bank.assemble(Config.uniform(names, FP16))(tokens).logits
        assert torch.allclose(whole, expected, atol=1e-5)
        coarse = bank.assemble(Config.uniform(names, Format(2, 32)))
        assert not torch.allclose(coarse(tokens).logits, expected, atol=1e-2)
        for layer in gpt2.layers:
            kept = dequantise(bank.layer(layer.name, Format(2, 32)))
            assert kept.shape == (layer.rows, layer.columns)
            stored = coarse.get_submodule(layer.name).weight
            assert torch.equal(
                stored if stored.shape == kept.shape and layer.name.endswith("wte") else stored.T, kept
            )


def test_a_bank_on_disk_serves_other_banks_without_computing(
    tiny: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config.uniform(names(tiny), Format(4, 32))
    first = LayerBank(tiny, folder=tmp_path).assemble(config).state_dict()
    first = {name: value.clone() for name, value in first.items()}

    def never(*_: object, **__: object) -> None:
        raise AssertionError("it is on disk")

    monkeypatch.setattr("toggle_edge.compress.bank.quantise", never)
    second = LayerBank(tiny, folder=tmp_path).assemble(config).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(AssertionError, match="on disk"):
        LayerBank(tiny, folder=tmp_path, quantiser="hqq").assemble(config)


def test_memory_is_bounded_and_what_was_dropped_comes_back(tiny: LanguageModel, tmp_path: Path) -> None:
    small = LayerBank(tiny, folder=tmp_path, memory_bytes=10_000)
    plain = LayerBank(tiny)
    for fmt in (Format(4, 32), Format(8, 64), Format(4, 32)):
        config = Config.uniform(names(tiny), fmt)
        ours, theirs = small.assemble(config).state_dict(), plain.assemble(config).state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        held = list(small._held.values())
        assert len(held) == 1 or sum(entry.codes.nbytes for entry in held) <= 10_000


def test_the_names_of_quantisers_are_those_that_there_are() -> None:
    assert tuple(REGISTRY) == QUANTISERS
    assert tuple(prune.PRUNERS) == PRUNERS


@pytest.mark.parametrize("pruner", PRUNERS)
def test_a_config_with_zeros_has_them_in_exactly_those_layers(
    pruner: str, tiny: LanguageModel, tmp_path: Path
) -> None:
    calibration = Calibration(tiny, [list(range(3, 60))])
    bank = LayerBank(tiny, quantiser="rtn", pruner=pruner, calibration=calibration, folder=tmp_path)
    sparse = {"model.layers.0.mlp.down_proj": 0.5, "model.layers.1.self_attn.q_proj": 0.1}
    config = Config.of(dict.fromkeys(names(tiny), Format(8, 64)), sparse)
    candidate = bank.assemble(config)
    for layer in tiny.layers:
        weight = weight_of(candidate, layer)
        zeros = (weight == 0).sum(dim=-1)
        least = prune.zeros_per_row(layer.columns, sparse.get(layer.name, 0.0))
        # Rounding may make a few more.
        assert least <= int(zeros.min()) <= int(zeros.max()) < least + layer.columns // 6, layer.name
    dense = bank.assemble(Config.of(dict(config)))
    assert torch.equal(
        dense.get_submodule("model.layers.0.mlp.down_proj").weight,
        dequantise(bank.layer("model.layers.0.mlp.down_proj", Format(8, 64))),
    )
    again = LayerBank(tiny, quantiser="rtn", pruner=pruner, calibration=calibration, folder=tmp_path)
    for name, share in sparse.items():
        first, second = (each.layer(name, Format(8, 64), share) for each in (bank, again))
        assert torch.equal(first.codes, second.codes)
        statistics = calibration.statistics(name) if pruner == "wanda" else None
        pruned = prune.PRUNERS[pruner].prune(tiny.module.get_submodule(name).weight.data, share, statistics)
        assert torch.equal(first.codes, quantise(pruned, Format(8, 64)).codes)


def test_pruners_and_sparsities_have_entries_of_their_own(tiny: LanguageModel, tmp_path: Path) -> None:
    calibration, name = Calibration(tiny, [list(range(3, 60))]), "model.layers.0.mlp.down_proj"
    for pruner in PRUNERS:
        bank = LayerBank(tiny, pruner=pruner, calibration=calibration, folder=tmp_path)
        for sparsity in (0.0, 0.3, 0.5):
            bank.layer(name, Format(4, 32), sparsity)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1 + 2 * 2


def test_a_sparsity_that_cannot_be_is_refused_with_its_layer(tiny: LanguageModel) -> None:
    name = "model.layers.0.mlp.down_proj"
    with pytest.raises(ConfigError, match=rf"{name}: sparsity: expected 0.0 to 0.5, got 0.6"):
        LayerBank(tiny).assemble(Config.of(dict.fromkeys(names(tiny), FP16), {name: 0.6}))
    with pytest.raises(ConfigError, match="pruner: expected one of magnitude, wanda, got 'random'"):
        LayerBank(tiny, pruner="random")
    with pytest.raises(ConfigError, match="pruner wanda: needs a calibration"):
        LayerBank(tiny, pruner="wanda")


def test_a_calibrated_entry_belongs_to_its_texts(tiny: LanguageModel, tmp_path: Path) -> None:
    config = Config.uniform(names(tiny), Format(3, AXIS))
    texts = [[[3, 4, 5, 6, 7, 8]], [[30, 41, 52, 63, 74, 85, 96]]]
    found = []
    for text in texts:
        calibration = Calibration(tiny, text)
        bank = LayerBank(tiny, quantiser="importance", calibration=calibration, folder=tmp_path)
        found.append(bank.assemble(config).get_submodule("model.layers.1.mlp.up_proj").weight.clone())
    assert not torch.equal(*found)


@pytest.mark.parametrize("quantiser", sorted(REGISTRY))
def test_layers_are_those_of_the_chosen_quantiser(quantiser: str, tiny: LanguageModel) -> None:
    calibration = Calibration(tiny, [list(range(3, 60)), list(range(60, 90))])
    bank = LayerBank(tiny, quantiser=quantiser, calibration=calibration)
    entry, fmt = REGISTRY[quantiser], Format(3, 32)
    module = bank.assemble(Config.uniform(names(tiny), fmt))
    for layer in tiny.layers:
        statistics = calibration.statistics(layer.name, gram=entry.needs_gram) if entry.calibrated else None
        weight = tiny.module.get_submodule(layer.name).weight
        expected = dequantise(quantise(weight, fmt, statistics, quantiser=quantiser))
        assert torch.equal(module.get_submodule(layer.name).weight, expected), layer.name
    assert torch.equal(
        bank.assemble(Config.uniform(names(tiny), FP16)).lm_head.weight, tiny.module.lm_head.weight
    )


def test_what_a_quantiser_lacks_is_said_before_and_where(tiny: LanguageModel) -> None:
    with pytest.raises(ConfigError, match="gptq: needs a calibration"):
        LayerBank(tiny, quantiser="gptq")
    with pytest.raises(ConfigError, match="expected one of rtn"):
        LayerBank(tiny, quantiser="nearest")
    with pytest.raises(ConfigError, match=r"^model\.embed_tokens: quantiser lsq: has no zero-point"):
        LayerBank(tiny, quantiser="lsq").layer("model.embed_tokens", Format(4, 32, True))


def test_on_texts_of_their_own_calibrated_quantisers_save_perplexity() -> None:
    model = load_model(DEMO / "model")
    probes = load_probes(DEMO / "probes.jsonl", model.tokenizer, steps=32, context_tokens=512)
    texts = [probe.tokens for probe in probes]
    calibration, judged = Calibration(model, texts[:24]), texts[40:64]
    first = "model.layers.0."
    config = Config.of({name: Format(2, 32) if name.startswith(first) else FP16 for name in names(model)})
    before = perplexity(model.module, judged)
    added = {}
    for quantiser in ("rtn", "importance", "gptq"):
        bank = LayerBank(model, quantiser=quantiser, calibration=calibration)
        added[quantiser] = perplexity(bank.assemble(config), judged) - before
    assert 0 < added["gptq"] < 0.7 * added["rtn"]
    assert added["gptq"] < added["importance"] < added["rtn"]
