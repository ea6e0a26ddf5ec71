"""Sources: what `[KIND:]PATH` means, and what is refused before anything is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from toggle_edge.errors import ProbeError
from toggle_edge.probes.kinds import READERS
from toggle_edge.sources import HUB, KINDS, ProbeSource


def test_every_kind_that_can_be_written_can_be_read() -> None:
    assert set(KINDS) == set(READERS)
    assert HUB not in KINDS


@pytest.mark.parametrize(
    ("text", "kind", "name"),
    [
        ("stories.jsonl", None, "stories.jsonl"),
        ("lambada:a/b.jsonl", "lambada", "a/b.jsonl"),
        ("text:/a:b.txt", "text", "/a:b.txt"),
        ("./odd:name.jsonl", None, "odd:name.jsonl"),
        ("a/odd:name.jsonl", None, "a/odd:name.jsonl"),
        ("C:probes.jsonl", None, "C:probes.jsonl"),
        ("hub:owner/name#config/split", "hub", "owner/name#config/split"),
    ],
)
def test_a_kind_precedes_the_first_colon(text: str, kind: str | None, name: str) -> None:
    source = ProbeSource.parse(text)
    assert (source.kind, source.name) == (kind, name)
    assert ProbeSource.parse(str(source.absolute)) == source.absolute


def test_a_file_that_is_there_is_a_path_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "odd:name.jsonl").write_text("{}")
    assert ProbeSource.parse("odd:name.jsonl", tmp_path) == ProbeSource(
        None, str(tmp_path / "odd:name.jsonl")
    )


def test_relative_paths_start_in_the_folder_and_names_of_data_sets_do_not(tmp_path: Path) -> None:
    assert ProbeSource.parse("csv:a.csv", tmp_path).name == str(tmp_path / "a.csv")
    assert ProbeSource.parse("csv:/a.csv", tmp_path).name == "/a.csv"
    assert ProbeSource.parse("hub:a", tmp_path).absolute.name == "a"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lambda:a.jsonl", "unknown kind 'lambda'.*did you mean 'lambada'"),
        ("x" * 5000 + ":a", "unknown kind"),
        (":a.jsonl", "unknown kind ''"),
        ("lambada:", "expected a path after it, got nothing"),
        ("hub: ", "expected a path after it"),
        ("", "expected a path after it"),
    ],
)
def test_what_names_nothing_is_refused(text: str, message: str) -> None:
    with pytest.raises(ProbeError, match=message):
        ProbeSource.parse(text)
