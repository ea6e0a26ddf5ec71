"""One holder of a device at a time, told apart by a number that only grows.

A holder has a lock of the kernel on `ROOT/lease`, which is given back when its process dies, however it dies; it says
there every few seconds that it goes on, and has a *token* from `ROOT/fence`, one more than the holder before it. A
process that is stopped keeps its lock but says nothing: after `LEASE_S` the next one ends it, or takes the lease from
it, and a token that is not the latest writes nothing any more (`Lease.fenced`). Times are of the monotonic clock and
count within one boot only: no jump of the wall clock makes a lease older or younger.
"""

import fcntl
import json
import os
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterator

from toggle_runtime import processes
from toggle_runtime.fence import GuardError, grant, granted, guard, locked
from toggle_runtime.processes import CLOCK, Clock
from toggle_runtime.wire import RequestError

LEASE_S = 45.0
"""Silence after which a holder may be replaced. Hosts wait longer than this for a run that they aborted."""

BEAT_S = 5.0
MAX_OWNER = 300

_END_S = 5.0
_SIZE = 4096


@dataclass(frozen=True)
class Lease:
    """The device, held. `token` is larger than that of every holder before."""

    root: Path
    owner: str
    run_id: str
    token: int
    since: int
    descriptor: int

    @contextmanager
    def fenced(self) -> Iterator[None]:
        """Around every write that matters: inside, nobody else can take the lease.

        Raises RequestError of kind `lease` where somebody has taken it; then nothing may be written.
        """
        with guard(self.root):
            if not self.is_held():
                raise RequestError(
                    "lease",
                    f"this run ({self.run_id}, token {self.token}) stood still for more than {LEASE_S:g} s and the "
                    f"device was given to another one (token {granted(self.root)}); nothing more was written",
                )
            yield

    def is_held(self) -> bool:
        """Whether nobody has taken it. Only under the guard does that stay so."""
        return self._is_file() and granted(self.root) == self.token

    def beat(self, clock: Clock = CLOCK) -> None:
        """Say that the holder goes on."""
        told = {
            "owner": self.owner,
            "run_id": self.run_id,
            "pid": os.getpid(),
            "start": processes.started(os.getpid()),
            "since": self.since,
            "token": self.token,
            "boot": clock.boot(),
            "beat_s": clock.now(),
        }
        # Of one size, so that no reader finds the end of a longer text.
        os.pwrite(self.descriptor, json.dumps(told).encode("utf-8").ljust(_SIZE), 0)

    def release(self) -> None:
        """Give the device back. Safe where it was taken."""
        if self._is_file():
            os.ftruncate(self.descriptor, 0)
        os.close(self.descriptor)

    def _is_file(self) -> bool:
        # Whoever takes the lease puts another file there; ours cannot come back while we have it open.
        try:
            there = (self.root / "lease").stat()
        except FileNotFoundError:
            return False
        mine = os.fstat(self.descriptor)
        return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)


@contextmanager
def hold(root: Path, owner: str, run_id: str) -> Iterator[Lease]:
    """Hold the device's lease. Raises RequestError of kind `lease`, naming the holder, when it is taken."""
    held = take(root, owner, run_id)
    done = threading.Event()
    beating = threading.Thread(target=_keep_beating, args=(held, done), daemon=True)
    beating.start()
    try:
        yield held
    finally:
        done.set()
        beating.join()
        held.release()


def take(
    root: Path,
    owner: str,
    run_id: str,
    *,
    clock: Clock = CLOCK,
    end: Callable[[object, object], bool] = processes.end,
) -> Lease:
    """The lease, from nobody, from a holder that died, or from one that has been silent for `LEASE_S`.

    `end` ends a silent holder's process, by number and start, and says whether it could. Whoever calls `take` must
    `beat`, and `release`. Raises RequestError of kind `lease`, with the `holder`, while there is one.
    """
    if len(owner) > MAX_OWNER:
        raise RequestError("request", f"owner: expected at most {MAX_OWNER} characters, got {len(owner)}")
    root.mkdir(parents=True, exist_ok=True)
    try:
        return _take(root, owner, run_id, clock, end)
    except GuardError:
        # A holder that was stopped in the moment of a write has the guard too.
        found = _read(root)
        if not (_left_s(found, clock) <= 0 and end(found.get("pid"), found.get("start"))):
            raise
        return _take(root, owner, run_id, clock, end)


