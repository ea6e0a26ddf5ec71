"""What can go wrong between a host and a device, and how the fault suite makes it go wrong at a drawn moment."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from device_aftermath import DeviceState
from fault_device import FaultyDevice
from fault_host import Host

from toggle_edge.bundle import Bundle
from toggle_edge.fleet.chaos import Chaos

BOOTING_S = 1.0
MOST_DELAY_S = 0.3
YEAR_S = 365 * 86400.0
PARTS = ("beginning", "garbage", "too long")


@dataclass(frozen=True)
class Reference:
    """A command that nobody disturbed: what it reported, what it sent, what it left."""

    labels: list[tuple[str, float]]
    seconds: float
    passed: int
    returned: int
    journalled: int
    workers: int
    grown_bytes: int
    state: DeviceState
    modes: object


@dataclass(frozen=True)
class Scene:
    """Everything that a fault may look at when it is drawn. `bundle` is what the command is about."""

    device: FaultyDevice
    bundle: Bundle
    reference: Reference
    rng: np.random.Generator
    home: Path

    def fraction(self) -> float:
        return float(self.rng.uniform())

    def one_of(self, choices: list[str]) -> str:
        return choices[int(self.rng.integers(len(choices)))]


Strike = Callable[[Host, Chaos], bool]
"""Does it; False where it could not be done just now, and is to be tried again."""


def _never(host: Host) -> bool:
    return False


def _nothing() -> None:
    """Nothing to prepare, nothing to mend."""


@dataclass(frozen=True)
class Fault:
    """One fault: what to prepare, how the link misbehaves, when to strike and how, what to mend before the retry.

    `always` counts as injected once prepared; others when they struck. `must_fail`: where the command passes all the
    same, the fault did not touch it."""

    what: str
    before: Callable[[], None] = _nothing
    link: Mapping[str, int | bool] = field(default_factory=dict)
    when: Callable[[Host], bool] = _never
    strike: Strike = lambda host, chaos: True
    mend: Callable[[], None] = _nothing
    shifted: bool = False
    second_after_s: float | None = None
    always: bool = False
    must_fail: bool = False
    kills_the_host: bool = False
    damaged: frozenset[str] = frozenset()


def link_cut(scene: Scene) -> Fault:
    return _bad_link(scene, "cut_after", "cut")


def link_stalled(scene: Scene) -> Fault:
    return _bad_link(scene, "stall_after", "silent")


def _bad_link(scene: Scene, how: str, word: str) -> Fault:
    back = scene.fraction() < 0.4
    total = scene.reference.returned if back else scene.reference.passed
    number = int(scene.fraction() * total)
    return Fault(
        f"{word} after byte {number} of {total} {'from' if back else 'to'} the device",
        link={how: number, "from_device": back},
    )


def agent_killed(scene: Scene) -> Fault:
    what, when = _journal_step(scene) if scene.fraction() < 0.5 else _moment(scene)
    return Fault(what, when=when, strike=lambda host, chaos: scene.device.kill("serve") > 0)


def worker_killed(scene: Scene) -> Fault:
    wanted, delay = 1 + int(scene.rng.integers(scene.reference.workers)), scene.fraction()
    seen: set[int] = set()
    born: list[float] = []

    def when(host: Host) -> bool:
        seen.update(scene.device.processes("worker"))
        if len(seen) >= wanted and not born:
            born.append(time.monotonic())
        return bool(born) and time.monotonic() - born[0] >= delay

    return Fault(
        f"{delay:.2f} s after worker {wanted} began",
        when=when,
        strike=lambda host, chaos: scene.device.kill("worker") > 0,
    )


def host_killed(scene: Scene) -> Fault:
    what, when = _moment(scene)

    def strike(host: Host, chaos: Chaos) -> bool:
        if host.process.pid is not None:
            os.kill(host.process.pid, signal.SIGKILL)
        return True

    return Fault(what, when=when, strike=strike, kills_the_host=True)


def device_rebooted(scene: Scene) -> Fault:
    what, when = _moment(scene)

    def strike(host: Host, chaos: Chaos) -> bool:
        chaos.go_down()
        scene.device.reboot()
        host.listen(BOOTING_S)
        chaos.come_up()
        return True

    return Fault(what, when=when, strike=strike)


def disk_full(scene: Scene) -> Fault:
    free = int(scene.fraction() * scene.reference.grown_bytes)
    device = scene.device
    return Fault(
        f"{free} of {scene.reference.grown_bytes} bytes free",
        before=lambda: device.leave(free),
        mend=device.make_room,
        must_fail=True,
    )


def disk_read_only(scene: Scene) -> Fault:
    what, when = _moment(scene)
    device = scene.device
    return Fault(what, when=when, strike=lambda host, chaos: device.make_read_only(), mend=device.make_room)


def clock_jumped(scene: Scene) -> Fault:
    what, when = _moment(scene)
    size = 10 ** (1.0 + scene.fraction() * (np.log10(10 * YEAR_S) - 1.0))
    ahead = float(size if scene.fraction() < 0.5 else -size)

    def strike(host: Host, chaos: Chaos) -> bool:
        scene.device.set_clock(ahead)
        return True

    return Fault(f"by {ahead:+.0f} s {what}", when=when, strike=strike, shifted=True)


def two_hosts(scene: Scene) -> Fault:
    later = scene.fraction() * scene.reference.seconds * 0.8
    return Fault(f"the second {later:.2f} s later", second_after_s=later, always=True)


def stored_blob_damaged(scene: Scene) -> Fault:
    """A blob of the bundle was stored by an earlier command, and is not what it was any more."""
    digest, path = _some_blob(scene)
    data = path.read_bytes()
    keep = int(scene.fraction() * len(data))
    stored = scene.device.root / "blobs" / "sha256" / digest

    def before() -> None:
        stored.parent.mkdir(parents=True, exist_ok=True)
        stored.unlink(missing_ok=True)
        stored.write_bytes(data[:keep])

    return Fault(
        f"{digest[:12]} has {keep} of {len(data)} bytes",
        before=before,
        always=True,
        damaged=frozenset({digest}),
    )


def incoming_part_damaged(scene: Scene) -> Fault:
    """Something lies where a blob of the bundle is to arrive: its beginning, something else, or more than all of it."""
    digest, path = _some_blob(scene)
    data, kind = path.read_bytes(), scene.one_of(list(PARTS))
    some = data[: int(scene.fraction() * len(data))]
    content = {"beginning": some, "garbage": scene.rng.bytes(len(some)), "too long": data + b"more"}[kind]
    part = scene.device.root / "incoming" / f"{digest}.part"

    def before() -> None:
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)

    return Fault(f"{digest[:12]}: {kind}, {len(content)} of {len(data)} bytes", before=before, always=True)


KINDS: Mapping[str, Callable[[Scene], Fault]] = {
    "link cut": link_cut,
    "link stalled": link_stalled,
    "agent killed": agent_killed,
    "worker killed": worker_killed,
    "host killed": host_killed,
    "device rebooted": device_rebooted,
    "disk full": disk_full,
    "disk read-only": disk_read_only,
    "clock jumped": clock_jumped,
    "two hosts": two_hosts,
    "stored blob damaged": stored_blob_damaged,
    "incoming part damaged": incoming_part_damaged,
}

NEED_A_DISK = frozenset({"disk full", "disk read-only"})
NOT_FOR_ROLLBACK = frozenset({"host killed", "two hosts", "stored blob damaged", "incoming part damaged"})
"""A second `rollback` goes back again: after a killed host the user looks, and decides. It sends no files either."""


def _moment(scene: Scene) -> tuple[str, Callable[[Host], bool]]:
    """A moment within one piece of the command, uniform over the pieces that its reports divide it into, and in one."""
    begins = [("the start", 0.0), *scene.reference.labels]
    ends = [at for _, at in scene.reference.labels] + [scene.reference.seconds]
    number = int(scene.rng.integers(len(begins)))
    label, at = begins[number]
    delay = scene.fraction() * (ends[number] - at)

    def when(host: Host) -> bool:
        now = time.monotonic() - host.begun
        if number == 0:
            return now >= delay
        reached = [seen for name, seen in host.labels if name == label]
        return bool(reached) and now - reached[0] >= delay

    return f"{delay * 1000:.0f} ms after {label}", when


def _journal_step(scene: Scene) -> tuple[str, Callable[[Host], bool]]:
    """A moment shortly after the agent wrote a drawn step of its run into its journal."""
    wanted, delay = 1 + int(scene.rng.integers(scene.reference.journalled)), scene.fraction() * MOST_DELAY_S
    before = {path.name for path in (scene.device.root / "runs").glob("*")}
    reached: list[float] = []

    def when(host: Host) -> bool:
        if not reached and journalled(scene.device.root, before) >= wanted:
            reached.append(time.monotonic())
        return bool(reached) and time.monotonic() - reached[0] >= delay

    return f"{delay * 1000:.0f} ms after step {wanted} of the journal", when


def journalled(root: Path, before: set[str]) -> int:
    """Steps in the journals of runs that were not there before."""
    paths = [path for path in (root / "runs").glob("*/journal.jsonl") if path.parent.name not in before]
    return sum(path.read_bytes().count(b"\n") for path in paths)


def _some_blob(scene: Scene) -> tuple[str, Path]:
    blobs = sorted({blob.sha256 for blob in scene.bundle.manifest.files.values() if blob.size > 1})
    digest = scene.one_of(blobs)
    return digest, scene.bundle.blob_path(digest)
