"""A search that may remove structure beside bits, the way an engineer types it: search, resume, export, check."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from toggle_edge import cli
from toggle_edge.bundle import read_bundle
from toggle_edge.config import Config
from toggle_edge.pipeline.inputs import demo_folder
from toggle_edge.profiles import builtin_profiles
from toggle_edge.search.trial import Trial
from toggle_edge.store import open_store

MODEL = demo_folder() / "model"
TRIALS, FIRST = 14, 10
# A contract that a model with a part of its structure can keep: what is looked at here is the way, not the result.
LOOSE = (
    builtin_profiles()["default"]
    .read_text()
    .replace("search = 59", "search = 3")
    .replace("certificate = 59", "certificate = 3")
    .replace("threshold = 0.25", "threshold = 0.95")
    .replace("threshold = 0.70", "threshold = 0.05")
    .replace("avgpp = 85.0", "avgpp = 40.0")
    .replace("coverage = 0.90", "coverage = 0.30")
    .replace("[search]\n", '[search]\nstructure = ["blocks", "kv_groups", "channels"]\nkeep = [0.5]\n')
)

pytestmark = pytest.mark.timeout(600)
Call = Callable[..., Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("structural")
    (folder / "loose.toml").write_text(LOOSE)
    return folder


@pytest.fixture
def call(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Run a command there, which must not be broken; gives the object, or the text, that it prints."""
    monkeypatch.chdir(folder)

    def run(*arguments: object, as_json: bool = True) -> Any:
        monkeypatch.setattr(
            sys, "argv", ["toggle-edge", *map(str, arguments), *(["--json"] if as_json else [])]
        )
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capfd.readouterr()
        assert ended.value.code in (0, 1, None), captured.err
        return json.loads(captured.out) if as_json else captured.out

    return run


def search(call: Call, study: str, trials: int, *more: str) -> dict[str, Any]:
    arguments = ("--profile", "loose.toml", "--study", study, "--trials", trials)
    return dict(call("search", MODEL, *arguments, *more))


def trials_of(study: str) -> Sequence[Trial]:
    with open_store() as store:
        return store.ledger(store.study(study).id).trials()


def test_formats_and_structure_are_searched_together_and_a_resumed_search_is_the_same(call: Call) -> None:
    search(call, "twice", FIRST)
    search(call, "twice", TRIALS, "--resume")
    search(call, "once", TRIALS)
    once = trials_of("once")
    assert trials_of("twice") == once
    structures = [trial.config.structure for trial in once]
    assert not any(structures[:4]), "uniform configs are whole"
    assert any(structures[:FIRST]), "the knapsack's configs know what structure saves"
    assert any(structures[FIRST:]), "so do proposals"
    assert any(each.removed_blocks for each in structures)
    assert any(each.channels or each.kv_groups for each in structures)


def test_what_a_mode_selects_is_checked_and_exported_without_that_structure(call: Call, folder: Path) -> None:
    found = search(call, "once", TRIALS)
    chosen = found["selected"]["relaxed"]
    config = Config.from_json(json.loads(Path(chosen["config_file"]).read_text()))
    assert config.structure
    arguments = ("--profile", "loose.toml", "--study", "once", "--trials", TRIALS)
    shown = " ".join(call("search", MODEL, *arguments, as_json=False).split())
    assert f"structure relaxed: {config.structure.summary()}" in shown
    checked = call(
        "check", MODEL, "--profile", "loose.toml", "--mode", "relaxed", "--config", chosen["config_file"]
    )
    assert checked["config_digest"] == chosen["config_digest"]
    assert checked["verdict"] == chosen["verdict"]
    assert checked["avgpp"] == pytest.approx(chosen["avgpp"])
    assert checked["proxy_flops_ratio"] == chosen["proxy_flops_ratio"]
    exported = call("export", "once", "--mode", "relaxed", "-o", "bundle")
    assert exported["config_digest"] == chosen["config_digest"]
    assert exported["parity"]["max_abs_logit_difference"] <= 1e-4
    shape = read_bundle(folder / "bundle").manifest.model
    assert shape.kept is not None
    removed = set(range(shape.layers)) - {each.block for each in shape.kept}
    assert removed == set(config.structure.removed_blocks)
