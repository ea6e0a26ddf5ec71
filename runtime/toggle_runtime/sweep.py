"""What killed agents and hosts left behind on the device, cleared away before the next run.

Runs under the lease, so no run is under way. What a host is sending now is kept: its parts are how a broken
upload goes on, and other parts are young.
"""

import shutil
import time
from pathlib import Path
from typing import Optional

from toggle_runtime import records
from toggle_runtime.lease import Lease
from toggle_runtime.spool import Spool

STALE_S = 120.0
"""Age from which a temporary file belongs to nobody who is still at work."""


def sweep(root: Path, run_id: str, lease: Optional[Lease] = None) -> None:
    """Close every run without a record but `run_id` as ABORTED, and remove what is half-written and old."""
    for folder in sorted((root / "runs").glob("*")):
        if folder.name != run_id and folder.is_dir():
            _close(Spool(folder, lease))
    for folder in (root / "environments").glob("unpacking-*"):
        _remove_if_stale(folder)
    for pattern in ("agent/*.part", "*.tmp", "*/*.tmp", "runs/*/*.tmp"):
        for path in root.glob(pattern):
            _remove_if_stale(path)


def close_aborted(spool: Spool, bundle: str) -> None:
    """Give a run whose agent is gone the record that it could not write."""
    reason = (
        f"the agent ended after step {spool.last_step()!r} without a record (killed, or the device restarted)"
    )
    spool.keep(records.RunRecord(records.RECORD_VERSION, spool.folder.name, bundle, records.ABORTED, reason))


def _close(spool: Spool) -> None:
    shutil.rmtree(spool.bundle, ignore_errors=True)
    shutil.rmtree(spool.output, ignore_errors=True)
    if not spool.record_path.is_file():
        close_aborted(spool, spool.bundle_digest())


def _remove_if_stale(path: Path) -> None:
    try:
        # All that is inside too: unpacking onto a slow card takes long, and touches the top folder only at first.
        youngest = max(each.stat().st_mtime for each in (path, *path.rglob("*")))
        # A clock that was set back makes old files come from the future.
        if abs(time.time() - youngest) < STALE_S:
            return
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    except FileNotFoundError:  # somebody else was faster
        return
