"""Architectures without a graph of their own are traced, to what torch computes; all with the same tests."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import CASES, built, saved
from old_engines import differences
from onnx import TensorProto
from toggle_runtime.backends import onnx as backend

from toggle_edge.compress.bank import LayerBank
from toggle_edge.config import Config, Format
from toggle_edge.errors import ExportError
from toggle_edge.export import EXPORTERS, WHOLE_ONLY, Skeleton, build_skeleton, narrowed, why_not
from toggle_edge.export import general as general_module
from toggle_edge.export.artifact import Artifact
from toggle_edge.export.general import GENERAL, general_skeleton, why_not_traced
from toggle_edge.export.onnx import export_onnx, predicted_bytes
from toggle_edge.export.parity import TOLERANCE, check_parity
from toggle_edge.export.rewriting import SHARED_FILE
from toggle_edge.model.load import LanguageModel, load_model
from toggle_edge.model.removal import REMOVABLE
from toggle_edge.structure import Structure

TOKENS = np.random.default_rng(0).integers(3, 500, 40).tolist()
PROMPT = 15
BATCH = np.array([TOKENS, TOKENS[::-1], TOKENS[5:] + TOKENS[:5], TOKENS[9:] + TOKENS[:9]])
MENU = ("int4-g16", "int8-g32", "int4-g16-asym", "fp16", "int2-g16")
KINDS = (
    "deepseek_v2_queries",
    "gemma3",
    "gpt_neox",
    "mixtral",
    "opt",
    "opt_projected",
    "qwen2_moe",
    "qwen3_moe",
)
OLDER = {"gpt_neox": "onnx-cpu-1.19", "gemma3": "onnx-cpu-1.23", "qwen2_moe": "onnx-cpu-1.19"}
"""One older onnxruntime for each that differs: partial rotation, windows, experts."""
OWN: dict[str, Any] = {  # tracing takes longer with each expert
    "deepseek_v2_queries": {
        "n_routed_experts": 3,
        "qk_nope_head_dim": 12,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 32,
            "mscale": 0.7,
            "mscale_all_dim": 0.7,
        },
    },
    "mixtral": {"num_local_experts": 3},
    "qwen2_moe": {"num_experts": 3},
    "qwen3_moe": {"num_experts": 3, "mlp_only_layers": [0]},
}

pytestmark = pytest.mark.skipif(why_not_traced() is not None, reason=str(why_not_traced()))


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return a_model(request.param, tmp_path_factory.mktemp(request.param), **OWN.get(request.param, {}))


def a_model(case: str, folder: Path, **own: Any) -> LanguageModel:
    kind, options = CASES[case]
    module = built(kind, {**options, **own})
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:  # norms and biases begin as ones and zeros, which would hide mistakes
                parameter.add_(0.1 * torch.randn_like(parameter))
    return load_model(saved(module.half(), folder))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("skeletons")


@pytest.fixture(scope="module")
def skeleton(model: LanguageModel, cache: Path) -> Skeleton:
    return build_skeleton(model, cache)


def mixed(model: LanguageModel, seed: int = 1) -> Config:
    chooser = random.Random(seed)
    menus = {
        layer.name: [
            text for text in MENU if layer.role != "embedding" or layer.columns % 32 == 0 or "32" not in text
        ]
        for layer in model.layers
    }
    return Config.of({name: Format.parse(chooser.choice(menu)) for name, menu in menus.items()})


@pytest.fixture(scope="module")
def searched(model: LanguageModel) -> Any:
    """The module with the weights of the mixed config."""
    return LayerBank(model).assemble(mixed(model))


@pytest.fixture(scope="module")
def artifact(model: LanguageModel, skeleton: Skeleton, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("artifacts") / "artifact"
    return export_onnx(skeleton, LayerBank(model).compressed(mixed(model)), folder, accuracy_level=0)


def test_all_are_here_and_the_others_are_refused_with_this_list(tmp_path: Path) -> None:
    assert {CASES[kind][0] for kind in KINDS} == set(GENERAL)
    other = load_model(saved(built("starcoder2", CASES["opt"][1]).half(), tmp_path))
    assert "got 'starcoder2'; others can be searched and checked" in str(why_not(other))
    with pytest.raises(ExportError, match="expected an architecture among"):
        build_skeleton(other, tmp_path)


def test_prefill_and_decode_of_one_text(
    model: LanguageModel, skeleton: Skeleton, artifact: Artifact, searched: Any
) -> None:
    assert check_parity(artifact, model.shape, searched, TOKENS, prompt_tokens=PROMPT) <= TOLERANCE
    assert artifact.artifact_bytes == predicted_bytes(skeleton, model.layers, mixed(model))


def test_prefill_and_decode_of_four_texts(model: LanguageModel, artifact: Artifact, searched: Any) -> None:
    session = backend.open_model(artifact.folder, model.shape, backend.GRAPH, threads=1).session
    shape = model.shape
    caches = [f"{block}.{part}" for block in range(shape.layers) for part in ("key", "value")]
    past = {
        f"past_key_values.{name}": np.zeros((4, shape.kv_heads, 0, shape.head_size), np.float32)
        for name in caches
    }
    rows, end = [], 0
    for length in (PROMPT, *[1] * 10):
        given, end = BATCH[:, end : end + length], end + length
        feed = {"input_ids": given, "attention_mask": np.ones((4, end), np.int64), **past}
        logits, *present = session.run(["logits", *(f"present.{name}" for name in caches)], feed)
        past = dict(zip(past, present, strict=True))
        rows.append(logits)
    with torch.inference_mode():
        expected = searched(input_ids=torch.tensor(BATCH[:, :end])).logits.numpy()
    np.testing.assert_allclose(np.concatenate(rows, axis=1), expected, atol=TOLERANCE)


def test_attention_and_hidden_states(model: LanguageModel, artifact: Artifact, searched: Any) -> None:
    opened = backend.open_model(artifact.folder, model.shape, backend.SIGNALS_GRAPH, threads=1)
    wide = all(layer.role != "project_out" for layer in model.layers)
    with torch.inference_mode():
        expected = searched(input_ids=torch.tensor(BATCH), output_attentions=True, output_hidden_states=True)
    for count in (1, 4):
        logits, attention, hidden = backend.outputs(opened, BATCH[:count], range(model.shape.layers))
        np.testing.assert_allclose(logits, expected.logits[:count].numpy(), atol=TOLERANCE)
        rows = torch.stack(expected.attentions, dim=1)[:count].numpy()
        np.testing.assert_allclose(attention, rows, atol=1e-5)
        # Where what follows the last block changes the width, its own states are compared elsewhere: in a search.
        states = expected.hidden_states[1:] if wide else expected.hidden_states[1:-1]
        for block, each in enumerate(states):
            np.testing.assert_allclose(hidden[:, block], each[:count].numpy(), atol=TOLERANCE)


def test_every_layer_is_one_file_and_shared_where_it_is_tied(
    model: LanguageModel, skeleton: Skeleton, artifact: Artifact
) -> None:
    files = [path for path in artifact.files if path.startswith("weights/") and path != SHARED_FILE]
    assert len(files) == len(model.layers)
    tied = not any(layer.role == "head" for layer in model.layers)
    uses = list(skeleton.weights.values())
    (embedding,) = (layer.name for layer in model.layers if layer.role == "embedding")
    assert uses.count(embedding) == (2 if tied else 1)
    # Nothing of where it was made is in it, and no weight of a layer.
    assert not any(node.metadata_props or node.doc_string for node in skeleton.graph.graph.node)
    assert all(
        tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2 or tensor.name not in skeleton.weights
        for tensor in skeleton.graph.graph.initializer
    )


def test_generation_with_integer_kernels_gives_finite_logits(
    model: LanguageModel, skeleton: Skeleton, tmp_path: Path
) -> None:
    config = Config.uniform(tuple(layer.name for layer in model.layers), Format.parse("int4-g16"))
    artifact = export_onnx(skeleton, LayerBank(model).compressed(config), tmp_path / "artifact")
    opened = backend.open_model(artifact.folder, model.shape, backend.GRAPH, threads=1)
    tokens = list(backend.stream(opened, TOKENS[:PROMPT], 12))  # raises where a logit is not finite
    assert len(tokens) == 12
    assert all(0 <= token < model.shape.vocabulary for token in tokens)


def test_older_onnxruntimes_compute_the_same(
    model: LanguageModel, skeleton: Skeleton, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    target = OLDER.get(request.node.callspec.params["model"])
    if target is None:
        pytest.skip("what it has is tested with another architecture")
    bank, texts = LayerBank(model), ("int4-g16", "fp16", "int4-g16-asym")
    config = Config.of({layer.name: Format.parse(texts[i % 3]) for i, layer in enumerate(model.layers)})
    layers = bank.compressed(config)
    artifact = export_onnx(skeleton, layers, tmp_path / "artifact", accuracy_level=0, target=target)
    worst = differences(target, artifact.folder, model.shape, bank.assemble(config), BATCH[:2])
    assert max(worst.values()) <= TOLERANCE, worst


def test_nothing_can_be_taken_out_and_that_is_known_before_a_search(
    model: LanguageModel, skeleton: Skeleton
) -> None:
    kind = model.module.config.model_type
    assert kind in WHOLE_ONLY
    if kind in REMOVABLE:
        with pytest.raises(ExportError, match="is traced, and can lose nothing yet"):
            narrowed(skeleton, model.anatomy, Structure((1,)))


def test_it_is_traced_once_and_read_from_the_cache_then(
    model: LanguageModel, skeleton: Skeleton, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(general_module, "traced", lambda *_: pytest.fail("traced again"))
    assert general_skeleton(model, cache) == skeleton
    (kept,) = (cache / model.digest[:16]).iterdir()
    assert kept.name == "traced-1.onnx"


class TestOneModel:
    @pytest.fixture
    def neox(self, tmp_path: Path) -> LanguageModel:
        return a_model("gpt_neox", tmp_path / "model")

    def test_what_is_missing_is_said_before_a_search(
        self, neox: LanguageModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(general_module, "NEEDED", "no_such_package")
        for target in ("onnx-cpu", "onnx-cuda"):
            assert "pip install no_such_package" in str(EXPORTERS[target].why_not(neox))

    def test_heads_that_the_kernel_does_not_take_are_refused(self, tmp_path: Path) -> None:
        odd = a_model("gpt_neox", tmp_path / "odd", hidden_size=48)
        assert "takes heads of a multiple of 8, this model's are of size 12" in str(why_not(odd))
        latent = a_model("deepseek_v2", tmp_path / "latent")
        assert "takes heads of a multiple of 8, this model's are of size 12" in str(why_not(latent))

    def test_what_cannot_be_traced_is_refused_with_why(self, tmp_path: Path) -> None:
        rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
        stretched = a_model("gpt_neox", tmp_path / "stretched", rope_parameters=rope)
        with pytest.raises(ExportError, match="torch cannot trace it"):
            general_skeleton(stretched, tmp_path)
