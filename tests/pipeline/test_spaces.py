"""What a search may vary, and that what a target or a model does not allow is refused before the search."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from architectures import CASES, built, saved

from toggle_edge import cli
from toggle_edge.errors import ConfigError
from toggle_edge.model.load import LanguageModel, load_model
from toggle_edge.pipeline.inputs import demo_folder
from toggle_edge.pipeline.preparing import Prepared, prepare
from toggle_edge.pipeline.spaces import Removable, removable, require_bounds, space_note, space_of
from toggle_edge.profiles import Profile, SearchBounds, builtin_profiles, load_profile
from toggle_edge.report.progress import silent
from toggle_edge.search.dimensions import CHANNELS, FORMAT, KEPT, KV_GROUPS, SPARSITY
from toggle_edge.sources import ProbeSource

FEW = (
    builtin_profiles()["default"]
    .read_text()
    .replace("search = 59", "search = 2")
    .replace("certificate = 59", "certificate = 2")
)
DEMO = demo_folder() / "model"
EVERYTHING = SearchBounds(structure=("blocks", "kv_groups", "channels"))
Changed = Callable[..., Prepared]


def profile(**bounds: Any) -> Profile:
    return dataclasses.replace(load_profile("default"), bounds=SearchBounds(**bounds))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    path = tmp_path_factory.mktemp("profile") / "few.toml"
    path.write_text(FEW)
    source = ProbeSource(None, str(demo_folder() / "probes.jsonl"))
    return prepare(demo_folder() / "model", load_profile(path), [source], silent)


@pytest.fixture
def changed(prepared: Prepared) -> Changed:
    def change(target: str = "onnx-cpu", **bounds: Any) -> Prepared:
        return dataclasses.replace(prepared, profile=profile(**bounds), target=target)

    return change


def model_of(name: str, folder: Path, **options: object) -> LanguageModel:
    kind, usual = CASES[name]
    sizes = {**usual, "head_dim": 16} if kind in ("llama", "gemma2") else usual
    return load_model(saved(built(kind, {**sizes, **options}), folder))


def test_without_bounds_only_formats_vary(changed: Changed) -> None:
    dimensions = space_of(changed()).dimensions
    assert {each.kind for each in dimensions} == {FORMAT}
    assert space_note(changed()) == f"{len(dimensions)} dimensions: format {len(dimensions)}"


def test_bounds_narrow_every_menu(changed: Changed) -> None:
    for bounds, bits in (({"least_bits": 4}, {4, 8, 16}), ({"least_bits": 3, "most_bits": 8}, {4, 8})):
        for each in space_of(changed(**bounds)).dimensions:
            assert {getattr(choice, "bits", None) for choice in each.choices} == bits
    (menu,) = {
        each.choices
        for each in space_of(changed("paper", least_bits=3, most_bits=5, sparsities=())).dimensions
    }
    assert [str(choice) for choice in menu] == ["int3-axis", "int4-axis", "int5-axis"]


def test_sparsities_are_the_targets_or_the_profiles(changed: Changed) -> None:
    def shares(given: Prepared) -> set[object]:
        return {each.choices for each in space_of(given).dimensions if each.kind == SPARSITY}

    assert shares(changed("paper")) == {(0.5, 0.4, 0.3, 0.2, 0.1, 0.0)}
    assert shares(changed("paper", sparsities=(0.5, 0.25))) == {(0.5, 0.25, 0.0)}
    assert shares(changed("paper", sparsities=())) == set()
    assert shares(changed(sparsities=())) == set(), "no zeros are no zeros on any target"


def test_structure_may_go_where_the_profile_says_so(changed: Changed) -> None:
    given = changed(structure=("blocks", "kv_groups", "channels"), keep=(0.75, 0.5))
    anatomy, space = given.model.anatomy, space_of(given)
    by_kind = {
        kind: [each for each in space.dimensions if each.kind == kind] for kind in (KEPT, KV_GROUPS, CHANNELS)
    }
    assert [each.block for each in by_kind[KEPT]] == list(range(1, anatomy.blocks)), "the first block stays"
    assert [each.block for each in by_kind[KV_GROUPS]] == list(range(anatomy.blocks))
    groups, inner = anatomy.kv_groups, anatomy.channels(0)
    assert {each.choices for each in by_kind[KV_GROUPS]} == {
        tuple(sorted({round(groups * 0.5), round(groups * 0.75), groups}))
    }
    assert {each.choices for each in by_kind[CHANNELS]} == {(round(inner * 0.5), round(inner * 0.75), inner)}
    assert f"kept {anatomy.blocks - 1}, kv groups {anatomy.blocks}, channels {anatomy.blocks}" in space_note(
        given
    )
    # Every config of it fits the model, the emptiest one too: formats for the layers that remain, and no others.
    emptiest = space.decode([0] * len(space.dimensions))
    assert emptiest.structure.removed_blocks == tuple(range(1, anatomy.blocks))
    assert {layer.name for layer in given.model.remaining(emptiest.structure)} == set(emptiest.layers)
    assert space.proxy_flops(emptiest) < 0.25 * space.proxy_flops(space.decode(space.safest))


def test_only_the_parts_that_are_named_may_go(changed: Changed) -> None:
    kinds = {each.kind for each in space_of(changed(structure=("channels",))).dimensions}
    assert kinds == {FORMAT, CHANNELS}


@pytest.mark.parametrize(
    ("target", "bounds", "expectations"),
    [
        ("onnx-cpu", {"sparsities": (0.5,)}, ["search.sparsities", "zeros buy nothing on onnx-cpu", "paper"]),
        (
            "paper",
            {"structure": ("blocks",)},
            ["search.structure", "exported for paper", "search on one of executorch-xnnpack, onnx-cpu"],
        ),
        (
            "onnx-cpu",
            {"least_bits": 5, "most_bits": 7},
            ["search.bits", "no format has 5 to 7 bits", "int4-g32"],
        ),
        ("paper", {"least_bits": 17}, ["search.bits", "no format has 17 to 64 bits"]),
    ],
)
def test_what_the_target_does_not_allow_is_refused(
    target: str, bounds: dict[str, Any], expectations: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        require_bounds(profile(**bounds), target)
    for expectation in [str(builtin_profiles()["default"]), *expectations]:
        assert expectation in str(caught.value)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("phi3", "how heads and channels lie in the matrices of 'phi3' is not known"),
        ("gpt_neox", "of 'gpt_neox' is not known"),
        ("opt", "of 'opt' is not known"),
        ("mistral", "it could not be exported: the fused attention kernel takes heads of a multiple of 8"),
        ("gemma2", "it could not be exported: graphs of 'gemma2' can lose nothing yet"),
        ("gemma3", "it could not be exported: graphs of 'gemma3_text' can lose nothing yet"),
    ],
)
def test_a_model_that_can_lose_none_of_it_is_refused(name: str, reason: str, tmp_path: Path) -> None:
    odd = {"head_dim": 12} if name == "mistral" else {}
    model = model_of(name, tmp_path, **odd)
    with pytest.raises(ConfigError) as caught:
        removable(model, dataclasses.replace(load_profile("default"), bounds=EVERYTHING), "onnx-cpu")
    for expectation in (
        "search.structure: nothing of it",
        str(model.folder),
        "blocks, kv_groups, channels: ",
        reason,
    ):
        assert expectation in str(caught.value)
    assert removable(model, load_profile("default"), "onnx-cpu") == Removable()


@pytest.mark.parametrize(
    ("options", "keep", "parts", "left_out"),
    [
        ({}, (0.75, 0.5), ("blocks", "kv_groups", "channels"), {}),
        ({"attention_bias": True}, (0.5,), ("blocks", "channels"), {"kv_groups": "have biases"}),
        ({"mlp_bias": True}, (0.5,), ("blocks", "kv_groups"), {"channels": "have biases"}),
        ({"num_hidden_layers": 1}, (0.5,), ("kv_groups", "channels"), {"blocks": "one block"}),
        ({}, (0.9,), ("blocks", "channels"), {"kv_groups": "less than all"}),
        ({"num_key_value_heads": 1}, (0.5,), ("blocks", "channels"), {"kv_groups": "less than all"}),
    ],
)
def test_what_a_model_cannot_lose_is_left_out_with_the_reason(
    options: dict[str, object],
    keep: tuple[float, ...],
    parts: tuple[str, ...],
    left_out: dict[str, str],
    tmp_path: Path,
) -> None:
    bounds = dataclasses.replace(EVERYTHING, keep=keep)
    found = removable(
        model_of("llama", tmp_path, **options),
        dataclasses.replace(load_profile("default"), bounds=bounds),
        "onnx-cpu",
    )
    assert found.parts == parts
    assert found.left_out.keys() == left_out.keys()
    for part, reason in left_out.items():
        assert reason in found.left_out[part]


def test_gpt2_can_lose_blocks_and_nothing_with_biases(tmp_path: Path) -> None:
    found = removable(
        model_of("gpt2", tmp_path),
        dataclasses.replace(load_profile("default"), bounds=EVERYTHING),
        "onnx-cpu",
    )
    assert found.parts == ("blocks",)
    assert set(found.left_out) == {"kv_groups", "channels"}


def test_what_is_lowered_loses_biases_with_the_rest(tmp_path: Path) -> None:
    found = removable(
        model_of("gpt2", tmp_path),
        dataclasses.replace(load_profile("default"), bounds=EVERYTHING),
        "executorch-xnnpack",
    )
    assert found.parts == ("blocks", "kv_groups", "channels")


@pytest.fixture
def search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str]]]:
    """`toggle-edge search`, in a folder that it must leave empty, under the default profile with a text put in."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")

    def run(bounds: str, *options: str, model: Path = DEMO) -> tuple[int, str]:
        start, end = FEW.index("formats ="), FEW.index("# 59 probes")
        formats = "" if "formats" in bounds else FEW[start:end]
        (tmp_path / "mine.toml").write_text(f"{FEW[:start]}{bounds}\n{formats}{FEW[end:]}")
        arguments = ["search", str(model), "--profile", str(tmp_path / "mine.toml"), *options]
        monkeypatch.setattr(sys, "argv", ["toggle-edge", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), " ".join(capfd.readouterr().err.split())

    yield run
    assert list((tmp_path / "cwd").rglob("*")) == []


@pytest.mark.parametrize(
    ("bounds", "options", "message"),
    [
        (
            "bits = {least = 8, most = 4}",
            (),
            "search.bits.least: expected at most search.bits.most, which is 4; got 8",
        ),
        (
            "bits = {least = 5, most = 7}",
            (),
            "search.bits: space: no format has 5 to 7 bits; the target's menu has",
        ),
        ("bits = {most = 2}", ("--target", "onnx-cuda"), "no format has 0 to 2 bits"),
        ('formats = ["int2-g64"]', ("--target", "onnx-cuda"), "has no kernel for any of int2-g64"),
        ("formats = []", (), "search.formats: expected a list"),
        ("sparsities = [0.3]", (), "search.sparsities: zeros buy nothing on onnx-cpu"),
        ('structure = ["blocks"]', ("--target", "paper"), "search.structure: nothing that loses part"),
        (
            'structure = ["layers"]',
            (),
            "search.structure: expected one of blocks, kv_groups, channels, got 'layers'",
        ),
    ],
)
def test_contradictory_bounds_end_the_command_before_anything_is_done(
    search: Callable[..., tuple[int, str]], bounds: str, options: tuple[str, ...], message: str
) -> None:
    code, said = search(bounds, *options)
    assert (code, message in said) == (2, True), said
    assert "baseline" not in said


def test_a_model_that_loses_nothing_is_refused_before_a_study_is_begun(
    search: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    model_of("opt", tmp_path / "opt", max_position_embeddings=256)
    code, said = search('structure = ["blocks"]', model=tmp_path / "opt")
    assert (code, "search.structure: nothing of it can be removed of" in said) == (2, True), said
