"""Passages: a data set's texts with the characters of their answers, before any tokenizer has seen them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from toggle_edge.errors import ProbeError

__all__ = ["Passage", "given", "last_word", "passage", "prompted", "sentence_ends"]

Span = tuple[int, int]

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
# Not after one capital letter or a common title: `H. americanus`, `Mr. Brown`. Possessive, and begun only where a run
# of marks begins: a megabyte of dots takes no longer than a megabyte of words.
_SENTENCE_END = re.compile(
    r"(?<![.!?])(?<!\b[A-Z])(?<!\bMr)(?<!\bDr)(?<!\bSt)(?<!\bMrs)[.!?]++[\"'”’)\]]*+(?=\s|\Z)"
)


@dataclass(frozen=True, slots=True)
class Passage:
    """A text, the characters `[start, end)` of its answer or None, and the file and line it comes from.

    `primer` is read before the text but is no part of what sets the passage apart.
    """

    text: str
    answer: Span | None
    place: str
    primer: str = ""


def passage(text: object, place: str, answer: Span | None = None, primer: str = "") -> Passage:
    """A passage of a text that was checked. Raises ProbeError for what is not text, or holds what no text does."""
    return Passage(_text(text, "text", place), answer, place, primer)


def given(text: object, answer: object, place: str) -> Passage:
    """A text and its answer, which is the last occurrence of those words; None: there is none."""
    whole = _text(text, "text", place)
    if answer is None:
        return Passage(whole, None, place)
    words = _text(answer, "answer", place)
    start = whole.rfind(words)
    if start < 0:
        raise ProbeError(f"{place}: answer {words[:60]!r} is not in the text; write it as the text has it")
    return Passage(whole, (start, start + len(words)), place)


def prompted(prompt: object, answer: object, place: str) -> Passage:
    """A prompt and the answer that follows it, with a space between where neither brings one."""
    before, after = _text(prompt, "prompt", place), _text(answer, "answer", place)
    if not before[-1].isspace() and not after[0].isspace():
        before += " "
    start = len(before) + len(after) - len(after.lstrip())
    return Passage(before + after, (start, len(before) + len(after.rstrip())), place)


def last_word(text: str) -> Span | None:
    """Where the last word is, without the punctuation around it; None where there is no word."""
    words = list(_WORD.finditer(text))
    return words[-1].span() if words else None


def sentence_ends(text: str) -> list[int]:
    """Where sentences end, closing quotes and brackets included."""
    return [match.end() for match in _SENTENCE_END.finditer(text)]


def _text(value: object, name: str, place: str) -> str:
    if not isinstance(value, str):
        raise ProbeError(f"{place}: expected {name} to be a string, got {type(value).__name__}")
    if not value.strip():
        raise ProbeError(f"{place}: expected {name} to have words, got an empty one")
    if "\0" in value:
        raise ProbeError(f"{place}: {name} has a NUL character; remove it")
    try:
        value.encode()
    except UnicodeEncodeError as exc:
        raise ProbeError(
            f"{place}: {name} has half of a surrogate pair ({value[exc.start]!a}), which no UTF-8 text has; "
            "write the whole character"
        ) from exc
    return value
