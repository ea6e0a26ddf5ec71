"""The kinds of data sets: how each is read, where its answer is, and what becomes of texts that do not fit."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from toggle_edge.errors import ProbeError
from toggle_edge.probes.files import check_file, lines_of, whole
from toggle_edge.probes.passages import Passage, given, passage, prompted

__all__ = ["READERS", "Enough", "Kind", "Overlong", "joined", "kind_of", "question", "wiki_paragraphs"]

Enough = Callable[[str], bool]
"""Whether a text has as many tokens as a probe should have."""

MAX_PARAGRAPH = 1 << 16
"""Characters after which a paragraph ends, blank line or not: more is never tokenised at once."""

PRIMER = (
    "Q: What is the capital of France, and on which river does the city lie?\n"
    "A: The capital of France is Paris, which lies on the river Seine.\n\n"
    "Q: How many legs does a spider have, and is it an insect?\n"
    "A: A spider has eight legs. It is an arachnid, not an insect.\n\n"
)
"""Read before each question of TruthfulQA: what form is asked for, and enough tokens for any tokenizer."""


class Overlong(Enum):
    """What becomes of a text that has more tokens than a probe may have."""

    CUT = "cut at a sentence's end"
    LEFT_OUT = "left out"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Kind:
    """How a kind of data set is read.

    `last_word`: the answer is the last word of what remains of the text. `capped`: a probe may have no more tokens
    than the profile says; otherwise the model's context alone bounds it.
    """

    read: Callable[[Path, Enough], Iterator[Passage]]
    overlong: Overlong
    last_word: bool = False
    capped: bool = True


def kind_of(path: Path) -> str:
    """What a file holds, told from its name and content. Raises ProbeError when neither says."""
    suffix = path.suffix.lower()
    if suffix == ".csv":
        _, header = next(_rows(path))
        return "truthfulqa" if "best answer" in header else "csv"
    if suffix == ".json":
        return "truthfulqa"
    if suffix == ".txt":
        return "wikitext" if any(_is_heading(line) for _, line in lines_of(path)) else "text"
    if suffix == ".jsonl":
        explicit = any("answer" in entry or "prompt" in entry for _, entry in _objects(path))
        return "jsonl" if explicit else "stories"
    check_file(path)  # one that is not there has no kind to be told either
    raise ProbeError(
        f"probes {path}: what it holds cannot be told from {suffix or 'a name without an ending'!r}; expected .csv, "
        f".json, .jsonl or .txt, or its kind before it: KIND:{path.name} with one of {', '.join(READERS)}"
    )


def question(asked: object, answer: object, place: str) -> Passage:
    """A question of TruthfulQA with its best answer, after the primer."""
    ask = passage(asked, place).text.strip()
    before = f"Q: {ask}\nA:"
    found = prompted(before, answer, place)
    return passage(found.text, place, found.answer, PRIMER)


def joined(paragraphs: Iterator[tuple[str, str | None]], enough: Enough, glue: str) -> Iterator[Passage]:
    """Passages of (place, paragraph), neighbours glued until there is enough; a paragraph None ends a passage."""
    place, text = "", ""
    for where, paragraph in paragraphs:
        if paragraph is not None:
            place, text = (place, text + glue + paragraph) if text else (where, paragraph)
        if text and (paragraph is None or enough(text)):
            yield passage(text, place)
            text = ""
    if text:
        yield passage(text, place)


def _texts(path: Path, enough: Enough) -> Iterator[Passage]:
    for place, entry in _objects(path):
        if "text" not in entry:
            raise ProbeError(f'{place}: expected {{"text": ...}}, got the keys {_named(entry)}')
        yield passage(entry["text"], place)


def _explicit(path: Path, enough: Enough) -> Iterator[Passage]:
    for place, entry in _objects(path):
        if "text" in entry:
            yield given(entry["text"], entry.get("answer"), place)
        elif "prompt" in entry and "answer" in entry:
            yield prompted(entry["prompt"], entry["answer"], place)
        else:
            raise ProbeError(
                f'{place}: expected {{"text": ..., "answer": ...}} or {{"prompt": ..., "answer": ...}}, '
                f"got the keys {_named(entry)}"
            )


def _table(path: Path, enough: Enough) -> Iterator[Passage]:
    rows = _rows(path)
    place, header = next(rows)
    if "text" in header:
        for place, row in rows:
            yield given(row["text"], row.get("answer") or None, place)
    elif "prompt" in header and "answer" in header:
        for place, row in rows:
            yield prompted(row["prompt"], row["answer"], place)
    else:
        raise ProbeError(
            f"{place}: expected columns text and answer, or prompt and answer, got {_named(header)}; rename them"
        )


def _truthfulqa(path: Path, enough: Enough) -> Iterator[Passage]:
    if path.suffix.lower() == ".json":
        yield from _multiple_choice(path)
        return
    rows = _rows(path)
    place, header = next(rows)
    if not {"question", "best answer"} <= header.keys():
        raise ProbeError(f"{place}: expected columns Question and Best Answer, got {_named(header)}")
    for place, row in rows:
        yield question(row["question"], row["best answer"], place)


def _multiple_choice(path: Path) -> Iterator[Passage]:
    entries = _json(whole(path), f"probes {path}")
    if not isinstance(entries, list) or not entries:
        raise ProbeError(f"probes {path}: expected a list of questions, as in mc_task.json")
    for index, entry in enumerate(entries):
        place = f"{path}: question {index + 1}"
        targets = entry.get("mc1_targets") if isinstance(entry, dict) else None
        if not isinstance(targets, dict) or "question" not in entry:
            raise ProbeError(f'{place}: expected {{"question": ..., "mc1_targets": {{answer: 0 or 1}}}}')
        right = [answer for answer, mark in targets.items() if mark == 1]
        if len(right) != 1:
            raise ProbeError(f"{place}: expected one of mc1_targets to be marked 1, got {len(right)}")
        yield question(entry["question"], right[0], place)


def _plain(path: Path, enough: Enough) -> Iterator[Passage]:
    return joined(_paragraphs(path), enough, "\n\n")


def _paragraphs(path: Path) -> Iterator[tuple[str, str | None]]:
    lines: list[str] = []
    start, size = 1, 0
    for number, line in lines_of(path):
        if line.strip():
            start, size = (start if lines else number), size + len(line)
            lines.append(line.strip())
        if lines and (not line.strip() or size > MAX_PARAGRAPH):
            yield f"{path}:{start}", " ".join(lines)
            lines, size = [], 0
    if lines:
        yield f"{path}:{start}", " ".join(lines)


def _wikitext(path: Path, enough: Enough) -> Iterator[Passage]:
    numbered = ((f"{path}:{number}", line) for number, line in lines_of(path))
    return joined(wiki_paragraphs(numbered), enough, "\n")


def wiki_paragraphs(lines: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str | None]]:
    """The paragraphs of tokenised articles; None at each article's title, so that none are joined across it."""
    for place, line in lines:
        if _is_heading(line):
            if not line.strip().startswith("= ="):
                yield place, None
        elif line.strip():
            yield place, line.strip()


