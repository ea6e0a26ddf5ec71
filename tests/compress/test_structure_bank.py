"""The bank of a config with a structure: layers keep their names, weights are those that remain, caches do not mix."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from architectures import CASES, built, saved

from toggle_edge.compress import bank as banks
from toggle_edge.compress import candidate as candidates
from toggle_edge.compress.bank import LayerBank
from toggle_edge.compress.calibration import Calibration
from toggle_edge.compress.quantise import CompressedLayer, dequantise, quantise
from toggle_edge.config import FP16, FP32, Config, Format
from toggle_edge.cost import KEPT_BYTES, paper_cost, predicted_cost, proxy_flops_ratio
from toggle_edge.errors import ConfigError
from toggle_edge.model.load import LanguageModel, load_model
from toggle_edge.model.remaining import renumbered
from toggle_edge.model.removal import kept_columns, kept_rows
from toggle_edge.structure import WHOLE, Structure

TEXTS = [[5, 100, 7, 301, 44, 12, 9, 200, 3, 77, 81, 15], [9, 9, 8, 7, 300, 2, 41]]
TOKENS = torch.tensor(TEXTS[:1])


@pytest.fixture(scope="module", params=["llama_tied", "gpt2", "qwen2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind, options = CASES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    return saved(built(kind, {**options, "num_hidden_layers": 3}), folder)


@pytest.fixture(scope="module")
def model(folder: Path) -> LanguageModel:
    return load_model(folder)


def narrowed(model: LanguageModel) -> Structure:
    half = model.anatomy.channels(0) // 2
    return Structure((1,), ((0, 1),), ((0, half), (2, half + 3)))


def config_of(model: LanguageModel, structure: Structure, fmt: Format = FP32) -> Config:
    return Config.of({layer.name: fmt for layer in model.remaining(structure)}, structure=structure)


def test_a_compressed_layer_is_the_narrowed_one_quantised(model: LanguageModel) -> None:
    calibration = Calibration(model, TEXTS)
    structure = narrowed(model)
    bank = LayerBank(model, quantiser="gptq", calibration=calibration)
    compressed = bank.compressed(config_of(model, structure, Format(4, 32)))
    kept = bank.kept(structure)
    assert kept is not None
    assert list(compressed) == [layer.name for layer in model.layers if ".1." not in layer.name]
    for layer in model.layers:
        block = next((each for each in kept.remaining if f".{each.block}." in layer.name), None)
        if block is None:
            continue
        rows, columns = kept_rows(layer, model.anatomy, block), kept_columns(layer, model.anatomy, block)
        weight, statistics = model.weight(layer), calibration.statistics(layer.name, gram=True)
        weight = weight if rows is None else weight[rows]
        weight = weight if columns is None else weight[:, columns]
        if columns is not None and statistics is not None:
            statistics = statistics.of(columns)
            assert statistics.gram is not None
            assert statistics.gram.shape == (len(columns), len(columns))
        expected = quantise(weight, Format(4, 32), statistics, quantiser="gptq")
        assert torch.equal(dequantise(compressed[layer.name]), dequantise(expected)), layer.name


def test_the_candidate_has_the_compressed_weights_under_its_own_numbers(model: LanguageModel) -> None:
    structure, bank = narrowed(model), LayerBank(model)
    config = config_of(model, structure, Format(4, 32))
    module = bank.assemble(config)
    kept = bank.kept(structure)
    assert kept is not None
    for name, layer in bank.compressed(config).items():
        owner = module.get_submodule(renumbered(name, kept.numbers))
        weight = dequantise(layer)
        assert torch.equal(
            owner.weight.T if owner.weight.shape != weight.shape else owner.weight, weight
        ) or (weight.shape[0] == weight.shape[1] and torch.equal(owner.weight.T, weight))


def logits(module: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return module(input_ids=TOKENS, use_cache=False).logits.clone()


def test_the_order_of_structures_leaves_no_trace_and_rebuilds_only_on_a_change(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    builds: list[object] = []
    original = candidates.without
    monkeypatch.setattr(candidates, "without", lambda *a, **k: builds.append(1) or original(*a, **k))
    first, other = narrowed(model), Structure(channels=((2, 5),))
    bank = LayerBank(model)
    fresh = {s: logits(LayerBank(model).assemble(config_of(model, s))) for s in (first, other, WHOLE)}
    builds.clear()
    for structure in (first, first, WHOLE, other, first):
        for fmt in (Format(2, 32), FP32):
            found = logits(bank.assemble(config_of(model, structure, fmt)))
        assert torch.equal(found, fresh[structure])
    assert len(builds) == 3
    assert torch.equal(logits(model.module), fresh[WHOLE])


def test_large_and_streamed_candidates_compute_the_same(
    model: LanguageModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    structure = narrowed(model)
    configs = [config_of(model, structure, fmt) for fmt in (Format(4, 32), FP16, FP32)]
    expected = [logits(LayerBank(model).assemble(config)) for config in configs]
    monkeypatch.setattr(candidates, "HELD_BYTES", 0)
    for other in (model, load_model(folder, streamed=True)):
        bank = LayerBank(other)
        for config, values in zip(configs, expected, strict=True):
            torch.testing.assert_close(logits(bank.assemble(config)), values, rtol=0, atol=1e-6)
        whole = logits(bank.assemble(config_of(other, WHOLE)))
        torch.testing.assert_close(whole, logits(model.module), rtol=0, atol=1e-6)


def test_entries_on_disk_are_by_what_remains(model: LanguageModel, tmp_path: Path) -> None:
    structure = narrowed(model)
    calibration = Calibration(model, TEXTS)

    def codes(folder: Path | None, which: Structure) -> Mapping[str, CompressedLayer]:
        bank = LayerBank(model, quantiser="importance", calibration=calibration, folder=folder)
        return bank.compressed(config_of(model, which, Format(4, 32)))

    for which in (WHOLE, structure, WHOLE, structure):
        stored, made = codes(tmp_path, which), codes(None, which)
        assert all(torch.equal(stored[name].codes, made[name].codes) for name in made)
    files = len(list(tmp_path.rglob("*.safetensors")))
    assert files > len(codes(None, WHOLE))
    # A layer that stays whole is the same entry with a structure and without.
    untouched = Structure((1,))
    codes(tmp_path, untouched)
    assert len(list(tmp_path.rglob("*.safetensors"))) == files


def test_cost_is_of_what_remains(model: LanguageModel) -> None:
    structure = narrowed(model)
    config = config_of(model, structure)
    layers, kept = model.remaining(structure), model.remaining_parameters(structure)
    module = LayerBank(model).assemble(config)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    found = predicted_cost(layers, config, kept)
    assert found.proxy_bytes == KEPT_BYTES * parameters  # fp32 throughout
    whole = predicted_cost(model.layers, config_of(model, WHOLE, FP16), 0)
    ratio = proxy_flops_ratio(layers, config_of(model, structure, FP16), whole=model.layers)
    multiplied = sum(2.0 * layer.weights for layer in layers if layer.multiplied)
    assert ratio == pytest.approx(whole.proxy_flops / multiplied)
    assert ratio > 1.3
    paper = paper_cost(
        layers,
        config_of(model, structure, FP16),
        kept,
        whole=model.layers,
        whole_kept_parameters=model.kept_parameters,
    )
    before = sum(parameter.numel() for parameter in model.module.parameters())
    assert paper.size_reduction == pytest.approx(1 - parameters / before)


def test_a_config_for_other_layers_than_remain_is_refused(model: LanguageModel) -> None:
    bank = LayerBank(model)
    whole = dict(config_of(model, WHOLE))
    with pytest.raises(ConfigError, match=r"layers that its structure leaves, and for no other.*\.1\."):
        bank.assemble(Config.of(whole, structure=Structure((1,))))
    with pytest.raises(ConfigError, match="block 8: the model has blocks 0 to 2"):
        bank.assemble(Config.of(whole, structure=Structure((8,))))
    assert torch.equal(logits(bank.assemble(config_of(model, WHOLE))), logits(model.module))
    assert banks.require_layers(model, config_of(model, Structure((1,)))) is None
