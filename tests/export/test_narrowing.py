"""Exported models without some heads, channels and blocks: the graph computes what the narrowed module does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import CASES, built, saved
from toggle_runtime import canary as canaries
from toggle_runtime.backends import onnx as backend
from toggle_runtime.records import BlockShape

from toggle_edge.compress.bank import LayerBank
from toggle_edge.config import Config, Format
from toggle_edge.errors import ConfigError, ExportError
from toggle_edge.export import Skeleton, build_skeleton, narrowed, narrowed_shape
from toggle_edge.export.canary import canary_of
from toggle_edge.export.onnx import export_onnx, predicted_bytes
from toggle_edge.export.parity import TOLERANCE, check_parity
from toggle_edge.model.load import LanguageModel, load_model
from toggle_edge.structure import Structure

TOKENS = [5, 100, 7, 301, 44, 12, 9, 200, 3, 77, 81, 15, 40, 41, 42, 43]
STRUCTURES = {
    "heads": Structure(kv_groups=((0, 2), (2, 1))),
    "channels": Structure(channels=((0, 40), (1, 7), (3, 63))),
    "the first block": Structure((0,)),
    "the last block": Structure((3,)),
    "blocks in a row": Structure((1, 2)),
    "all but one": Structure((0, 1, 3)),
    "everything": Structure((0, 2), ((1, 2), (3, 1)), ((1, 33), (3, 48))),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    kind, options = CASES["llama"]
    sizes = {
        "num_hidden_layers": 4,
        "hidden_size": 96,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 16,
        "intermediate_size": 64,
        "tie_word_embeddings": True,
    }
    return load_model(saved(built(kind, {**options, **sizes}), tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def skeleton(model: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Skeleton:
    return build_skeleton(model, tmp_path_factory.mktemp("skeletons"))


@pytest.fixture(scope="module")
def bank(model: LanguageModel) -> LayerBank:
    return LayerBank(model)


def config_of(model: LanguageModel, structure: Structure, text: str) -> Config:
    formats = {layer.name: Format.parse(text) for layer in model.remaining(structure)}
    return Config.of(formats, structure=structure)


@pytest.mark.parametrize(
    ("name", "text"), [*((name, "int4-g32-asym") for name in STRUCTURES), ("everything", "fp32")]
)
def test_parity_bytes_and_signals(
    name: str, text: str, model: LanguageModel, skeleton: Skeleton, bank: LayerBank, tmp_path: Path
) -> None:
    structure = STRUCTURES[name]
    config, kept = config_of(model, structure, text), bank.kept(structure)
    assert kept is not None
    fewer, shape = narrowed(skeleton, model.anatomy, structure), narrowed_shape(model.shape, kept)
    artifact = export_onnx(fewer, bank.compressed(config), tmp_path / "artifact", accuracy_level=0)
    module: Any = bank.assemble(config)
    assert check_parity(artifact, shape, module, TOKENS, prompt_tokens=5) <= TOLERANCE
    assert artifact.artifact_bytes == predicted_bytes(fewer, model.remaining(structure), config)
    whole = predicted_bytes(
        skeleton, model.layers, Config.uniform(tuple(each.name for each in model.layers), Format.parse(text))
    )
    assert artifact.artifact_bytes < whole

    opened = backend.open_model(artifact.folder, shape, backend.SIGNALS_GRAPH, threads=1)
    compared = (*kept.numbers[:-1], kept.blocks - 1)
    _, attention, hidden = backend.outputs(opened, np.array([TOKENS, TOKENS[::-1]]), compared)
    with torch.inference_mode():
        expected = module(
            input_ids=torch.tensor([TOKENS, TOKENS[::-1]]), output_attentions=True, output_hidden_states=True
        )
    assert attention.shape == (2, 4, 6, len(TOKENS), len(TOKENS))
    absent = np.ones((4, 6), bool)
    for each, rows in zip(kept.remaining, expected.attentions, strict=True):
        places = [group * 2 + index for group in each.kv_groups for index in range(2)]
        absent[each.block, places] = False
        np.testing.assert_allclose(attention[:, each.block, places], rows.numpy(), atol=1e-5)
    assert (attention[:, absent] == 0).all()
    states = torch.stack(expected.hidden_states[1:], dim=1).numpy()
    np.testing.assert_allclose(hidden, states, atol=TOLERANCE)


def test_the_canary_passes_and_generation_runs_from_the_cache(
    model: LanguageModel, skeleton: Skeleton, bank: LayerBank, tmp_path: Path
) -> None:
    structure = STRUCTURES["everything"]
    config, kept = config_of(model, structure, "int4-g32"), bank.kept(structure)
    assert kept is not None
    shape = narrowed_shape(model.shape, kept)
    assert shape.kept == [
        BlockShape(1, list(kept.remaining[0].kv_groups)),
        BlockShape(3, list(kept.remaining[1].kv_groups)),
    ]
    export_onnx(narrowed(skeleton, model.anatomy, structure), bank.compressed(config), tmp_path)
    module = bank.assemble(config)
    expected = canary_of(module, TOKENS, vocabulary=shape.vocabulary, context_tokens=shape.context_tokens)
    exact = backend.open_model(tmp_path, shape, backend.write_exact_graph(tmp_path), threads=1)
    rows = [
        backend.cached_logits(exact, row[: expected.prompt_tokens], row[expected.prompt_tokens :])
        for row in expected.tokens.tolist()
    ]
    sample = canaries.compare(expected, np.stack(rows), shape.vocabulary)
    assert sample.max_abs_logit_difference <= sample.tolerance
    deployed = backend.open_model(tmp_path, shape, backend.GRAPH, threads=1)
    assert len(backend.generate(deployed, TOKENS[:4], 6).token_ns) == 5


def test_the_whole_models_skeleton_is_not_touched(model: LanguageModel, skeleton: Skeleton) -> None:
    before = skeleton.graph.SerializeToString(deterministic=True)
    for structure in STRUCTURES.values():
        narrowed(skeleton, model.anatomy, structure)
    assert skeleton.graph.SerializeToString(deterministic=True) == before


def test_a_structure_that_does_not_fit_is_refused(model: LanguageModel, skeleton: Skeleton) -> None:
    with pytest.raises(ConfigError, match="block 4: the model has blocks 0 to 3"):
        narrowed(skeleton, model.anatomy, Structure((4,)))


def test_layers_of_removed_blocks_are_refused(
    model: LanguageModel, skeleton: Skeleton, bank: LayerBank, tmp_path: Path
) -> None:
    fewer = narrowed(skeleton, model.anatomy, Structure((1,)))
    layers = bank.compressed(config_of(model, Structure(), "fp32"))
    with pytest.raises(ExportError, match="exactly the skeleton's layers"):
        export_onnx(fewer, layers, tmp_path / "artifact")


def test_narrowed_biases_are_refused_and_removed_blocks_are_not(tmp_path: Path) -> None:
    kind, options = CASES["llama"]
    sizes = {"hidden_size": 64, "head_dim": 16, "attention_bias": True}
    model = load_model(saved(built(kind, {**options, **sizes}), tmp_path / "biased"))
    skeleton = build_skeleton(model, tmp_path / "skeletons")
    with pytest.raises(ExportError, match="block 1: matrices that its structure narrows have biases"):
        narrowed(skeleton, model.anatomy, Structure(kv_groups=((1, 1),)))
    bank, structure = LayerBank(model), Structure((0,), channels=((1, 17),))
    config, kept = config_of(model, structure, "fp32"), bank.kept(structure)
    assert kept is not None
    fewer = narrowed(skeleton, model.anatomy, structure)
    artifact = export_onnx(fewer, bank.compressed(config), tmp_path / "artifact")
    shape = narrowed_shape(model.shape, kept)
    assert check_parity(artifact, shape, bank.assemble(config), TOKENS, prompt_tokens=5) <= TOLERANCE
