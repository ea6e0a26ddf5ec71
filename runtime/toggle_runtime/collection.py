"""What the device no longer needs, removed oldest first until the rest is within a quota.

Call under the lease. Never removed: what is deployed and the bundle before it, with their worker environments; runs
that no host has fetched; and what was used within `YOUNG_S`, since another host may want it for a run of its own.
"""

import os
import shutil
import time
from pathlib import Path
from typing import Any, Dict, List, Set, Tuple

from toggle_runtime.blobs import blob_path
from toggle_runtime.deployment import read_deployment
from toggle_runtime.records import Manifest, RecordError, from_json
from toggle_runtime.spool import Spool
from toggle_runtime.wire import RequestError

YOUNG_S = 3600.0


def collect(root: Path, quota_bytes: int, *, young_s: float = YOUNG_S) -> Dict[str, Any]:
    """Remove what may go, the least recently used first, until `quota_bytes` are enough for the rest.

    Returns the bytes that were `removed`, and those `left`, which are more than the quota where more must stay. Raises
    RequestError where what is deployed cannot be read: then nothing is known to be unneeded.
    """
    needed, environments = _needed(root)
    now = time.time()
    total, candidates = 0, []  # type: int, List[Tuple[float, int, Path]]
    for path, kept in _things(root, needed, environments):
        size, used = _size(path), _used(path)
        total += size
        # What comes from the future is old: the clock was set back.
        if not kept and abs(now - used) >= young_s:
            candidates.append((used, size, path))
    removed = 0
    for _, size, path in sorted(candidates):
        if total - removed <= quota_bytes:
            break
        _remove(path)
        removed += size
    return {"removed_bytes": removed, "left_bytes": total - removed}


def _needed(root: Path) -> Tuple[Set[str], Set[str]]:
    """Digests of blobs, and names of environments, that must stay."""
    known = read_deployment(root)
    blobs: Set[str] = set()
    environments: Set[str] = set()
    for each in () if known is None else (known.active, known.previous):
        if each is None:
            continue
        blobs.add(each.bundle)
        environments.add(each.environment)
        try:
            manifest = from_json(Manifest, blob_path(root, each.bundle).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, RecordError) as exc:
            raise RequestError(
                "deployment",
                f"the manifest of {each.bundle[:12]} cannot be read: {exc}; deploy again, nothing was removed",
            ) from exc
        blobs.update(blob.sha256 for blob in manifest.files.values())
    return blobs, environments


def _things(root: Path, needed: Set[str], environments: Set[str]) -> List[Tuple[Path, bool]]:
    """What lies in the store, and whether it must stay."""
    found = [(path, path.name in needed) for path in (root / "blobs" / "sha256").glob("*")]
    found += [(path, False) for path in (root / "incoming").glob("*.part")]
    found += [(path, path.name in environments) for path in (root / "environments").glob("*")]
    found += [(path, not Spool(path).was_fetched()) for path in (root / "runs").glob("*")]
    return found


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; links are not followed."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(each.lstat().st_size for each in path.rglob("*") if each.is_file() and not each.is_symlink())


def _used(path: Path) -> float:
    return os.lstat(str(path)).st_mtime


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        # Renamed first: an environment that is half there must never look whole.
        doomed = path.with_name(f"unpacking-{path.name}.{os.getpid()}.tmp")
        path.rename(doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink()
