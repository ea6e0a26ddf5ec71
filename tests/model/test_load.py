"""Loading: a model's layers by name, or an error that says what is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from toggle_edge.errors import ModelError
from toggle_edge.model.load import LanguageModel, load_model


def test_layers_cover_every_matrix_once(tiny: LanguageModel) -> None:
    named = dict(tiny.module.named_parameters())
    for layer in tiny.layers:
        assert named[f"{layer.name}.weight"].shape == (layer.rows, layer.columns)
    matrices = {name.removesuffix(".weight") for name, value in named.items() if value.ndim == 2}
    assert matrices == {layer.name for layer in tiny.layers}
    assert tiny.kept_parameters == sum(value.numel() for value in named.values() if value.ndim == 1)


def test_the_baseline_is_frozen_and_in_float32(tiny: LanguageModel) -> None:
    assert not tiny.module.training
    for parameter in tiny.module.parameters():
        assert parameter.dtype == torch.float32
        assert not parameter.requires_grad


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_an_incomplete_folder_is_refused(tiny_folder: Path, tmp_path: Path, missing: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    (folder / missing).unlink()
    with pytest.raises(ModelError, match=missing.replace("model.", r"\*.")):
        load_model(folder)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"expected config\.json"):
        load_model(tmp_path / "absent")


def test_truncated_weights_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(folder)


def test_weights_of_another_architecture_are_refused_and_not_drawn_at_random(
    tiny_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config.update(model_type="gpt_neox", architectures=["GPTNeoXForCausalLM"])
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"missing gpt_neox\..* more"):
        load_model(folder)


def test_the_digest_names_the_content(tiny: LanguageModel, tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    assert load_model(folder).digest == tiny.digest
    (folder / "generation_config.json").write_text("{}")
    assert load_model(folder).digest != tiny.digest


def test_gpt2s_layers_cover_every_matrix_but_the_positions(gpt2: LanguageModel) -> None:
    named = dict(gpt2.module.named_parameters())
    for layer in gpt2.layers:
        shape = named[f"{layer.name}.weight"].shape
        assert shape in ((layer.rows, layer.columns), (layer.columns, layer.rows)), layer.name
    matrices = {name.removesuffix(".weight") for name, value in named.items() if value.ndim == 2}
    assert matrices - {"transformer.wpe"} == {layer.name for layer in gpt2.layers}
    total = sum(value.numel() for value in named.values())
    assert gpt2.kept_parameters + sum(layer.weights for layer in gpt2.layers) == total
    assert (gpt2.shape.kv_heads, gpt2.shape.head_size) == (4, 16)


def test_a_weight_that_is_not_in_the_files_is_not_drawn_at_random(tiny_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"missing model\.layers\.1\.mlp\.up_proj\.weight; config\.json"):
        load_model(folder)
