"""What candidates passed, and what was made for that, kept between commands: the same candidate gives the same again.

An entry's name is the digest of everything that making it reads, the sources included, so nothing stale is found.
Whoever takes one believes its bytes by their digests: they passed parity when they were put there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from toggle_edge.cache import INDEX, PARTIAL, discard, locked, trim

MOST_BYTES = 8 << 30
"""What all entries may take together; those used longest ago go first."""


def key_of(words: Iterable[str], files: Mapping[str, Path]) -> str:
    """The SHA-256 of what is said in `words`, such as versions, and of the files, each with its name here."""
    found = hashlib.sha256()
    for word in words:
        found.update(f"\0{word}".encode())
    for name in sorted(files):
        found.update(f"\0\0{name}\0".encode())
        with files[name].open("rb") as stream:
            found.update(hashlib.file_digest(stream, "sha256").digest())
    return found.hexdigest()


def taken(shelf: Path, key: str, folder: Path) -> bool:
    """Copy the entry of that key into `folder`, where there is one and it is whole. A damaged one is deleted."""
    entry = shelf / key[:2] / key
    try:
        index = json.loads((entry / INDEX).read_text(encoding="utf-8"))
        for name, digest in index.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(entry / _plain(name), target)
            with target.open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != digest:
                    raise ValueError(f"{target}: its bytes are not those that were kept")
        os.utime(entry / INDEX)
    except FileNotFoundError:
        return False
    except (OSError, ValueError, AttributeError):
        discard(entry)
        return False
    return True


def put(shelf: Path, key: str, folder: Path, names: list[str]) -> None:
    """Keep these files of `folder`, whole or not at all. What cannot be written is not kept."""
    entry = shelf / key[:2] / key
    partial = entry.with_name(entry.name + PARTIAL)
    with suppress(OSError), locked(entry.parent / "lock"):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        index = {}
        for name in names:
            shutil.copyfile(folder / name, partial / _plain(name))
            with (folder / name).open("rb") as stream:
                index[name] = hashlib.file_digest(stream, "sha256").hexdigest()
        (partial / INDEX).write_text(json.dumps(index), encoding="utf-8")
        discard(entry)
        partial.rename(entry)
    trim(shelf, MOST_BYTES)


def _plain(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:32]
