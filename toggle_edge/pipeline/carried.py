"""What a person carried home from a device: a run's folder or one packed file, read within limits and nothing more.

Names inside are chosen from a list, sizes are counted while they are read, and nothing is a link: whoever packed it may
have meant harm.
"""

from __future__ import annotations

import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from toggle_edge.bundle import MAX_MANIFEST_BYTES, MAX_PROBES_BYTES
from toggle_edge.errors import RunFolderError
from toggle_edge.fleet.deploy import MAX_RECORD_BYTES, MAX_TRACES_BYTES

_LIMITS = {
    re.compile(r"record\.json"): MAX_RECORD_BYTES,
    re.compile(r"traces\.npz"): MAX_TRACES_BYTES,
    re.compile(r"contract/manifest\.json"): MAX_MANIFEST_BYTES,
    re.compile(r"contract/blobs/sha256/[0-9a-f]{64}"): MAX_PROBES_BYTES,
}
"""The files of a carried run, and how large each may be."""

_MAX_FILES = 4
_PASSED_OVER = re.compile(r"journal\.jsonl")
_CHUNK = 1 << 20


def unpack_carried(source: Path, folder: Path) -> None:
    """Copy a carried run into the new `folder`. Raises RunFolderError for what is not one; nothing stays then."""
    try:
        folder.mkdir()
        for number, (name, opened) in enumerate(_files_of(source), 1):
            if number > _MAX_FILES:
                raise RunFolderError(f"{source}: expected at most {_MAX_FILES} files of a run, got more")
            target = folder / name
            if target.exists():
                raise RunFolderError(f"{source}: holds {name} twice")
            target.parent.mkdir(parents=True, exist_ok=True)
            with opened as stream, target.open("wb") as copy:
                _copy(stream, copy, _limit(name), f"{source}: {name}")
        if not (folder / "record.json").is_file():
            raise RunFolderError(
                f"{source}: expected a run's folder, or the file that the agent's --output made, with record.json in it"
            )
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as exc:
        shutil.rmtree(folder, ignore_errors=True)
        raise RunFolderError(f"{source}: cannot be read: {exc}") from exc
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _files_of(source: Path) -> Iterator[tuple[str, IO[bytes]]]:
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            name = path.relative_to(source).as_posix()
            if path.is_symlink():
                raise RunFolderError(f"{source}: {name!r}: expected plain files, got a symbolic link")
            if path.is_file() and not _PASSED_OVER.fullmatch(name):
                _limit(name)
                yield name, path.open("rb")
    elif zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            for member in archive.infolist():
                if not member.is_dir():
                    _limit(member.filename)
                    yield member.filename, archive.open(member)
    else:
        raise RunFolderError(
            f"{source}: expected a run's folder, or the file that the agent's --output made, got neither"
        )


def _limit(name: str) -> int:
    for pattern, limit in _LIMITS.items():
        if pattern.fullmatch(name):
            return limit
    raise RunFolderError(f"expected the files of a run only, got {name[:120]!r}")


def _copy(stream: IO[bytes], copy: IO[bytes], limit: int, what: str) -> None:
    # Counted while it is read: what an archive says of its sizes need not be true.
    done = 0
    while chunk := stream.read(_CHUNK):
        done += len(chunk)
        if done > limit:
            raise RunFolderError(f"{what}: expected at most {limit} bytes, got more")
        copy.write(chunk)
