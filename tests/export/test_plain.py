"""Graphs for older onnxruntimes: accepted and computed there, refused with a reason where they cannot be."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from architectures import CASES, built, saved
from old_engines import VERSIONS, differences
from toggle_runtime.backends import backend_for
from toggle_runtime.backends import onnx as backend

from toggle_edge.compress.bank import LayerBank
from toggle_edge.config import Config, Format
from toggle_edge.errors import ConfigError
from toggle_edge.export import Skeleton, build_skeleton, narrowed, narrowed_shape
from toggle_edge.export.kernels import KERNELS
from toggle_edge.export.onnx import export_onnx, predicted_bytes
from toggle_edge.export.parity import TOLERANCE, check_parity
from toggle_edge.model.load import LanguageModel, load_model
from toggle_edge.structure import Structure
from toggle_edge.targets import GROUPS, TARGETS

ONNX_TARGETS = tuple(KERNELS)
TOKENS = np.random.default_rng(0).integers(3, 500, (3, 24))


def mixed(model: LanguageModel, target: str, seed: int) -> Config:
    """Formats from a target's menu, groups that divide the width of an embedding."""
    chooser = random.Random(seed)
    known = sorted(fmt for fmt in TARGETS[target].matrices if fmt.group <= 64)
    return Config.of({layer.name: chooser.choice(known) for layer in model.layers})


