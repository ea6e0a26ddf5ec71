"""Clocks held at their highest while a run measures, when that was asked for; put back afterwards, whatever happens.

What is changed is written into a journal in ROOT before anything is. The process that pinned holds the journal's lock,
so that the next agent knows a journal whose owner is gone (killed, crashed), and puts the clocks back first thing.
"""

import fcntl
import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, Iterator

from toggle_runtime.tree import Tree

JOURNAL = "clocks.json"
_BOOT_ID = "proc/sys/kernel/random/boot_id"


class PinningError(ValueError):
    """The clocks cannot be pinned here: the message says why and what to do."""


@contextmanager
def pinned(root: Path, tree: Tree) -> Iterator[None]:
    """The highest clocks for as long as it is open. Raises PinningError when there are none to pin or they may not be
    written; then nothing has changed."""
    wanted = _wanted(tree)
    if not wanted:
        raise PinningError(
            "clocks cannot be pinned: this device shows no /sys/devices/system/cpu/cpu*/cpufreq with a governor "
            "`performance`, and no GPU in /sys/class/devfreq; run without --pin-clocks"
        )
    restore_left(root, tree)
    try:
        before = {path: tree.text(path) for path in wanted}
    except OSError as exc:
        raise PinningError(f"clocks cannot be pinned: {exc.filename}: {exc.strerror}") from exc
    descriptor = os.open(str(root / JOURNAL), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        text = json.dumps({"boot": tree.known(_BOOT_ID), "before": before})
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode("utf-8"), 0)
        os.fsync(descriptor)
        changed: Dict[str, str] = {}
        try:
            for path, value in wanted.items():
                _write(tree, path, value)
                changed[path] = before[path]
            yield
        finally:
            _put_back(root, tree, changed)
    finally:
        os.close(descriptor)


def restore_left(root: Path, tree: Tree) -> bool:
    """Put back what a process that is gone has pinned. Returns whether there was something to put back.

    Raises OSError when it cannot be written: the journal stays, for the next time.
    """
    try:
        descriptor = os.open(str(root / JOURNAL), os.O_RDWR)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False  # a run is under way, and will do it itself
        if os.fstat(descriptor).st_nlink == 0:
            return False  # somebody else was faster
        before = _read(descriptor, tree)
        _put_back(root, tree, before)
        return bool(before)
    finally:
        os.close(descriptor)


def _write(tree: Tree, path: str, value: str) -> None:
    try:
        tree.write(path, value)
    except OSError as exc:
        raise PinningError(
            f"clocks cannot be pinned: /{path}: {exc.strerror}; the agent's user must be allowed to write there, "
            "or run without --pin-clocks"
        ) from exc


def _put_back(root: Path, tree: Tree, before: Dict[str, str]) -> None:
    failed = None
    for path, value in before.items():
        try:
            tree.write(path, value)
        except OSError as exc:
            failed = exc
    if failed is not None:
        raise failed
    (root / JOURNAL).unlink()


def _read(descriptor: int, tree: Tree) -> Dict[str, str]:
    """What the clocks were; empty where nothing was changed yet, or where the device has restarted since."""
    try:
        journal = json.loads(os.read(descriptor, 1 << 20).decode("utf-8"))
        before = {str(path): str(value) for path, value in journal["before"].items()}
        boot = journal["boot"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}  # it is complete before the first clock is touched
    return before if boot == tree.known(_BOOT_ID) else {}


def _wanted(tree: Tree) -> Dict[str, str]:
    """By file, what holds a clock at its highest. Cores that share one are written once each, which does no harm."""
    wanted = {}
    for path in tree.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor"):
        offered = tree.known(path.replace("scaling_governor", "scaling_available_governors")) or ""
        if "performance" in offered.split():
            wanted[path] = "performance"
    for path in tree.glob("sys/class/devfreq/*gpu*/min_freq"):
        highest = tree.known(path.replace("min_freq", "max_freq"))
        if highest is not None and highest.isdigit():
            wanted[path] = highest
    return wanted
