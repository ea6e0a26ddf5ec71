"""Near-duplicates: texts that share most of their runs of five words, found exactly through an inverted index.

Shingles and containment as in Broder, On the resemblance and containment of documents (1997), without its sampling:
a data set for probes is small enough to compare all of it.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict

__all__ = ["NEAR", "SHINGLE_WORDS", "NearTexts", "containment", "shingles"]

SHINGLE_WORDS = 5

NEAR = 0.5
"""Texts are near-duplicates from this containment on. With one word in fifteen changed two thirds of the
runs are left; passages of one book share a few per cent, questions of one form up to a third."""

_WORD = re.compile(r"[^\W_]+")
_WITHIN_WORD = re.compile(r"(?<=\w)['’](?=\w)")

Shingles = frozenset[tuple[str, ...]]


def shingles(text: str) -> Shingles:
    """The runs of five words, in one case and without punctuation; all words where there are fewer.

    A text without any word is its own single run.
    """
    words = _WORD.findall(_WITHIN_WORD.sub("", text.casefold()))
    runs = (tuple(words[start : start + SHINGLE_WORDS]) for start in range(len(words) - SHINGLE_WORDS + 1))
    return frozenset(runs) or frozenset({tuple(words) or (text,)})


def containment(first: Shingles, second: Shingles) -> float:
    """The share of the smaller set that is in the larger one, 0 to 1: added sentences do not hide a copy."""
    return len(first & second) / min(len(first), len(second))


class NearTexts:
    """Texts that grow in number, and whether another one is near any of them."""

    def __init__(self) -> None:
        self._sizes: list[int] = []
        self._having: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)

    def add(self, runs: Shingles) -> None:
        for run in runs:
            self._having[run].append(len(self._sizes))
        self._sizes.append(len(runs))

    def near(self, runs: Shingles) -> bool:
        """Whether `containment` with any text that was added is at least `NEAR`."""
        shared = Counter(index for run in runs for index in self._having.get(run, ()))
        return any(count >= NEAR * min(self._sizes[index], len(runs)) for index, count in shared.items())
