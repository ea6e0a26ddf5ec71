"""Where probes come from, as people write it: `[KIND:]PATH` or `hub:NAME[#CONFIG/SPLIT]`. Pure text, nothing is read.

`probes` reads what a source names; profiles list sources too, and refuse a wrong one before anything is loaded.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from toggle_edge.errors import ProbeError

__all__ = ["HUB", "KINDS", "ProbeSource"]

KINDS = ("csv", "jsonl", "lambada", "stories", "text", "truthfulqa", "wikitext")
"""What a file may hold; each has a reader in `probes.kinds`."""

HUB = "hub"
"""In place of a kind: a data set that the `datasets` library loads by name."""


@dataclass(frozen=True, slots=True)
class ProbeSource:
    """A file (`name` is its path) or a data set by name. `kind` None: it is told from the file."""

    kind: str | None
    name: str

    def __str__(self) -> str:
        return self.name if self.kind is None else f"{self.kind}:{self.name}"

    @classmethod
    def parse(cls, text: str, folder: Path = Path()) -> ProbeSource:
        """Read a source's text. A relative path starts in `folder`.

        What precedes the first colon is a kind unless the whole text names a file that is there, or is a single
        letter, as drives are. Raises ProbeError for an unknown kind and for nothing after it.
        """
        kind, colon, name = text.partition(":")
        if not colon or len(kind) == 1 or "/" in kind or "\\" in kind or _is_there(folder / text):
            kind, name = "", text
        elif kind != HUB and kind not in KINDS:
            near = difflib.get_close_matches(kind, [*KINDS, HUB], n=1)
            raise ProbeError(
                f"probes {text!r}: unknown kind {kind!r}; expected KIND:PATH with one of {', '.join(KINDS)}, or "
                f"hub:NAME{f'; did you mean {near[0]!r}?' if near else ''} (a path with a colon: ./{text})"
            )
        if not name.strip():
            raise ProbeError(
                f"probes {text!r}: expected a path after it, got nothing; write KIND:PATH or PATH"
            )
        return cls(kind or None, name if kind == HUB else str(folder / name))

    @property
    def absolute(self) -> ProbeSource:
        """The same source, whatever folder it is read from."""
        return self if self.kind == HUB else ProbeSource(self.kind, str(Path(self.name).absolute()))


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long, say; what reads the file says so
        return False
