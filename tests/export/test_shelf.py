"""What is kept of candidates that passed: found again only as it was put, and only for the same candidate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from toggle_edge.cache import INDEX
from toggle_edge.export import shelf
from toggle_edge.export.executorch import exporting
from toggle_edge.export.executorch.exporting import job_key
from toggle_edge.export.shelf import key_of, put, taken

FILES = {"result.json": b"{}", "artifact/model.pte": b"program", "artifact/weights/a.b.ptd": b"weights"}


@pytest.fixture
def job(tmp_path: Path) -> Path:
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "job.json").write_text("{}")
    (folder / "layers.safetensors").write_bytes(b"codes")
    return folder


@pytest.fixture
def kept(tmp_path: Path, job: Path) -> tuple[Path, str]:
    made = tmp_path / "made"
    for name, content in FILES.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_bytes(content)
    key = job_key(job)
    put(tmp_path / "shelf", key, made, list(FILES))
    return tmp_path / "shelf", key


def test_what_was_put_comes_back(kept: tuple[Path, str], tmp_path: Path) -> None:
    assert taken(*kept, tmp_path / "again")
    assert {name: (tmp_path / "again" / name).read_bytes() for name in FILES} == FILES
    assert not taken(kept[0], "0" * 64, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_another_job_or_another_version_has_another_key(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = job_key(job)
    assert job_key(job) == first
    (job / "layers.safetensors").write_bytes(b"other")
    second = job_key(job)
    monkeypatch.setattr(exporting, "PINS", ("executorch==9",))
    assert len({first, second, job_key(job)}) == 3


def test_a_key_tells_words_names_and_contents_apart(tmp_path: Path) -> None:
    (one := tmp_path / "one").write_text("1")
    (two := tmp_path / "two").write_text("2")
    asked: list[tuple[list[str], dict[str, Path]]] = [
        ([], {}),
        (["ab"], {}),
        (["a", "b"], {}),
        ([], {"ab": one}),
        ([], {"ab": two}),
        ([], {"b": one}),
        (["ab"], {"ab": one}),
        ([], {"a": one, "b": two}),
        ([], {"a": two, "b": one}),
    ]
    assert len({key_of(*each) for each in asked}) == len(asked)
    assert key_of([], {"a": one, "b": two}) == key_of([], {"b": two, "a": one})


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [cut, Path.unlink, lambda path: path.write_bytes(b"other")])
def test_a_damaged_entry_is_no_entry_and_goes(
    damage: Callable[[Path], object], kept: tuple[Path, str], tmp_path: Path
) -> None:
    folder, key = kept
    for number, each in enumerate(sorted((folder / key[:2] / key).iterdir())):
        before = each.read_bytes()
        damage(each)
        assert not taken(folder, key, tmp_path / str(number)), each.name
        if each.name == INDEX or not each.exists():
            break
        put(folder, key, tmp_path / "made", list(FILES))
        assert before


def test_nothing_is_kept_where_nothing_can_be_written(tmp_path: Path, job: Path) -> None:
    (tmp_path / "shelf").write_text("a file")
    put(tmp_path / "shelf", job_key(job), tmp_path, ["job/job.json"])
    assert (tmp_path / "shelf").read_text() == "a file"


def test_those_used_longest_ago_go_first(
    kept: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelf, "MOST_BYTES", 1)
    put(kept[0], "ab" * 32, tmp_path / "made", list(FILES))
    assert not taken(*kept, tmp_path / "again")
