"""Tables of a file that people write, read strictly: errors name the file, the key, what was expected and what came."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from toggle_edge.errors import ProfileError


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean '…'?` for the closest known word, empty when none is close."""
    matches = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def one_of(words: Iterable[str]) -> str:
    """`one of a, b, c`, for errors."""
    return "one of " + ", ".join(words)


@dataclass(frozen=True, slots=True)
class Table:
    """One TOML table and the place it came from. Its methods raise ProfileError for what is not as they expect it."""

    path: Path
    key: str
    data: Mapping[str, object]

    def error(self, key: str, message: str) -> ProfileError:
        return ProfileError(f"{self.path}: {'.'.join(part for part in (self.key, key) if part)}: {message}")

    def only(self, known: Iterable[str]) -> None:
        for key in self.data:
            if key not in known:
                raise self.error(key, f"unknown key; expected {one_of(known)}{nearest(key, known)}")

    def value(self, key: str) -> object:
        if key not in self.data:
            raise self.error(key, f"missing{nearest(key, self.data)}")
        return self.data[key]

    def table(self, key: str) -> Table:
        value = self.value(key)
        inner = f"{self.key}.{key}" if self.key else key
        if not isinstance(value, dict):
            raise self.error(key, f"expected a table [{inner}], got {value!r}")
        return Table(self.path, inner, value)

    def text(self, key: str) -> str:
        value = self.value(key)
        if not isinstance(value, str):
            raise self.error(key, f"expected text, got {value!r}")
        return value

    def number(self, key: str, least: float, most: float) -> float:
        value = self.value(key)
        # TOML has booleans, nan and inf; none of them is a threshold, and bool is an int to Python.
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(key, f"expected a finite number, got {value!r}")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self.error(key, f"expected a finite number, got {str(value)[:20]}")
        if not least <= number <= most:
            raise self.error(key, f"expected a number from {least:g} to {most:g}, got {value!r}")
        return number

    def count(self, key: str, least: int = 1) -> int:
        value = self.value(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.error(key, f"expected a whole number >= {least}, got {value!r}")
        return value