@pytest.fixture(scope="module")
def gpt2_skeleton(gpt2: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Skeleton:
    return build_skeleton(gpt2, tmp_path_factory.mktemp("skeletons"))


@pytest.fixture(params=["tiny", "gpt2"])
def case(request: pytest.FixtureRequest) -> tuple[LanguageModel, Skeleton]:
    names = {"tiny": "skeleton", "gpt2": "gpt2_skeleton"}
    return request.getfixturevalue(request.param), request.getfixturevalue(names[request.param])


@pytest.mark.parametrize("target", sorted(VERSIONS))
def test_an_old_onnxruntime_computes_what_was_searched(
    target: str, case: tuple[LanguageModel, Skeleton], tmp_path: Path
) -> None:
    model, skeleton = case
    config, bank = mixed(model, target, 1), LayerBank(model)
    layers = bank.compressed(config)
    artifact = export_onnx(skeleton, layers, tmp_path / "artifact", accuracy_level=0, target=target)
    assert artifact.target == target
    assert artifact.artifact_bytes == predicted_bytes(skeleton, model.layers, config, target=target)
    worst = differences(target, artifact.folder, model.shape, bank.assemble(config), TOKENS)
    assert max(worst.values()) <= TOLERANCE, worst


@pytest.mark.parametrize("target", ONNX_TARGETS)
def test_every_format_of_a_menu_has_parity_and_passes_the_checker(
    target: str, case: tuple[LanguageModel, Skeleton], tmp_path: Path
) -> None:
    model, skeleton = case
    bank, menu = LayerBank(model), sorted(TARGETS[target].matrices)
    embedding = Format(4, 32)  # which divides its width
    layers = [layer.name for layer in model.layers if layer.role != "embedding"]
    for index in range(0, len(menu), len(layers)):
        formats = {layer.name: embedding for layer in model.layers}
        formats |= {name: menu[(index + i) % len(menu)] for i, name in enumerate(layers)}
        config = Config.of(formats)
        artifact = export_onnx(skeleton, bank.compressed(config), tmp_path / str(index), target=target)
        tokens = TOKENS[0].tolist()
        module = bank.assemble(config)
        assert check_parity(artifact, model.shape, module, tokens, prompt_tokens=9) <= TOLERANCE
        for graph in (backend.GRAPH, backend.SIGNALS_GRAPH):
            onnx.checker.check_model(str(artifact.folder / graph), full_check=True)


@pytest.mark.parametrize(
    ("target", "text", "nearest"),
    [
        ("onnx-cpu-1.23", "int2-g64", "int4-g64"),
        ("onnx-cpu-1.23", "int3-axis", "int4-g32"),
        ("onnx-cpu-1.19", "int2-g32-asym", "int4-g32-asym"),
        ("onnx-cpu-1.19", "int8-g64", "fp16"),
    ],
)
def test_what_an_old_onnxruntime_lacks_is_refused_with_the_nearest_that_it_has(
    target: str, text: str, nearest: str, tiny: LanguageModel, skeleton: Skeleton, tmp_path: Path
) -> None:
    config = Config.uniform(tuple(layer.name for layer in tiny.layers), Format.parse(text))
    with pytest.raises(ConfigError, match=rf"{re.escape(target)} has no kernel for {text};.*is {nearest}$"):
        export_onnx(skeleton, LayerBank(tiny).compressed(config), tmp_path / "artifact", target=target)
    assert not (tmp_path / "artifact").exists()


@pytest.mark.parametrize("target", ["onnx-cpu-1.23", "onnx-cpu-1.19"])
def test_older_targets_offer_less(target: str) -> None:
    assert TARGETS[target].matrices < TARGETS["onnx-cpu"].matrices
    assert {fmt.group for fmt in TARGETS[target].matrices if not fmt.is_float} == set(GROUPS)


def test_the_oldest_graphs_have_only_nodes_of_their_time(
    case: tuple[LanguageModel, Skeleton], tmp_path: Path
) -> None:
    model, skeleton = case
    config = mixed(model, "onnx-cpu-1.19", 2)
    artifact = export_onnx(skeleton, LayerBank(model).compressed(config), tmp_path, target="onnx-cpu-1.19")
    for graph in (backend.GRAPH, backend.SIGNALS_GRAPH):
        stored = onnx.load(artifact.folder / graph, load_external_data=False)
        assert max(opset.version for opset in stored.opset_import) <= 21
        assert stored.ir_version <= 10
        kinds = {node.op_type for node in stored.graph.node}
        assert "GatherBlockQuantized" not in kinds
        assert ("GroupQueryAttention" in kinds) == (graph == backend.GRAPH)
        assert "qk_output" not in {each.name for node in stored.graph.node for each in node.attribute}


def test_a_gpu_is_never_assumed(case: tuple[LanguageModel, Skeleton], tmp_path: Path) -> None:
    model, skeleton = case
    config = mixed(model, "onnx-cuda", 3)
    artifact = export_onnx(skeleton, LayerBank(model).compressed(config), tmp_path / "a", target="onnx-cuda")
    on_gpu = backend_for("onnx-cuda")
    if on_gpu.CUDA not in onnxruntime.get_available_providers():
        with pytest.raises(ValueError, match=r"expected CUDAExecutionProvider, there is .*CPUExecution"):
            on_gpu.open_model(artifact.folder, model.shape, on_gpu.GRAPH, 1)
    # Its graphs are what runs on the CPU too, attention rows included.
    opened = backend.open_model(artifact.folder, model.shape, on_gpu.SIGNALS_GRAPH, 1)
    logits, attention, _ = on_gpu.outputs(opened, TOKENS, range(model.shape.layers))
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(attention.sum(-1), 1.0, atol=1e-5)
    kinds = {
        node.op_type
        for node in onnx.load(artifact.folder / on_gpu.GRAPH, load_external_data=False).graph.node
    }
    assert {"GroupQueryAttention", "MatMulNBits"} <= kinds


def test_heads_that_the_kernel_does_not_rotate_are_rotated_before_it(tmp_path: Path) -> None:
    kind, options = CASES["llama"]  # with heads of 8
    model = load_model(saved(built(kind, {**options, "num_hidden_layers": 3}).half(), tmp_path / "model"))
    skeleton, bank = build_skeleton(model, tmp_path / "skeletons"), LayerBank(model)
    config = Config.uniform(tuple(layer.name for layer in model.layers), Format.parse("int4-g16"))
    for target in ONNX_TARGETS:
        artifact = export_onnx(skeleton, bank.compressed(config), tmp_path / target, target=target)
        module, tokens = bank.assemble(config), TOKENS[0].tolist()
        assert check_parity(artifact, model.shape, module, tokens, prompt_tokens=9) <= TOLERANCE
    exact = export_onnx(skeleton, bank.compressed(config), tmp_path / "exact", accuracy_level=0)
    opened = backend.open_model(exact.folder, model.shape, backend.SIGNALS_GRAPH, threads=1)
    logits, attention, _ = backend.outputs(opened, TOKENS, range(3))
    with torch.inference_mode():
        found = bank.assemble(config)(input_ids=torch.tensor(TOKENS), output_attentions=True)
    np.testing.assert_allclose(logits, found.logits.numpy(), atol=TOLERANCE)
    np.testing.assert_allclose(attention, torch.stack(found.attentions, dim=1).numpy(), atol=1e-5)
    fewer = Structure((1,), ((0, 1),))
    config = Config.of({each.name: Format.parse("fp16") for each in model.remaining(fewer)}, structure=fewer)
    kept = bank.kept(fewer)
    assert kept is not None
    artifact = export_onnx(
        narrowed(skeleton, model.anatomy, fewer), bank.compressed(config), tmp_path / "fewer"
    )
    shape = narrowed_shape(model.shape, kept)
    assert check_parity(artifact, shape, bank.assemble(config), tokens, prompt_tokens=9) <= TOLERANCE
