"""Every architecture with a fused graph is exported to what torch computes, whole and without some of its structure."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import CASES, built, saved
from old_engines import VERSIONS, differences
from signal_parity import assert_same_signals

from toggle_edge.compress.bank import LayerBank
from toggle_edge.config import Config, Format
from toggle_edge.errors import ConfigError, ExportError
from toggle_edge.export import Skeleton, build_skeleton, narrowed, narrowed_shape
from toggle_edge.export.general import GENERAL
from toggle_edge.export.graphs import GRAPHS
from toggle_edge.export.onnx import export_onnx, predicted_bytes
from toggle_edge.export.parity import TOLERANCE, check_parity
from toggle_edge.model.load import LanguageModel, load_model
from toggle_edge.model.removal import REMOVABLE
from toggle_edge.pipeline.spaces import removable
from toggle_edge.profiles import SearchBounds, load_profile
from toggle_edge.structure import Structure

TOKENS = np.random.default_rng(0).integers(3, 500, 40).tolist()
MENU = ("int4-g16", "int8-g32", "int4-g32-asym", "fp16", "int2-g16")
# Heads of 16, as the fused kernel takes; windows are shorter than the texts.
SIZES = {"head_dim": 16, "num_hidden_layers": 3}
OWN = {
    "phi3": {"original_max_position_embeddings": 128, "hidden_size": 64},
    "qwen2": {"hidden_size": 64},
    "gpt2": {"hidden_size": 64},
}
KINDS = ("gemma", "gemma2", "gpt2", "mistral", "phi3", "qwen2", "qwen3")


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    kind, options = CASES[request.param]
    module = built(kind, {**options, **SIZES, **OWN.get(request.param, {})})
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:  # norms and biases begin as ones and zeros, which would hide mistakes
                parameter.add_(0.1 * torch.randn_like(parameter))
    return load_model(saved(module.half(), tmp_path_factory.mktemp(request.param)))


@pytest.fixture(scope="module")
def skeleton(model: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Skeleton:
    return build_skeleton(model, tmp_path_factory.mktemp("skeletons"))


def mixed(model: LanguageModel, structure: Structure) -> Config:
    chooser = random.Random(1)
    formats = {layer.name: Format.parse(chooser.choice(MENU)) for layer in model.remaining(structure)}
    return Config.of(formats, structure=structure)


def test_all_but_llama_are_here() -> None:
    # Llama has a file of its own, and so have those whose graphs are traced.
    assert set(KINDS) == set(GRAPHS) - set(GENERAL) - {"llama"}


def test_parity_bytes_and_signals(model: LanguageModel, skeleton: Skeleton, tmp_path: Path) -> None:
    config, bank = mixed(model, Structure()), LayerBank(model)
    artifact = export_onnx(skeleton, bank.compressed(config), tmp_path / "artifact", accuracy_level=0)
    module: Any = bank.assemble(config)
    assert check_parity(artifact, model.shape, module, TOKENS, prompt_tokens=15) <= TOLERANCE
    assert artifact.artifact_bytes == predicted_bytes(skeleton, model.layers, config)

    batch = np.array([TOKENS, TOKENS[::-1], TOKENS[5:] + TOKENS[:5], TOKENS[9:] + TOKENS[:9]])
    assert_same_signals(artifact.folder, model.shape, module, batch)


@pytest.mark.parametrize("target", sorted(VERSIONS))
def test_older_onnxruntimes_compute_the_same_or_the_export_says_what_they_lack(
    target: str, model: LanguageModel, skeleton: Skeleton, tmp_path: Path
) -> None:
    bank = LayerBank(model)
    texts = ("int4-g16", "fp16", "int4-g32-asym", "int4-g16-asym")
    config = Config.of({layer.name: Format.parse(texts[i % 4]) for i, layer in enumerate(model.layers)})
    layers, kind = bank.compressed(config), model.module.config.model_type
    if target == "onnx-cpu-1.19" and kind in ("gemma2", "mistral"):
        with pytest.raises(ExportError, match=r"onnxruntime 1\.19 cannot; export for"):
            export_onnx(skeleton, layers, tmp_path / "artifact", target=target)
        return
    artifact = export_onnx(skeleton, layers, tmp_path / "artifact", accuracy_level=0, target=target)
    batch = np.array([TOKENS, TOKENS[::-1]])
    module = bank.assemble(config)
    worst = differences(target, artifact.folder, model.shape, module, batch)
    assert max(worst.values()) <= TOLERANCE, worst
    assert check_parity(artifact, model.shape, module, TOKENS, prompt_tokens=15) <= TOLERANCE


@pytest.mark.parametrize(
    ("part", "structure"),
    [
        ("blocks", Structure((1,))),
        ("kv_groups", Structure(kv_groups=((0, 1),))),
        ("channels", Structure(channels=((0, 24),))),
    ],
)
def test_what_cannot_be_narrowed_is_known_before_a_search(
    model: LanguageModel, skeleton: Skeleton, part: str, structure: Structure
) -> None:
    if model.module.config.model_type not in REMOVABLE:
        pytest.skip("nothing can be removed of it, exported or not")
    bounds = SearchBounds(structure=(part,), keep=(0.5,))
    profile = dataclasses.replace(load_profile("default"), bounds=bounds)
    try:
        narrowed(skeleton, model.anatomy, structure)
    except ExportError:
        with pytest.raises(ConfigError, match="could not be exported"):
            removable(model, profile, "onnx-cpu")
    else:
        assert removable(model, profile, "onnx-cpu").parts == (part,)


def test_structure_is_exported_exactly_or_refused(
    model: LanguageModel, skeleton: Skeleton, tmp_path: Path
) -> None:
    kind = model.module.config.model_type
    groups = ((0, 1),) if kind in ("gemma", "mistral", "qwen3") else ()
    structure = Structure((1,), groups)
    if kind in ("gemma2", "phi3"):
        with pytest.raises((ConfigError, ExportError), match=r"not exported yet|architecture among"):
            narrowed(skeleton, model.anatomy, structure)
        return
    config, bank = mixed(model, structure), LayerBank(model)
    kept = bank.kept(structure)
    assert kept is not None
    fewer, shape = narrowed(skeleton, model.anatomy, structure), narrowed_shape(model.shape, kept)
    artifact = export_onnx(fewer, bank.compressed(config), tmp_path / "artifact", accuracy_level=0)
    assert check_parity(artifact, shape, bank.assemble(config), TOKENS, prompt_tokens=15) <= TOLERANCE
    assert artifact.artifact_bytes == predicted_bytes(fewer, model.remaining(structure), config)
