"""What a killed host left, and whether the command that went on afterwards made it whole."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STORE = "toggle-edge.sqlite"
TABLES = ("studies", "trials", "bundles", "runs", "measurements")
WHEN = frozenset({"created"})
"""What differs between two runs of the same search."""

HALF_WRITTEN = (".export-*", ".parity-*", ".skeleton-*", "*.partial", "*.part", "*.tmp", "unpacking-*")
ENDING_S = 20.0
"""How long processes that were told to end may take."""

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class State:
    """Everything that is to survive: the rows of the store by table, and each bundle's digest by its name.

    `temporary` names what lies in the temporary folder: torch keeps a folder of its own there.
    """

    rows: Mapping[str, Rows]
    bundles: Mapping[str, str]
    temporary: frozenset[str]

    def trials(self) -> list[dict[str, Any]]:
        """The trial sequence without the times at which it was recorded."""
        return [{key: row[key] for key in row if key not in WHEN} for row in self.rows["trials"]]


def state_of(work: Path) -> State:
    """Read a work folder without changing it: the store is read in a copy, since opening one repairs it."""
    manifests = sorted((work / "bundles").glob("*/manifest.json"))
    digests = {path.parent.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in manifests}
    temporary = frozenset(path.name for path in (work / "tmp").iterdir())
    with tempfile.TemporaryDirectory() as folder:
        for path in work.glob(f"{STORE}*"):
            shutil.copy(path, folder)
        if not (Path(folder) / STORE).is_file():
            return State({table: [] for table in TABLES}, digests, temporary)
        connection = sqlite3.connect(Path(folder) / STORE)
        connection.row_factory = sqlite3.Row
        there = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        rows = {
            table: [
                dict(row)
                for row in connection.execute(f'SELECT * FROM "{table}" ORDER BY rowid')  # noqa: S608
            ]
            if table in there
            else []
            for table in TABLES
        }
        connection.close()
    return State(rows, digests, temporary)


def problems(work: Path, killed: State, resumed: State, reference: State) -> list[str]:
    """What is wrong with a work folder after a kill and the same command again, in words; empty when nothing is."""
    return [
        *_differences(resumed, reference),
        *_stale_measurements(killed, resumed),
        *_leftovers(work),
        *_survivors(work),
    ]


def _differences(resumed: State, reference: State) -> Iterator[str]:
    if resumed.trials() != reference.trials():
        pairs = zip(resumed.trials(), reference.trials(), strict=False)
        first = next((index for index, (ours, theirs) in enumerate(pairs) if ours != theirs), "the last")
        yield f"the trials differ from an uninterrupted search's from {first} on"
    for name in sorted(resumed.temporary - reference.temporary):
        yield f"left in the temporary folder: {name}"
    if resumed.bundles != reference.bundles:
        names = sorted(dict(resumed.bundles.items() ^ reference.bundles.items()))
        yield f"the bundles differ from an uninterrupted run's: {', '.join(names)}"


def losses(killed: State, resumed: State) -> Iterator[str]:
    """What was in the store and is not there any more as it was.

    Rows are compared with the times at which they were recorded: what was evaluated again would be newer."""
    for table in TABLES:
        before, after = killed.rows[table], resumed.rows[table]
        if table == "studies":
            # The sensitivities are filled in once; what was there must still be there.
            before = [{key: value for key, value in row.items() if value is not None} for row in before]
            after = [{key: row[key] for key in kept} for kept, row in zip(before, after, strict=False)]
        lost = sum(row not in after for row in before)
        if lost:
            yield f"{lost} of {len(before)} recorded {table} were lost or changed"


def _stale_measurements(killed: State, resumed: State) -> Iterator[str]:
    old = {row["run_id"] for row in killed.rows["runs"]}
    measured = sorted(row["bundle"] for row in resumed.rows["runs"] if row["run_id"] not in old)
    if measured != sorted(resumed.bundles.values()):
        yield f"expected one new run of each of {len(resumed.bundles)} bundles, got {len(measured)} new runs"


def _leftovers(work: Path) -> Iterator[str]:
    for pattern in HALF_WRITTEN:
        for path in sorted(work.rglob(pattern)):
            yield f"left half-written: {path.relative_to(work)}"
    for device in sorted((work / "device").glob("device")):
        for run in sorted((device / "runs").iterdir()):
            if not (run / "record.json").is_file():
                yield f"run without a record on the device: {run.name}"
            for name in ("bundle", "output"):
                if (run / name).exists():
                    yield f"left on the device: {run.name}/{name}"
        with (device / "lease").open("rb") as lease:
            try:
                fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield "the device's lease is still held"


def _survivors(work: Path) -> list[str]:
    deadline = time.monotonic() + ENDING_S
    while (alive := processes_of(work)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return [f"process {pid} is still there: {command[:120]}" for pid, command in alive.items()]


def processes_of(work: Path) -> dict[int, str]:
    """Processes that name `work` in their command or environment: host, sshd, agents, workers, the graph builder."""
    found = {}
    needle = os.fsencode(work)
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            if int(folder.name) != os.getpid() and needle in command + (folder / "environ").read_bytes():
                found[int(folder.name)] = command.replace(b"\0", b" ").decode("utf-8", "replace").strip()
        except OSError:  # it ended while we looked, or is somebody else's
            continue
    return found
