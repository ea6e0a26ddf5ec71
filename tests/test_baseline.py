"""The baseline on disk: computed once, mapped, and never trusted when it is not what was written."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from toggle_runtime.records import ModeSpecification
from toggle_runtime.signals import Outputs

from toggle_edge import baseline as stored
from toggle_edge.baseline import stored_baseline
from toggle_edge.cache import baselines_bytes, locked, trim
from toggle_edge.compress.bank import LayerBank
from toggle_edge.config import Config, Format
from toggle_edge.errors import ConfigError
from toggle_edge.evaluate import Evaluator
from toggle_edge.model.load import LanguageModel, load_model
from toggle_edge.probes import Probe
from toggle_edge.signals import baseline_outputs

SPECIFICATION = {"optimal": ModeSpecification({"coherence": "always (jsd <= 0.25)"}, 0.95, 95.0)}


@contextmanager
def counted(module: torch.nn.Module) -> Iterator[list[int]]:
    """How often the model was run within."""
    passes: list[int] = []
    hook = module.register_forward_pre_hook(lambda *_: passes.append(1))
    yield passes
    hook.remove()


def assert_same(first: list[Outputs], second: list[Outputs]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        for field in dataclasses.fields(Outputs):
            np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


@pytest.mark.parametrize("free_running", [False, True])
def test_what_is_kept_is_what_was_computed(
    tiny: LanguageModel, probes: tuple[Probe, ...], tmp_path: Path, free_running: bool
) -> None:
    expected = baseline_outputs(tiny.module, probes, free_running=free_running)
    first = stored_baseline(tiny, probes, tmp_path, free_running=free_running)
    with counted(tiny.module) as passes:
        again = stored_baseline(tiny, probes, tmp_path, free_running=free_running)
    assert not passes
    assert_same(first, expected)
    assert_same(again, expected)
    assert len(files(tmp_path)) == len(probes)


def test_a_second_search_starts_without_a_forward_pass(
    tiny: LanguageModel, probes: tuple[Probe, ...], tmp_path: Path
) -> None:
    config = Config.uniform(tuple(layer.name for layer in tiny.layers), Format(4, 32))
    first = Evaluator(tiny, LayerBank(tiny), probes, SPECIFICATION, folder=tmp_path).evaluate(config)
    model = load_model(tiny.folder)
    with counted(model.module) as passes:
        second = Evaluator(model, LayerBank(model), probes, SPECIFICATION, folder=tmp_path)
    assert not passes
    assert second.evaluate(config) == first


def test_outputs_are_mapped_and_writing_to_one_changes_no_file(
    tiny: LanguageModel, probes: tuple[Probe, ...], tmp_path: Path
) -> None:
    outputs = stored_baseline(tiny, probes, tmp_path)
    maps = Path("/proc/self/maps").read_text()
    assert all(path.name in maps for path in files(tmp_path))
    before = [path.read_bytes() for path in files(tmp_path)]
    outputs[0].logits[:] = 0.0
    assert [path.read_bytes() for path in files(tmp_path)] == before


def test_other_probes_another_prompt_or_the_greedy_text_are_another_entry(
    tiny: LanguageModel, probes: tuple[Probe, ...], tmp_path: Path
) -> None:
    stored_baseline(tiny, probes, tmp_path)
    moved = dataclasses.replace(probes[0], prompt_tokens=probes[0].prompt_tokens + 1, answer_steps=())
    for others, free_running in (
        (probes[1:], False),
        ((moved, *probes[1:]), False),
        (probes[::-1], False),
        (probes, True),
    ):
        with counted(tiny.module) as passes:
            stored_baseline(tiny, others, tmp_path, free_running=free_running)
        assert passes
    other = dataclasses.replace(tiny, digest="0" * 64)
    with counted(tiny.module) as passes:
        stored_baseline(other, probes, tmp_path)
    assert passes


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "a flipped bit": lambda path: flip(path),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "empty": lambda path: path.write_bytes(b""),
    "deleted": lambda path: path.unlink(),
    "no index": lambda path: (path.parent / "index.json").unlink(),
    "an index of something else": lambda path: (path.parent / "index.json").write_text('{"files": 3}'),
    "an index that is no JSON": lambda path: (path.parent / "index.json").write_text("{"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_computed_again_and_replaced(
    tiny: LanguageModel, probes: tuple[Probe, ...], tmp_path: Path, damage: str
) -> None:
    expected = baseline_outputs(tiny.module, probes)
    stored_baseline(tiny, probes, tmp_path)
    DAMAGE[damage](files(tmp_path)[1])
    with counted(tiny.module) as passes:
        assert_same(stored_baseline(tiny, probes, tmp_path), expected)
        assert passes
        passes.clear()
        assert_same(stored_baseline(tiny, probes, tmp_path), expected)
        assert not passes


def test_what_a_killed_process_left_is_in_nobodys_way(
    tiny: LanguageModel, probes: tuple[Probe, ...], tmp_path: Path
) -> None:
    expected = stored_baseline(tiny, probes, tmp_path)
    place = files(tmp_path)[0].parent
    partial = place.with_name(place.name + ".partial")
    place.rename(partial)
    (partial / "index.json").unlink()
    (partial / "99999.safetensors").write_bytes(b"half")
    assert_same(stored_baseline(tiny, probes, tmp_path), expected)
    assert not partial.exists()
    assert len(files(tmp_path)) == len(probes)


def test_a_folder_that_cannot_be_written_costs_the_keeping_only(
    tiny: LanguageModel, probes: tuple[Probe, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = baseline_outputs(tiny.module, probes)
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert_same(stored_baseline(tiny, probes, blocked), expected)
    write = stored._written

    def full(path: Path, outputs: Outputs) -> tuple[int, str]:
        if path.name.startswith("00003"):
            raise OSError(28, "No space left on device")
        return write(path, outputs)

    monkeypatch.setattr(stored, "_written", full)
    assert_same(stored_baseline(tiny, probes, tmp_path / "full"), expected)
    assert not files(tmp_path / "full")


def _ask(folder: Path, cache: Path, probes: tuple[Probe, ...], results: object) -> None:
    torch.set_num_threads(1)
    model = load_model(folder)
    with counted(model.module) as passes:
        outputs = stored_baseline(model, probes, cache)
    results.put((len(passes), [each.logits.sum().item() for each in outputs]))  # type: ignore[attr-defined]


def test_of_two_processes_one_computes(tiny_folder: Path, probes: tuple[Probe, ...], tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=_ask, args=(tiny_folder, tmp_path, probes, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    (first, sums), (second, others) = (results.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join()
    assert sums == others
    assert sorted((first > 0, second > 0)) == [False, True]


def entry(folder: Path, name: str, size: int, used: int) -> Path:
    place = folder / name[:2] / name
    place.mkdir(parents=True)
    (place / "data").write_bytes(bytes(size))
    (place / "index.json").write_text("")
    os.utime(place / "index.json", (used, used))
    return place


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    places = {name: entry(tmp_path, name, 1000, used) for name, used in (("aa1", 3), ("aa2", 1), ("bb1", 2))}
    trim(tmp_path, 3000)
    assert all(place.exists() for place in places.values())
    trim(tmp_path, 2000)
    assert [name for name, place in places.items() if place.exists()] == ["aa1", "bb1"]
    trim(tmp_path, 1)
    assert not any(place.exists() for place in places.values())


def test_what_another_process_is_making_stays_and_what_a_dead_one_left_goes(tmp_path: Path) -> None:
    places = [tmp_path / prefix / f"{prefix}1.partial" for prefix in ("aa", "bb")]
    for place in places:
        place.mkdir(parents=True)
    with locked(tmp_path / "aa" / "lock"):
        trim(tmp_path, 1)
    assert [place.exists() for place in places] == [True, False]


def test_the_bound_is_kept_and_zero_keeps_nothing(
    tiny: LanguageModel, probes: tuple[Probe, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOGGLE_EDGE_BASELINES_GB", "0")
    stored_baseline(tiny, probes, tmp_path)
    assert not files(tmp_path)
    monkeypatch.delenv("TOGGLE_EDGE_BASELINES_GB")
    stored_baseline(tiny, probes, tmp_path)
    used = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    monkeypatch.setenv("TOGGLE_EDGE_BASELINES_GB", str(used * 1.2 / 1e9))
    stored_baseline(tiny, probes[1:], tmp_path)
    assert len(files(tmp_path)) == len(probes) - 1
    # One larger than all that may be kept is used, and not kept.
    monkeypatch.setenv("TOGGLE_EDGE_BASELINES_GB", "0.000001")
    assert_same(stored_baseline(tiny, probes, tmp_path), baseline_outputs(tiny.module, probes))
    assert not files(tmp_path)


@pytest.mark.parametrize("text", ["much", "-1", "nan", "inf"])
def test_a_bound_that_is_no_number_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOGGLE_EDGE_BASELINES_GB", text)
    with pytest.raises(ConfigError, match="TOGGLE_EDGE_BASELINES_GB"):
        baselines_bytes()
