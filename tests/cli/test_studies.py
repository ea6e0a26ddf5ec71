"""A study that cannot go on as it is asked to, or cannot begin: refused with the difference, and nothing is changed."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import Call
from safetensors.torch import load_file, save_file

from toggle_edge import cli
from toggle_edge.pipeline.inputs import demo_folder

PROFILE = (Path(__file__).parents[2] / "profiles" / "default.toml").read_text()
PROBES = demo_folder() / "probes.jsonl"
FEW = (("search = 59", "search = 2"), ("certificate = 59", "certificate = 2"))
MENU = 'formats = ["int4-g32", "int8-g64", "fp16"]'


def profile_text(*changes: tuple[str, str], menu: str = MENU) -> str:
    """The default contract on few probes, so that a search takes a second."""
    text = re.sub(r"formats = .*", menu, PROFILE)
    for old, new in (*FEW, *changes):
        assert old in text
        text = text.replace(old, new)
    return text


def contents(store: Path) -> list[str]:
    """All that a store says."""
    connection = sqlite3.connect(f"file:{store}?mode=ro", uri=True)
    said = list(connection.iterdump())
    connection.close()
    return said


def files(folder: Path) -> dict[str, bytes]:
    """All that lies there but the lock, which says who held it last."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def search(folder: Path, *more: object, model: Path | None = None, probes: Path = PROBES) -> list[object]:
    """The command over what lies in a folder; of options that are given twice the later one counts."""
    own = ["--profile", folder / "few.toml", "--probes", probes, "--study", "mine"]
    where = ["--store", f"sqlite:///{folder / 'store.db'}", "--output", folder / "studies"]
    return ["search", model or folder / "model", *own, *where, "--trials", 2, *more]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A model, a profile and a study of two trials over them."""
    folder = tmp_path_factory.mktemp("begun")
    shutil.copytree(tiny_folder, folder / "model")
    (folder / "few.toml").write_text(profile_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["toggle-edge", *map(str, search(folder))])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert ended.value.code in (None, 0, 1)
    return folder


def another_model(begun: Path, here: Path) -> list[object]:
    shutil.copytree(begun / "model", here / "model")
    weights = load_file(here / "model" / "model.safetensors")
    weights["model.norm.weight"][3] += 1
    save_file(weights, here / "model" / "model.safetensors", metadata={"format": "pt"})
    return search(begun, model=here / "model")


def an_edited_profile(begun: Path, here: Path) -> list[object]:
    text = profile_text(("threshold = 0.25", "threshold = 0.3"), ("avgpp = 85.0", "avgpp = 80.0"))
    (here / "few.toml").write_text(text)
    return search(begun, "--profile", here / "few.toml")


def another_profile(begun: Path, here: Path) -> list[object]:
    (here / "other.toml").write_text(profile_text(menu='formats = ["int8-g64"]'))
    return search(begun, "--profile", here / "other.toml")


def other_probes(begun: Path, here: Path) -> list[object]:
    (here / "others.jsonl").write_text("\n".join(PROBES.read_text().splitlines()[::-1][:40]))
    return search(begun, probes=here / "others.jsonl")


def with_options(*more: object) -> Callable[[Path, Path], list[object]]:
    return lambda begun, here: search(begun, *more)


@pytest.mark.parametrize(
    ("asked", "differences"),
    [
        (
            another_model,
            [r"the model's content was '\w{12}', is now '\w{12}' \(\S+/begun0/model, now \S+/model\); c"],
        ),
        (
            an_edited_profile,
            [
                r"the profile's content was '\w{12}', is now '\w{12}' \(\S+few.toml, now \S+few.toml\): ",
                r'properties.coherence was "always \(jsd <= 0.25\)", is now "always \(jsd <= 0.3\)", ',
                "modes.relaxed.avgpp was 85.0, is now 80.0; choose",
            ],
        ),
        (
            another_profile,
            [
                "the profile was 'few', is now 'other'; the profile's content was",
                r"\(\S+few.toml, now \S+other.toml\): ",
                r'formats was \["int4-g32", "int8-g64", "fp16"\], is now \["int8-g64"\]; choose',
            ],
        ),
        (
            other_probes,
            [r"the probes' content was '\w{12}', is now '\w{12}' \(\S+/probes.jsonl, now \S+/others.jsonl\)"],
        ),
        (with_options("--target", "onnx-cuda"), ["the target was 'onnx-cpu', is now 'onnx-cuda'"]),
        (with_options("--quantiser", "lsq"), ["the quantiser was 'rtn', is now 'lsq'"]),
        (with_options("--pruner", "wanda"), ["the pruner was 'magnitude', is now 'wanda'"]),
        (with_options("--seed", 7), ["the seed was 0, is now 7"]),
        (with_options("--seed", 7, "--resume"), ["the seed was 0, is now 7"]),
    ],
)
def test_a_study_does_not_go_on_with_something_else(
    call: Call,
    begun: Path,
    tmp_path: Path,
    asked: Callable[[Path, Path], list[object]],
    differences: list[str],
) -> None:
    before, written = contents(begun / "store.db"), files(begun / "studies")
    ended = call(*asked(begun, tmp_path), "--trials", 9)
    assert ended.code == 2
    said = " ".join(ended.err.split())
    assert "study 'mine' was started differently: " in said
    for difference in differences:
        assert re.search(difference, said), said
    assert contents(begun / "store.db") == before
    assert files(begun / "studies") == written


def test_moving_everything_is_no_difference(call: Call, begun: Path, tmp_path: Path) -> None:
    shutil.copytree(begun, tmp_path / "moved")
    ended = call(*search(tmp_path / "moved", "--resume", "--trials", 3, "--json"))
    assert ended.code in (0, 1), ended.err
    assert [trial["index"] for trial in json.loads(ended.out)["trials"]] == [0, 1, 2]


@pytest.mark.parametrize(
    ("profile", "more", "message"),
    [
        (
            {"menu": 'formats = ["int2-g64"]'},
            ["--target", "onnx-cuda"],
            "target onnx-cuda has no kernel for any of int2-g64; the nearest formats that it has one for: int4-g64",
        ),
        (
            {"menu": "formats = []"},
            [],
            'search.formats: expected a list such as ["int4-g32", "fp16"], got []',
        ),
        (
            {"changes": [("min_steps = 32", "min_steps = 32\nmax_tokens = 20")]},
            [],
            "probes.max_tokens: expected at least min_steps + 2 = 34",
        ),
        ({"changes": [("coverage = 0.95", "coverage = 0.0")]}, [], "expected a share above 0"),
        ({"changes": [("relax = 0.2", "relax = 1.0")]}, [], "modes.relaxed.relax: expected less than 1"),
        ({"changes": [("avgpp = 95.0", "avgpp = 101.0")]}, [], "expected a number from 0 to 100, got 101.0"),
        ({}, ["--trials", 0], "--trials"),
        ({}, ["--seed", -1], "--seed"),
    ],
)
def test_a_search_over_nothing_does_not_begin(
    call: Call, begun: Path, tmp_path: Path, profile: dict[str, Any], more: list[object], message: str
) -> None:
    (tmp_path / "odd.toml").write_text(
        profile_text(*profile.get("changes", ()), menu=profile.get("menu", MENU))
    )
    options = ["--profile", tmp_path / "odd.toml", "--probes", PROBES]
    ended = call("search", begun / "model", *options, *more)
    assert ended.code == 2
    assert message in " ".join(ended.err.split())
    assert files(tmp_path / "cwd") == {}


DEMANDING = ("threshold = 0.25", "threshold = 0.00001")


def blocked_search(call: Call, begun: Path, here: Path, *changes: tuple[str, str]) -> dict[str, Any]:
    """What a search says that finds nothing feasible, all its trials being refuted early."""
    name = "x" * (1 + len(list(here.glob("*.toml"))))
    (here / f"{name}.toml").write_text(
        profile_text(("search = 2", "search = 9"), *changes, menu='formats = ["int8-g64"]')
    )
    options = ["--profile", here / f"{name}.toml", "--probes", PROBES, "--trials", 1, "--json"]
    ended = call("search", begun / "model", *options)
    assert ended.code in (0, 1), ended.err
    return dict(json.loads(ended.out))


def test_without_a_feasible_trial_the_blocking_property_and_what_would_help_are_named(
    call: Call, begun: Path, tmp_path: Path
) -> None:
    found = blocked_search(call, begun, tmp_path, DEMANDING)
    assert found["outcome"] == "FAIL"
    assert found["trials"][0]["refuted"]
    assert set(found["selected"].values()) == {None}
    said = re.fullmatch(
        r"no trial is feasible. mode optimal: coherence blocks; trial 0 comes nearest and misses it by (\S+); "
        r"the threshold of coherence weaker by (\S+) would make trial 0 feasible; or more --trials",
        found["reason"],
    )
    assert said is not None, found["reason"]
    assert said[1] == said[2], "one property of one trial blocks"
    enough = 0.00001 + float(said[2])
    helped = blocked_search(call, begun, tmp_path, ("threshold = 0.25", f"threshold = {enough:.9f}"))
    assert helped["selected"]["optimal"] is not None, "what is advised helps"
    short = blocked_search(call, begun, tmp_path, ("threshold = 0.25", f"threshold = {0.9 * enough:.9f}"))
    assert short["selected"]["optimal"] is None, "and is not more than it takes"


def test_where_no_single_change_would_help_all_that_it_takes_is_named(
    call: Call, begun: Path, tmp_path: Path
) -> None:
    strictest = dict.fromkeys(re.findall(r"properties\.(\w+)", PROFILE), 1.0) | {"coherence": 0.0}
    found = blocked_search(call, begun, tmp_path, *thresholds(strictest))
    assert re.search(r"; no single change of the contract would help: it takes ", found["reason"])
    weaker = {
        k: float(v) for k, v in re.findall(r"threshold of (\w+) weaker by ([0-9.e-]+)", found["reason"])
    }
    assert len(weaker) >= 2
    assert "AvgPP" not in found["reason"]
    enough = {name: strictest[name] + (by if name == "coherence" else -by) for name, by in weaker.items()}
    helped = blocked_search(call, begun, tmp_path, *thresholds({**strictest, **enough}))
    assert helped["selected"]["optimal"] is not None, "all of it together helps"
    for name in enough:
        but_one = {**strictest, **enough, name: strictest[name]}
        assert blocked_search(call, begun, tmp_path, *thresholds(but_one))["selected"]["optimal"] is None


def thresholds(by_property: dict[str, float]) -> list[tuple[str, str]]:
    """Changes of the profile's text."""
    found = {name: re.search(rf"\[properties\.{name}\]\n.*\nthreshold = .*", PROFILE) for name in by_property}
    return [
        (
            old[0],
            re.sub(r"threshold = \S+$|threshold = \S+ #.*$", f"threshold = {by_property[name]:.12f}", old[0]),
        )
        for name, old in found.items()
        if old is not None
    ]
