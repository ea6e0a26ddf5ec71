"""The exported graph computes exactly what was searched, and ships every weight once."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from toggle_runtime.backends import onnx as backend

from toggle_edge.cli import search
from toggle_edge.compress.bank import LayerBank
from toggle_edge.config import FP16, Config, Format
from toggle_edge.errors import ConfigError, ExportError, ParityError
from toggle_edge.export import EXPORTERS, exporter_for
from toggle_edge.export.graphs import build_skeleton
from toggle_edge.export.onnx import export_onnx
from toggle_edge.export.packing import weight_path
from toggle_edge.export.parity import TOLERANCE, check_parity
from toggle_edge.export.skeleton import Skeleton
from toggle_edge.model.layers import EMBEDDING
from toggle_edge.model.load import LanguageModel
from toggle_edge.probes import Probe
from toggle_edge.targets import TARGETS

MENU = (
    "int2-g16",
    "int2-g32",
    "int2-g64",
    "int4-g16",
    "int4-g32",
    "int4-g64",
    "int8-g32",
    "int8-g64",
    "fp16",
)


def uniform(model: LanguageModel, text: str) -> Config:
    return Config.uniform(tuple(layer.name for layer in model.layers), Format.parse(text))


def mixed(model: LanguageModel, seed: int) -> Config:
    chooser = random.Random(seed)
    return Config.of({layer.name: Format.parse(chooser.choice(MENU)) for layer in model.layers})


@pytest.mark.parametrize(
    "text",
    [
        "fp32",
        "fp16",
        "int8-g64",
        "int4-g32",
        "int2-g64",
        "int8-g16-asym",
        "int4-g64-asym",
        "int4-g32-asym",
        "int2-g64-asym",
        "int2-g16-asym",
    ],
)
def test_parity_of_uniform_configs(
    text: str,
    tiny: LanguageModel,
    bank: LayerBank,
    skeleton: Skeleton,
    probes: tuple[Probe, ...],
    tmp_path: Path,
) -> None:
    config = uniform(tiny, text)
    artifact = export_onnx(skeleton, bank.compressed(config), tmp_path / "artifact")
    difference = check_parity(artifact, tiny.shape, bank.assemble(config), probes[0].tokens, prompt_tokens=20)
    assert difference <= TOLERANCE


@pytest.mark.parametrize("seed", range(6))
def test_parity_of_mixed_configs(
    seed: int,
    tiny: LanguageModel,
    bank: LayerBank,
    skeleton: Skeleton,
    probes: tuple[Probe, ...],
    tmp_path: Path,
) -> None:
    config = mixed(tiny, seed)
    artifact = export_onnx(skeleton, bank.compressed(config), tmp_path / "artifact")
    tokens = probes[seed % len(probes)].tokens
    assert check_parity(artifact, tiny.shape, bank.assemble(config), tokens, prompt_tokens=9) <= TOLERANCE


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("int3-axis", "int4-g32"),
        ("int8-axis", "int8-g32"),
        ("int3-g64", "int4-g64"),
        ("int5-g16", "int8-g16"),
        ("int3-g32-asym", "int4-g32-asym"),
        ("int9-g32", "fp16"),
    ],
)
def test_a_format_without_a_kernel_names_the_nearest_one(
    text: str, nearest: str, tiny: LanguageModel, bank: LayerBank, skeleton: Skeleton, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"no kernel for {text}; the nearest format .* is {nearest}"):
        export_onnx(skeleton, bank.compressed(uniform(tiny, text)), tmp_path / "artifact")
    assert not (tmp_path / "artifact").exists()


def test_zero_points_between_codes_are_refused(
    tiny: LanguageModel, skeleton: Skeleton, tmp_path: Path
) -> None:
    stretched = LayerBank(tiny, quantiser="seq").compressed(uniform(tiny, "int4-g32"))
    with pytest.raises(ConfigError, match="the quantiser's lies between two; choose another than seq"):
        export_onnx(skeleton, stretched, tmp_path / "artifact")


def test_a_graph_that_onnxruntime_refuses_is_an_export_error(
    tiny: LanguageModel, bank: LayerBank, skeleton: Skeleton, probes: tuple[Probe, ...], tmp_path: Path
) -> None:
    config = uniform(tiny, "int4-g32")
    artifact = export_onnx(skeleton, bank.compressed(config), tmp_path / "artifact")
    path = next((artifact.folder / "weights").glob("model.layers.*"))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ExportError, match="onnxruntime refuses the exported graph"):
        check_parity(artifact, tiny.shape, bank.assemble(config), probes[0].tokens, prompt_tokens=20)
    assert [each.name for each in tmp_path.iterdir()] == ["artifact"]


def test_parity_notices_a_single_wrong_code(
    tiny: LanguageModel, bank: LayerBank, skeleton: Skeleton, probes: tuple[Probe, ...], tmp_path: Path
) -> None:
    config = uniform(tiny, "int4-g32")
    layers = dict(bank.compressed(config))
    name = "model.layers.0.mlp.down_proj"
    codes = layers[name].codes.clone()
    codes[5, 1, 7] ^= 8
    layers[name] = dataclasses.replace(layers[name], codes=codes)
    artifact = export_onnx(skeleton, layers, tmp_path / "artifact")
    with pytest.raises(ParityError, match="not what was searched"):
        check_parity(artifact, tiny.shape, bank.assemble(config), probes[0].tokens, prompt_tokens=20)


def test_the_signals_graph_gives_torchs_attention_and_hidden_states(
    tiny: LanguageModel, bank: LayerBank, skeleton: Skeleton, probes: tuple[Probe, ...], tmp_path: Path
) -> None:
    config = mixed(tiny, 3)
    export_onnx(skeleton, bank.compressed(config), tmp_path, accuracy_level=0)
    model = backend.open_model(tmp_path, tiny.shape, backend.SIGNALS_GRAPH, threads=1)
    short, long = sorted((probe.tokens for probe in probes[:2]), key=len)
    batch = np.array([[*short, *[0] * (len(long) - len(short))], long])
    logits, attention, hidden = backend.outputs(model, batch, range(tiny.shape.layers))
    assert (backend.outputs(model, batch, [tiny.shape.layers - 1])[2] == hidden[:, -1:]).all()
    chosen = backend.choices(model, batch)
    module = bank.assemble(config)
    for row, tokens in enumerate((short, long)):
        expected = module(input_ids=torch.tensor([tokens]), output_attentions=True, output_hidden_states=True)
        n = len(tokens)
        np.testing.assert_allclose(logits[row, :n], expected.logits[0].numpy(), atol=TOLERANCE)
        maps = torch.stack(expected.attentions, dim=1)[0].numpy()
        np.testing.assert_allclose(attention[row, :, :, :n, :n], maps, atol=1e-5)
        states = torch.stack(expected.hidden_states[1:], dim=1)[0].numpy()
        np.testing.assert_allclose(hidden[row, :, :n], states, atol=TOLERANCE)
        assert (chosen[row, :n] == logits[row, :n].argmax(-1)).all()


@pytest.mark.parametrize("text", ["int8-g64", "int8-g64-asym"])
def test_integer_kernels_stay_close_at_the_level_that_ships(
    text: str,
    tiny: LanguageModel,
    bank: LayerBank,
    skeleton: Skeleton,
    probes: tuple[Probe, ...],
    tmp_path: Path,
) -> None:
    config = uniform(tiny, text)
    export_onnx(skeleton, bank.compressed(config), tmp_path)
    model = backend.open_model(tmp_path, tiny.shape, backend.GRAPH, threads=1)
    tokens = probes[0].tokens
    exact = bank.assemble(config)(input_ids=torch.tensor([tokens])).logits[0].numpy()
    difference = np.abs(backend.cached_logits(model, tokens, ()) - exact).max()
    assert TOLERANCE < difference < 0.2 * np.abs(exact).max()


def test_tied_weights_are_one_file_that_both_graphs_read(
    tiny: LanguageModel, bank: LayerBank, skeleton: Skeleton, tmp_path: Path
) -> None:
    artifact = export_onnx(skeleton, bank.compressed(uniform(tiny, "int4-g32")), tmp_path)
    files = [path for path in artifact.files if path.startswith("weights/")]
    assert len(files) == len(tiny.layers) + 1  # one each, and the shared constants
    for graph in ("model.onnx", "signals.onnx"):
        stored = onnx.load(tmp_path / graph, load_external_data=False).graph.initializer
        places = {t.name: {e.key: e.value for e in t.external_data} for t in stored if t.external_data}
        assert places[f"{EMBEDDING}.rows"]["location"] == weight_path(EMBEDDING)
        assert places[f"{EMBEDDING}.codes"] == places[f"{EMBEDDING}.rows"]
        assert max(tensor.ByteSize() for tensor in stored) < 2048  # no weight hides in a graph
    assert artifact.artifact_bytes == sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file())


def test_layers_files_have_the_size_that_the_format_predicts(
    tiny: LanguageModel, bank: LayerBank, skeleton: Skeleton, tmp_path: Path
) -> None:
    chooser = random.Random(1)
    texts = ("int4-g32-asym", "int2-g16-asym", "int8-g32-asym", *MENU)
    config = Config.of({layer.name: Format.parse(chooser.choice(texts)) for layer in tiny.layers})
    artifact = export_onnx(skeleton, bank.compressed(config), tmp_path)
    for layer in tiny.layers:
        predicted = config[layer.name].storage_bytes(layer.rows, layer.columns)
        assert 0 <= artifact.files[weight_path(layer.name)] - predicted < 64


def test_equal_configs_give_equal_bytes(
    tiny: LanguageModel, bank: LayerBank, skeleton: Skeleton, tmp_path: Path
) -> None:
    layers = bank.compressed(mixed(tiny, 2))
    first, second = (export_onnx(skeleton, layers, tmp_path / name) for name in ("a", "b"))
    assert first.files == second.files
    for path in first.files:
        assert (first.folder / path).read_bytes() == (second.folder / path).read_bytes()


def test_an_embedding_whose_width_the_group_does_not_divide_is_refused(
    tiny: LanguageModel, bank: LayerBank, skeleton: Skeleton, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match="multiple of 128"):
        export_onnx(skeleton, bank.compressed(uniform(tiny, "int4-g128")), tmp_path)


def test_missing_layers_are_refused(
    tiny: LanguageModel, bank: LayerBank, skeleton: Skeleton, tmp_path: Path
) -> None:
    layers = dict(bank.compressed(uniform(tiny, "fp16")))
    del layers[EMBEDDING]
    with pytest.raises(ExportError, match="exactly the skeleton's layers"):
        export_onnx(skeleton, layers, tmp_path)


def test_heads_that_the_kernel_does_not_take_are_refused_before_building(
    tiny: LanguageModel, tmp_path: Path
) -> None:
    odd = dataclasses.replace(tiny, shape=dataclasses.replace(tiny.shape, head_size=12))
    with pytest.raises(ExportError, match="multiple of 8"):
        build_skeleton(odd, tmp_path)


def test_a_failing_builder_leaves_nothing_and_says_why(tiny: LanguageModel, tmp_path: Path) -> None:
    broken = dataclasses.replace(tiny, folder=tmp_path / "nowhere", digest="0" * 64)
    cache = tmp_path / "cache"
    with pytest.raises(ExportError, match="could not build"):
        build_skeleton(broken, cache)
    assert list(cache.iterdir()) == []


def test_targets_are_found_by_name() -> None:
    assert set(EXPORTERS) == set(TARGETS) - {"paper"} == set(search.TARGETS), "as --help lists them"
    with pytest.raises(ConfigError, match="expected one of"):
        exporter_for("onnx-tpu")


def test_fp16_is_the_baseline_itself(tiny: LanguageModel, bank: LayerBank) -> None:
    candidate = bank.assemble(Config.uniform(tuple(layer.name for layer in tiny.layers), FP16))
    for name, value in tiny.module.state_dict().items():
        assert torch.equal(candidate.state_dict()[name], value), name


@pytest.mark.parametrize("text", ["int2-g64", "int4-g32", "int4-g32-asym", "int2-g16-asym", "fp16", "mixed"])
def test_what_an_artifact_will_weigh_is_known_before_it_is_written(
    tiny: LanguageModel, bank: LayerBank, skeleton: Skeleton, tmp_path: Path, text: str
) -> None:
    config = mixed(tiny, 5) if text == "mixed" else uniform(tiny, text)
    artifact = export_onnx(skeleton, bank.compressed(config), tmp_path)
    assert exporter_for("onnx-cpu").predicted_bytes(skeleton, tiny.layers, config) == artifact.artifact_bytes


def test_a_format_without_a_kernel_has_no_predicted_size(tiny: LanguageModel, skeleton: Skeleton) -> None:
    with pytest.raises(ConfigError, match="no kernel for int4-axis"):
        exporter_for("onnx-cpu").predicted_bytes(skeleton, tiny.layers, uniform(tiny, "int4-axis"))
