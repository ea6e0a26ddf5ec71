"""What an artifact weighs is what was predicted, and what two candidates have in common is stored once."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from architectures import CASES, built, saved
from toggle_runtime.blobs import blob_of

from toggle_edge.compress.bank import LayerBank
from toggle_edge.config import Config, Format
from toggle_edge.cost import predicted_cost
from toggle_edge.export import Skeleton, build_skeleton
from toggle_edge.export.artifact import Artifact
from toggle_edge.export.onnx import export_onnx, predicted_bytes
from toggle_edge.export.packing import container, weight_path
from toggle_edge.export.parity import TOLERANCE, check_parity
from toggle_edge.model.load import LanguageModel, load_model
from toggle_edge.targets import TARGETS

SHARED = Path(__file__).parents[3] / "shared" / "models"
STORIES = ("stories260K", "stories-gpt2-1M")
TOKENS = [3, 100, 7, 301, 44, 12, 9, 200, 30, 77, 81, 15, 40, 41, 42, 43]
MENU = ("int2-g64", "int4-g32", "int4-g32-asym", "int8-g64", "fp16")


@pytest.mark.parametrize("name", STORIES)
def test_a_story_model_weighs_what_was_predicted_and_computes_what_was_searched(
    name: str, tmp_path: Path
) -> None:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"the shared model {name} is not beside the checkout")
    model = load_model(folder)
    skeleton, bank = build_skeleton(model, tmp_path / "skeletons"), LayerBank(model)
    chooser = random.Random(0)
    for target in ("onnx-cpu", "onnx-cpu-1.23", "onnx-cpu-1.19"):
        known = [Format.parse(text) for text in MENU]
        known = [fmt for fmt in known if fmt in TARGETS[target].matrices]
        config = Config.of({layer.name: chooser.choice(known) for layer in model.layers})
        artifact = export_onnx(skeleton, bank.compressed(config), tmp_path / target, target=target)
        predicted = predicted_bytes(skeleton, model.layers, config, target=target)
        assert predicted == artifact.artifact_bytes
        layers = sum(container(config[each.name], each.rows, each.columns).total for each in model.layers)
        proxy = predicted_cost(model.layers, config, model.kept_parameters).proxy_bytes
        # The formula leaves out the graphs, the rotary tables and the settings; of the layers it knows all but padding.
        assert layers == pytest.approx(proxy - 4 * model.kept_parameters, rel=0.01)
        assert (
            check_parity(artifact, model.shape, bank.assemble(config), TOKENS, prompt_tokens=7) <= TOLERANCE
        )


@pytest.fixture(scope="module")
def thirty(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """A random GPT-2 with thirty layers."""
    kind, options = CASES["gpt2"]
    sizes = {"hidden_size": 192, "num_hidden_layers": 7, "tie_word_embeddings": False}
    model = load_model(saved(built(kind, {**options, **sizes}), tmp_path_factory.mktemp("thirty")))
    assert len(model.layers) == 30
    return model


@pytest.fixture(scope="module")
def wide(thirty: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Skeleton:
    return build_skeleton(thirty, tmp_path_factory.mktemp("skeletons"))


def shared_share(one: Artifact, other: Artifact) -> float:
    """The share of the other artifact's bytes that a device with the first one has already."""
    there = {blob_of(one.folder / path).sha256 for path in one.files}
    both = sum(size for path, size in other.files.items() if blob_of(other.folder / path).sha256 in there)
    return both / other.artifact_bytes


def test_candidates_that_differ_in_two_of_thirty_layers_share_nine_tenths(
    thirty: LanguageModel, wide: Skeleton, tmp_path: Path
) -> None:
    bank, first = LayerBank(thirty), dict.fromkeys((each.name for each in thirty.layers), Format(4, 32))
    second = first | {f"transformer.h.{block}.attn.c_proj": Format(8, 64) for block in (2, 5)}
    one, other = (
        export_onnx(wide, bank.compressed(Config.of(formats)), tmp_path / name)
        for name, formats in (("one", first), ("other", second))
    )
    changed = {
        path for path in one.files if (one.folder / path).read_bytes() != (other.folder / path).read_bytes()
    }
    graphs = {"model.onnx", "signals.onnx"}
    assert changed == graphs | {weight_path(name) for name in first if first[name] != second[name]}
    assert shared_share(one, other) >= 0.9


@pytest.mark.parametrize("text", ["int4-g32", "int2-g64", "int8-g32-asym", "fp16"])
def test_a_container_says_where_each_byte_of_a_file_goes(
    text: str, thirty: LanguageModel, wide: Skeleton, tmp_path: Path
) -> None:
    fmt = Format.parse(text)
    config = Config.of(dict.fromkeys((layer.name for layer in thirty.layers), fmt))
    artifact = export_onnx(wide, LayerBank(thirty).compressed(config), tmp_path)
    for layer in thirty.layers:
        found = container(fmt, layer.rows, layer.columns)
        assert found.total == artifact.files[weight_path(layer.name)]
        assert found.weights * 8 == fmt.bits * layer.weights
        groups = 0 if fmt.is_float else layer.rows * layer.columns // fmt.group
        assert found.scales == 4 * groups
        assert found.zero_points == (groups * fmt.bits // 8 if fmt.asymmetric else 0)
        assert 0 <= found.padding < 64