def _take(root: Path, owner: str, run_id: str, clock: Clock, end: Callable[[object, object], bool]) -> Lease:
    with guard(root):
        descriptor = os.open(str(root / "lease"), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not locked(descriptor):
                descriptor = _taken_over(root, descriptor, clock, end)
            held = Lease(root, owner, run_id, grant(root), int(time.time()), descriptor)
            held.beat(clock)
            return held
        except BaseException:
            os.close(descriptor)
            raise


def holder(root: Path, clock: Clock = CLOCK) -> Dict[str, Any]:
    """Who holds the lease now: what `Lease.beat` wrote, with `silent_s` and `expires_in_s`; empty when nobody does."""
    try:
        with guard(root):
            descriptor = os.open(str(root / "lease"), os.O_RDWR)
            try:
                return {} if locked(descriptor) else _described(_written(descriptor), clock)
            finally:
                os.close(descriptor)
    except FileNotFoundError:
        return {}


def _taken_over(root: Path, descriptor: int, clock: Clock, end: Callable[[object, object], bool]) -> int:
    """The lock of a lease whose holder lives: the same file's once it was ended, or a new file's. Under the guard."""
    found = _written(descriptor)
    if not _left_s(found, clock) <= 0:
        told = _described(found, clock)
        raise RequestError("lease", f"the device is in use by {_text(told)}; try again later", holder=told)
    if end(found.get("pid"), found.get("start")):
        deadline = time.monotonic() + _END_S
        while time.monotonic() < deadline:
            if locked(descriptor):
                return descriptor
            time.sleep(0.02)
    # It cannot be ended (another user's, or stuck in the kernel), so the lock stays behind with its file.
    temporary = root / f"lease.{os.getpid()}.tmp"
    if temporary.exists():
        temporary.unlink()
    fresh = os.open(str(temporary), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    fcntl.flock(fresh, fcntl.LOCK_EX | fcntl.LOCK_NB)
    temporary.replace(root / "lease")
    os.close(descriptor)
    return fresh


def _read(root: Path) -> Dict[str, Any]:
    descriptor = os.open(str(root / "lease"), os.O_RDONLY | os.O_CREAT, 0o644)
    try:
        return _written(descriptor)
    finally:
        os.close(descriptor)


def _written(descriptor: int) -> Dict[str, Any]:
    """What the holder told. Empty where it has told nothing yet, or what is no holder's."""
    for _ in range(3):  # it may be telling just now
        try:
            return dict(json.loads(os.pread(descriptor, _SIZE, 0).decode("utf-8", "replace")))
        except (ValueError, TypeError):
            time.sleep(0.01)
    return {}


def _left_s(found: Dict[str, Any], clock: Clock) -> float:
    """Seconds until a holder that lives counts as silent. Never, where it cannot be told: an older agent's holder."""
    beat, boot = found.get("beat_s"), found.get("boot")
    if not isinstance(beat, float) or boot != clock.boot():
        return float("inf")
    return beat + LEASE_S - clock.now()


def _described(found: Dict[str, Any], clock: Clock) -> Dict[str, Any]:
    told = {key: value for key, value in found.items() if key not in ("beat_s", "boot", "start")}
    left = _left_s(found, clock)
    if left == left and left != float("inf"):
        told.update(silent_s=round(LEASE_S - left, 1), expires_in_s=round(max(left, 0.0), 1))
    return told


def _text(told: Dict[str, Any]) -> str:
    if "owner" not in told:
        return "a run that is just starting"
    text = f"{told['owner']}, run {told.get('run_id')}"
    if isinstance(told.get("since"), int):
        text += f", for {max(0, int(time.time()) - told['since'])} s"
    if "expires_in_s" in told:
        text += f"; it last told {told['silent_s']:g} s ago and expires in {told['expires_in_s']:g} s unless it goes on"
    return text


def _keep_beating(held: Lease, done: threading.Event) -> None:
    while not done.wait(BEAT_S):
        held.beat()
        if granted(held.root) > held.token:
            # Taken while we stood still: whatever is measured from here on, two are measuring.
            os.kill(os.getpid(), signal.SIGTERM)
            return
