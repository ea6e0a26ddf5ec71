"""Data sets by name: through a module put in place of `datasets`, and through the real one where it is installed."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from toggle_edge.errors import ProbeError
from toggle_edge.probes import hub
from toggle_edge.probes.hub import open_hub
from toggle_edge.probes.kinds import PRIMER
from toggle_edge.probes.passages import Passage

Rows = list[dict[str, Any]]


class Hub:
    """What `datasets` would load: rows by name, config and split."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: dict[tuple[str, str | None, str], Rows] = {}
        module = ModuleType("datasets")
        module.get_dataset_split_names = self.splits  # type: ignore[attr-defined]
        module.load_dataset = self.load  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "datasets", module)

    def splits(self, name: str, config: str | None = None) -> list[str]:
        return [split for known, of, split in self.rows if (known, of) == (name, config)]

    def load(self, name: str, config: str | None = None, *, split: str) -> Rows:
        if (name, config, split) not in self.rows:
            raise FileNotFoundError(f"no {name}\nwith a second line")
        return self.rows[name, config, split]


@pytest.fixture
def datasets(monkeypatch: pytest.MonkeyPatch) -> Hub:
    return Hub(monkeypatch)


def read(name: str) -> tuple[str, list[Passage]]:
    kind, passages = open_hub(name, lambda text: len(text) > 8)
    return kind, list(passages)


@pytest.mark.parametrize(
    ("name", "rows", "kind", "text", "answer"),
    [
        ("a/qa", [{"question": "Why?", "best_answer": "So."}], "truthfulqa", "Q: Why?\nA: So.", "So."),
        ("a/b", [{"prompt": "go", "answer": "on"}], "jsonl", "go on", "on"),
        ("a/b", [{"text": "go on", "answer": "on"}], "jsonl", "go on", "on"),
        ("a/LAMBADA_openai", [{"text": "go on"}], "lambada", "go on", None),
        ("a/b", [{"story": "go on", "id": 3}], "stories", "go on", None),
        (
            "a/wikitext",
            [{"text": " = T = "}, {"text": ""}, {"text": " one two . "}],
            "wikitext",
            "one two .",
            None,
        ),
    ],
)
def test_columns_say_what_a_data_set_is_like(
    datasets: Hub, name: str, rows: Rows, kind: str, text: str, answer: str | None
) -> None:
    datasets.rows[name, None, "test"] = rows
    found, (passage,) = read(name)
    assert (found, passage.text) == (kind, text)
    assert (passage.answer and text[slice(*passage.answer)]) == answer
    assert passage.primer == (PRIMER if kind == "truthfulqa" else "")
    assert passage.place.startswith(f"hub:{name}#/test row ")


def test_a_config_and_a_split_may_be_named(datasets: Hub) -> None:
    for config in (None, "c"):
        for split in ("train", "validation"):
            datasets.rows["a", config, split] = [{"text": f"{config} {split}"}]
    datasets.rows["odd", None, "all"] = [{"text": "odd"}]
    texts = {name: read(name)[1][0].text for name in ("a", "a#c", "a#c/train", "a#/train", "odd")}
    assert list(texts.values()) == ["None validation", "c validation", "c train", "None train", "odd"]


def test_the_first_rows_are_read(datasets: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "MAX_ROWS", 3)
    datasets.rows["a", None, "test"] = [{"text": f"row {index}"} for index in range(5)]
    assert [one.text for one in read("a")[1]] == ["row 0", "row 1", "row 2"]


def test_what_cannot_be_loaded_says_how_to_go_on(datasets: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets.rows["empty", None, "test"] = []
    datasets.rows["odd", None, "test"] = [{"image": 1, "label": 2}]
    datasets.rows["null", None, "test"] = [{"text": None}]
    with pytest.raises(
        ProbeError, match=r"hub:a: cannot be loaded: FileNotFoundError: no a; expected hub:NAME"
    ):
        read("a#/test")
    with pytest.raises(ProbeError, match="hub:gone: cannot be loaded"):
        read("gone")
    with pytest.raises(ProbeError, match="hub:empty#/test: expected rows, got none"):
        read("empty")
    with pytest.raises(ProbeError, match=r"or one of text, .*got image, label"):
        read("odd")
    with pytest.raises(ProbeError, match="row 1: expected text to be a string, got NoneType"):
        read("null")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ProbeError, match="not installed; run `pip install datasets`, or download"):
        read("a")


@pytest.mark.skipif(
    importlib.util.find_spec("datasets") is None, reason="the library datasets is not installed"
)
@pytest.mark.filterwarnings("ignore")
def test_the_real_library_loads_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "stories").mkdir()
    lines = [json.dumps({"text": f"Story {index}."}) for index in range(4)]
    (tmp_path / "stories" / "train.jsonl").write_text("\n".join(lines))
    kind, found = read(f"{tmp_path / 'stories'}")
    assert (kind, [one.text for one in found]) == ("stories", [f"Story {index}." for index in range(4)])