def _is_heading(line: str) -> bool:
    text = line.strip()
    return text.startswith("= ") and text.endswith(" =") and len(text) > 4


def _objects(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    for number, line in lines_of(path):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        entry = _json(line, place)
        if not isinstance(entry, dict):
            raise ProbeError(f'{place}: expected {{"text": ...}}, got {line.strip()[:60]!r}')
        yield place, entry


def _json(text: str, place: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as exc:
        reason = "nested too deeply" if isinstance(exc, RecursionError) else str(exc)
        raise ProbeError(f"{place}: expected JSON, got {text.strip()[:60]!r}: {reason}") from exc


def _rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The header as a row (name to name as written), then each row by column; names are lower-cased and stripped."""
    # Strict: a quote that is never closed would otherwise swallow the rest of the file without a word.
    reader = csv.reader((line + "\n" for _, line in lines_of(path)), strict=True)
    header: list[str] = []
    following = f"{path}:1"
    try:
        for cells in reader:
            # A row may take several lines; its first one is where people look.
            place, following = following, f"{path}:{reader.line_num + 1}"
            if not cells:
                continue
            if not header:
                header = [cell.strip().lower() for cell in cells]
                if len(set(header)) < len(header):
                    raise ProbeError(f"{place}: expected each column once, got {', '.join(cells)}")
                yield place, dict(zip(header, cells, strict=True))
            elif len(cells) != len(header):
                raise ProbeError(
                    f"{place}: expected {len(header)} columns ({', '.join(header)}), got {len(cells)}; "
                    "quote texts that have commas"
                )
            else:
                yield place, dict(zip(header, cells, strict=True))
    except csv.Error as exc:
        raise ProbeError(f"{following}: expected CSV: {exc}") from exc
    if not header:
        raise ProbeError(f"probes {path}: expected a header line with the names of columns, got blank lines")


def _named(names: Mapping[str, object]) -> str:
    return ", ".join(repr(name) for name in list(names)[:10]) or "none"


READERS: Mapping[str, Kind] = {
    "csv": Kind(_table, Overlong.REFUSED, capped=False),
    "jsonl": Kind(_explicit, Overlong.REFUSED, capped=False),
    "lambada": Kind(_texts, Overlong.LEFT_OUT, last_word=True),
    "stories": Kind(_texts, Overlong.CUT, last_word=True),
    "text": Kind(_plain, Overlong.CUT),
    "truthfulqa": Kind(_truthfulqa, Overlong.LEFT_OUT, capped=False),
    "wikitext": Kind(_wikitext, Overlong.CUT),
}
"""Every kind's reader, by the names in `sources.KINDS`."""
