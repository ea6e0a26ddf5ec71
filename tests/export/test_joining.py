"""Queries, keys and values that are stored alike come from one matrix, and nothing that is computed changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from architectures import CASES, built, saved
from old_engines import VERSIONS, differences
from signal_parity import assert_same_signals
from toggle_runtime.backends import onnx as backend

from toggle_edge.compress.bank import LayerBank
from toggle_edge.config import Config, Format
from toggle_edge.export import Skeleton, build_skeleton, narrowed, narrowed_shape
from toggle_edge.export.general import GENERAL, why_not_traced
from toggle_edge.export.kernels import KERNELS
from toggle_edge.export.onnx import GRAPH, SIGNALS_GRAPH, export_onnx, predicted_bytes
from toggle_edge.export.parity import TOLERANCE, check_parity
from toggle_edge.model.load import LanguageModel, load_model
from toggle_edge.structure import Structure

TOKENS = np.random.default_rng(0).integers(3, 500, 40).tolist()
BATCH = np.array([TOKENS, TOKENS[::-1], TOKENS[5:] + TOKENS[:5], TOKENS[9:] + TOKENS[:9]])
SIZES = {"head_dim": 16, "num_hidden_layers": 2}
JOINED: dict[str, dict[str, Any]] = {"gemma": {}, "llama": {}, "mistral": {}, "qwen2": {"hidden_size": 64}}
"""Nothing but biases lies between their projections and attention. Heads that share keys, windows, biases."""
APART: dict[str, dict[str, Any]] = {"qwen3": {}, "gpt2": {"hidden_size": 64}, "mixtral": {}}
"""Norms, a matrix that has always been one, and a traced graph, which rotates by itself."""


def saved_model(kind: str, own: dict[str, Any], folder: Path) -> LanguageModel:
    name, options = CASES[kind]
    module = built(name, {**options, **SIZES, **own})
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:  # a bias of zeros is none to the builder
                parameter.add_(0.1 * torch.randn_like(parameter))
    return load_model(saved(module.half(), folder))


@pytest.fixture(scope="module", params=sorted(JOINED))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return saved_model(request.param, JOINED[request.param], tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def skeleton(model: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Skeleton:
    return build_skeleton(model, tmp_path_factory.mktemp("skeletons"))


def alike(
    model: LanguageModel,
    text: str,
    structure: Structure | None = None,
    others: Mapping[str, str] | None = None,
) -> Config:
    """All layers in one format but those that `others` name."""
    structure = structure or Structure()
    formats = {layer.name: Format.parse(text) for layer in model.remaining(structure)}
    formats |= {name: Format.parse(other) for name, other in (others or {}).items()}
    return Config.of(formats, structure=structure)


def attentions(folder: Path, graph: str) -> list[onnx.NodeProto]:
    model = onnx.load(folder / graph, load_external_data=False)
    return [node for node in model.graph.node if node.op_type == "GroupQueryAttention"]


def joint(folder: Path, graph: str = GRAPH) -> list[bool]:
    return [node.input[0].endswith("/joined") for node in attentions(folder, graph)]


@pytest.mark.parametrize("text", ["int4-g16", "int8-g32", "int4-g32-asym"])
def test_parity_bytes_and_signals(
    text: str, model: LanguageModel, skeleton: Skeleton, tmp_path: Path
) -> None:
    config, bank = alike(model, text), LayerBank(model)
    artifact = export_onnx(skeleton, bank.compressed(config), tmp_path / "artifact", accuracy_level=0)
    assert joint(artifact.folder) == joint(artifact.folder, SIGNALS_GRAPH) == [True, True]
    module: Any = bank.assemble(config)
    assert check_parity(artifact, model.shape, module, TOKENS, prompt_tokens=15) <= TOLERANCE
    assert artifact.artifact_bytes == predicted_bytes(skeleton, model.layers, config)

    assert_same_signals(artifact.folder, model.shape, module, BATCH)


def test_files_of_layers_are_those_of_a_graph_with_three_and_so_is_every_bit_of_the_logits(
    model: LanguageModel, skeleton: Skeleton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = LayerBank(model).compressed(alike(model, "int4-g32"))
    one = export_onnx(skeleton, layers, tmp_path / "one").folder
    monkeypatch.setitem(KERNELS, "onnx-cpu", dataclasses.replace(KERNELS["onnx-cpu"], joint=False))  # type: ignore[arg-type]
    three = export_onnx(skeleton, layers, tmp_path / "three").folder
    assert (joint(one), joint(three)) == ([True, True], [False, False])
    files = [
        {path.name: path.read_bytes() for path in (folder / "weights").iterdir()} for folder in (one, three)
    ]
    assert files[0] == files[1]
    found = [
        backend.cached_logits(
            backend.open_model(folder, model.shape, backend.GRAPH, 1), TOKENS[:15], TOKENS[15:]
        )
        for folder in (one, three)
    ]
    np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.parametrize("target", sorted(VERSIONS))
def test_older_onnxruntimes_compute_the_same(
    target: str, model: LanguageModel, skeleton: Skeleton, tmp_path: Path
) -> None:
    if target == "onnx-cpu-1.19" and model.module.config.model_type == "mistral":
        pytest.skip("its window is one that this onnxruntime cannot have")
    config, bank = alike(model, "int4-g16"), LayerBank(model)
    artifact = export_onnx(
        skeleton, bank.compressed(config), tmp_path / "artifact", accuracy_level=0, target=target
    )
    assert joint(artifact.folder) == [True, True]
    worst = differences(target, artifact.folder, model.shape, bank.assemble(config), BATCH[:2])
    assert max(worst.values()) <= TOLERANCE, worst


def test_one_layer_in_another_format_leaves_its_block_as_it_is(
    model: LanguageModel, skeleton: Skeleton, tmp_path: Path
) -> None:
    last = next(layer.name for layer in model.layers if layer.name.endswith("1.self_attn.v_proj"))
    for number, other in enumerate(("int8-g16", "int4-g32", "int4-g16-asym", "fp16")):
        config, bank = alike(model, "int4-g16", others={last: other}), LayerBank(model)
        artifact = export_onnx(skeleton, bank.compressed(config), tmp_path / str(number), accuracy_level=0)
        assert joint(artifact.folder) == [True, False]
        assert (
            check_parity(artifact, model.shape, bank.assemble(config), TOKENS, prompt_tokens=15) <= TOLERANCE
        )


def test_what_is_left_of_the_heads_is_joined_too(
    model: LanguageModel, skeleton: Skeleton, tmp_path: Path
) -> None:
    # Graphs whose projections have biases cannot become narrower.
    groups = () if model.shape.kv_heads == 1 or model.module.config.model_type == "qwen2" else ((0, 1),)
    structure = Structure((1,), groups)
    config, bank = alike(model, "int4-g16", structure), LayerBank(model)
    kept = bank.kept(structure)
    assert kept is not None
    fewer, shape = narrowed(skeleton, model.anatomy, structure), narrowed_shape(model.shape, kept)
    artifact = export_onnx(fewer, bank.compressed(config), tmp_path / "artifact", accuracy_level=0)
    assert joint(artifact.folder) == [True]
    assert check_parity(artifact, shape, bank.assemble(config), TOKENS, prompt_tokens=15) <= TOLERANCE


@pytest.mark.parametrize("kind", sorted(APART))
def test_what_lies_between_keeps_three(kind: str, tmp_path: Path) -> None:
    if kind in GENERAL and (why := why_not_traced()) is not None:
        pytest.skip(why)
    model = saved_model(kind, APART[kind], tmp_path / "model")
    config, bank = alike(model, "int4-g16"), LayerBank(model)
    skeleton = build_skeleton(model, tmp_path / "skeletons")
    artifact = export_onnx(skeleton, bank.compressed(config), tmp_path / "artifact", accuracy_level=0)
    assert joint(artifact.folder) == [False, False]
    assert check_parity(artifact, model.shape, bank.assemble(config), TOKENS, prompt_tokens=15) <= TOLERANCE


def test_a_gpu_s_graph_is_the_builder_s(tmp_path: Path) -> None:
    model = saved_model("llama", {}, tmp_path / "model")
    layers = LayerBank(model).compressed(alike(model, "int4-g32"))
    artifact = export_onnx(
        build_skeleton(model, tmp_path / "skeletons"), layers, tmp_path / "artifact", target="onnx-cuda"
    )
    assert joint(artifact.folder) == [False, False]
