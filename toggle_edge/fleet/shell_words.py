"""Command lines that every login shell reads alike: sh, bash, zsh, fish, csh and tcsh.

sshd hands a command to the user's login shell as one text, and `shlex.join` writes for POSIX shells only: fish takes a
backslash in single quotes for an escape, and csh looks for its history there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_PLAIN = re.compile(r"[A-Za-z0-9_./:,-][A-Za-z0-9_./:,=+@-]*")
_SPECIAL = re.compile(r"['\\!]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def joined(words: Sequence[str]) -> str:
    """The command line that runs `words` as they are. Raises ValueError for control characters, which no spelling
    brings through all of those shells."""
    return " ".join(map(_quoted, words))


def _quoted(word: str) -> str:
    if _CONTROL.search(word):
        raise ValueError(f"expected words without control characters, got {word!r}")
    if _PLAIN.fullmatch(word):
        return word
    # What some shell obeys even in single quotes stands outside of them, where a backslash means the same to all.
    quoted = [f"'{each}'" if each else "" for each in _SPECIAL.split(word)]
    special = [f"\\{each}" for each in _SPECIAL.findall(word)]
    return "".join(a + b for a, b in zip(quoted, [*special, ""], strict=True)) or "''"
