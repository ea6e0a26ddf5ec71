"""One run at a time on a device: a lock that the kernel gives back when its holder dies, however it dies."""

import fcntl
import json
import os
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator

from toggle_runtime.wire import RequestError


@contextmanager
def hold(root: Path, owner: str, run_id: str) -> Iterator[None]:
    """Hold the device's lease. Raises RequestError of kind `lease`, naming the holder, when it is taken."""
    root.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(str(root / "lease"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            taken_by = _written(descriptor)
            raise RequestError(
                "lease",
                f"the device is in use by {taken_by or 'a run that is just starting'}; try again later",
                holder=taken_by,
            ) from exc
        text = json.dumps({"owner": owner, "run_id": run_id, "pid": os.getpid(), "since": int(time.time())})
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode("utf-8"), 0)
        yield
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def holder(root: Path) -> Dict[str, Any]:
    """Who holds the lease now, as `hold` wrote it; empty when nobody does."""
    try:
        descriptor = os.open(str(root / "lease"), os.O_RDWR)
    except FileNotFoundError:
        return {}
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _written(descriptor)
    finally:
        os.close(descriptor)
    return {}


def _written(descriptor: int) -> Dict[str, Any]:
    try:
        return dict(json.loads(os.pread(descriptor, 4096, 0).decode("utf-8", "replace")))
    except (ValueError, TypeError):  # taken a moment ago, and not written yet
        return {}
