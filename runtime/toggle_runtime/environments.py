"""Worker environments: wheels of the store, unpacked into one folder that goes on the worker's `sys.path`.

No installer on the device: wheels of pure data and native libraries only need unpacking, and a folder that
appears by rename is either whole or not there.
"""

import os
import re
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import List

from toggle_runtime.blobs import blob_path, mismatch
from toggle_runtime.records import Blob
from toggle_runtime.wire import RequestError

MAX_UNPACKED_BYTES = 2 << 30

_IDENTIFIER = re.compile(r"[0-9a-f]{8,64}")


@dataclass(frozen=True)
class Wheel:
    """One wheel of the store, and the file name it had on the host (for messages)."""

    sha256: str
    size: int
    name: str


def folder_of(root: Path, identifier: str) -> Path:
    """Where an environment lives. Raises RequestError for an identifier that is not plain hex."""
    if not _IDENTIFIER.fullmatch(identifier):
        raise RequestError(
            "request", f"environment: expected 8 to 64 lower-case hex digits, got {identifier!r}"
        )
    return root / "environments" / identifier


def prepare(root: Path, identifier: str, wheels: List[Wheel]) -> Path:
    """Unpack `wheels` unless that was done before; return the environment's folder.

    Raises RequestError when a wheel is not as announced, or holds something that must not be unpacked.
    """
    final = folder_of(root, identifier)
    if final.is_dir():
        os.utime(str(final))  # what was used last is collected last
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    import tempfile  # here, and zipfile below: megabytes that no other request needs

    temporary = Path(tempfile.mkdtemp(prefix="unpacking-", dir=str(final.parent)))
    try:
        budget = MAX_UNPACKED_BYTES
        for wheel in wheels:
            path = blob_path(root, wheel.sha256)
            problem = mismatch(path, Blob(wheel.sha256, wheel.size))
            if problem is not None:
                raise RequestError("digest", f"wheel {wheel.name}: {problem}")
            budget -= _unpack(path, wheel.name, temporary, budget)
        temporary.chmod(0o755)
        try:
            temporary.rename(final)
        except OSError:
            if not final.is_dir():  # otherwise another agent was faster, with the same content
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def _unpack(path: Path, name: str, target: Path, budget: int) -> int:
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            size = sum(member.file_size for member in members)
            if size > budget:
                raise RequestError(
                    "environment",
                    f"wheel {name}: the environment would unpack to more than {MAX_UNPACKED_BYTES} bytes",
                )
            for member in members:
                _check_member(member.filename, member.external_attr >> 16, name)
            archive.extractall(target)
            for member in members:  # programs, which `extractall` makes plain files
                if member.external_attr >> 16 & stat.S_IXUSR and not member.is_dir():
                    (target / member.filename).chmod(0o755)
            return size
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as exc:
        raise RequestError("environment", f"wheel {name}: expected a zip archive, got {exc}") from exc


def _check_member(path: str, mode: int, name: str) -> None:
    escapes = path.startswith("/") or "\\" in path or ":" in path or ".." in path.split("/")
    if escapes or stat.S_ISLNK(mode):
        raise RequestError(
            "environment", f"wheel {name}: expected plain files inside the wheel, got member {path!r}"
        )
