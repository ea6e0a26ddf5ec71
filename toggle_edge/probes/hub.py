"""Data sets by name, through the `datasets` library where it is installed."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from toggle_edge.errors import ProbeError
from toggle_edge.probes.kinds import Enough, joined, question, wiki_paragraphs
from toggle_edge.probes.passages import Passage, given, passage, prompted

__all__ = ["MAX_ROWS", "open_hub"]

MAX_ROWS = 20_000
"""Of a data set the first rows are read, in its own order: hundreds of probes are drawn, not millions."""

_SPLITS = ("test", "validation", "train")
"""In order of preference where none is named: what a model has not been trained on comes first."""
_TEXT_COLUMNS = ("text", "story", "passage", "content")


def open_hub(name: str, enough: Enough) -> tuple[str, Iterator[Passage]]:
    """The kind that a data set `NAME[#CONFIG/SPLIT]` is like, and its passages.

    Raises ProbeError when `datasets` is not installed, cannot load it, or its columns are none that we know.
    """
    title, _, part = name.partition("#")
    config, slash, split = part.rpartition("/")
    if part and not slash:
        config, split = part, ""
    rows, split = _rows(title, config or None, split)
    place = f"hub:{title}#{config}/{split}" if config else f"hub:{title}#/{split}"
    numbered = ((f"{place} row {index + 1}", row) for index, row in enumerate(islice(rows, MAX_ROWS)))
    first = next(numbered, None)
    if first is None:
        raise ProbeError(f"{place}: expected rows, got none; name another split")
    return _passages(title, place, _again(first, numbered), enough, columns=first[1])


def _rows(title: str, config: str | None, split: str) -> tuple[Iterable[Any], str]:
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as exc:
        raise ProbeError(
            f"probes hub:{title}: expected the library datasets, which is not installed; run `pip install datasets`, "
            "or download the data set and pass its file with --probes"
        ) from exc
    try:
        if not split:
            known = datasets.get_dataset_split_names(title, config)
            split = next((name for name in _SPLITS if name in known), known[0])
        return datasets.load_dataset(title, config, split=split), split
    except Exception as exc:  # it raises its own errors, those of HTTP, and for an odd data set any
        reason = next((line for line in str(exc).splitlines() if line.strip()), "no message")
        raise ProbeError(
            f"probes hub:{title}: cannot be loaded: {type(exc).__name__}: {reason}; expected "
            "hub:NAME#CONFIG/SPLIT of a data set that is there or was downloaded before, or pass a file with --probes"
        ) from exc


def _again(first: tuple[str, Any], rest: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    yield first
    yield from rest


def _passages(
    title: str, place: str, rows: Iterator[tuple[str, Any]], enough: Enough, *, columns: Mapping[str, object]
) -> tuple[str, Iterator[Passage]]:
    if {"question", "best_answer"} <= columns.keys():
        return "truthfulqa", (question(row["question"], row["best_answer"], where) for where, row in rows)
    if {"prompt", "answer"} <= columns.keys():
        return "jsonl", (prompted(row["prompt"], row["answer"], where) for where, row in rows)
    text = next((name for name in _TEXT_COLUMNS if name in columns), None)
    if text is None:
        raise ProbeError(
            f"{place}: expected columns question and best_answer, prompt and answer, or one of "
            f"{', '.join(_TEXT_COLUMNS)}, got {', '.join(columns)}; save it as JSON lines and pass the file"
        )
    if "answer" in columns:
        return "jsonl", (given(row[text], row["answer"], where) for where, row in rows)
    if "wikitext" in title.lower():
        lines = ((where, str(row[text])) for where, row in rows)
        return "wikitext", joined(wiki_paragraphs(lines), enough, "\n")
    kind = "lambada" if "lambada" in title.lower() else "stories"
    return kind, (passage(row[text], where) for where, row in rows)
