"""What is on a device and at home after something went wrong there, and whether all of it is whole."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aftermath import ENDING_S, processes_of

HALF_WRITTEN = ("*.part", "*.tmp", "*.partial", "unpacking-*")


@dataclass(frozen=True)
class DeviceState:
    """What a command leaves on a device, without what differs from run to run: ids and times."""

    active: str | None
    previous: str | None
    environments: tuple[str, ...]
    blobs: Mapping[str, str]
    deployed: Mapping[str, Mapping[str, str]]
    agents: tuple[str, ...]


@dataclass(frozen=True)
class Records:
    """Every record by its run's id, as sha256, on the device and at home; what the device thinks is at home."""

    device: Mapping[str, str]
    home: Mapping[str, str]
    fetched: frozenset[str]
    outcomes: Mapping[str, str]
    modes: Mapping[str, Any]


def device_state(root: Path) -> DeviceState:
    path = root / "deployment.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    bundles = {key: known[key]["bundle"] if known.get(key) else None for key in ("active", "previous")}
    return DeviceState(
        active=bundles["active"],
        previous=bundles["previous"],
        environments=_names(root / "environments"),
        blobs={path.name: _digest(path) for path in _files(root / "blobs" / "sha256")},
        deployed={folder.name: _laid_out(folder) for folder in _children(root / "deployed")},
        agents=_names(root / "agent"),
    )


def records_of(root: Path, home: Path) -> Records:
    """`home` has a folder for each host, in which `validate` and `deploy` keep runs."""
    device = {path.parent.name: path for path in sorted((root / "runs").glob("*/record.json"))}
    kept = {
        path.parent.name: path
        for path in sorted(home.glob("*/*/*/record.json"))
        if not path.parent.name.endswith(".partial")
    }
    fetched = {
        folder.name
        for folder in _children(root / "runs")
        if '"fetched"' in (folder / "journal.jsonl").read_text(errors="replace")
    }
    read = {name: json.loads(path.read_text()) for name, path in {**device, **kept}.items()}
    return Records(
        device={name: _digest(path) for name, path in device.items()},
        home={name: _digest(path) for name, path in kept.items()},
        fetched=frozenset(fetched),
        outcomes={name: record["outcome"] for name, record in read.items()},
        modes={name: record["modes"] for name, record in read.items()},
    )


def broken_activation(
    root: Path, allowed: set[str | None], damaged: frozenset[str] = frozenset()
) -> Iterator[str]:
    """What is wrong with the active bundle: it must be one of `allowed`, and whole but for blobs that we damaged."""
    path = root / "deployment.json"
    active = json.loads(path.read_text())["active"]["bundle"] if path.exists() else None
    if active not in allowed:
        yield f"active is {active}, expected one of {sorted(map(str, allowed))}"
    if active is None or active not in allowed:
        return
    manifest = json.loads((root / "blobs" / "sha256" / active).read_text())
    for name, blob in manifest["files"].items():
        kept, used = root / "blobs" / "sha256" / blob["sha256"], root / "deployed" / active / name
        for place in (kept, used):
            if place == kept and blob["sha256"] in damaged and not place.exists():
                continue  # the device found out, and removed it, to be sent again
            if not place.is_file():
                yield f"the active bundle lacks {place.relative_to(root)}"
            elif _digest(place) != blob["sha256"] and blob["sha256"] not in damaged:
                yield f"the active bundle's {place.relative_to(root)} is not what its manifest says"


def lost(before: Records, after: Records, root: Path) -> Iterator[str]:
    """Records that were there and are not any more, are two, or are at home only in the device's opinion."""
    for name in sorted({**before.device, **before.home}):
        if name not in after.device and name not in after.home:
            yield f"the record of {name} was lost"
    for name, digest in sorted(after.home.items()):
        if name in after.device and after.device[name] != digest:
            yield f"the record of {name} at home is not the device's"
        if name in before.home and before.home[name] != digest:
            yield f"the record of {name} at home was changed"
    for name in sorted(after.fetched - set(after.home)):
        yield f"the device takes the record of {name} for fetched, and it is not at home"
    for folder in _children(root / "runs"):
        if not (folder / "record.json").is_file():
            yield f"run without a record on the device: {folder.name}"
        for name in ("bundle", "output"):
            if (folder / name).exists():
                yield f"left on the device: {folder.name}/{name}"


def half_written(*folders: Path) -> list[str]:
    return sorted(
        str(path) for folder in folders for pattern in HALF_WRITTEN for path in folder.rglob(pattern)
    )


def survivors(root: Path) -> list[str]:
    """Agents and workers that do not end."""
    deadline = time.monotonic() + ENDING_S
    while (alive := processes_of(root)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return [f"process {pid} is still there: {command[:120]}" for pid, command in alive.items()]


def aged(root: Path, seconds: float) -> None:
    """Make all that lies there as old as if nobody had come for so long."""
    for path in (root, *root.rglob("*")):
        if not path.is_symlink() and "environments" not in path.relative_to(root).parts[1:]:
            found = path.stat()
            os.utime(path, (found.st_atime - seconds, found.st_mtime - seconds))


def _laid_out(folder: Path) -> Mapping[str, str]:
    return {str(path.relative_to(folder)): _digest(path) for path in _files(folder)}


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _names(folder: Path) -> tuple[str, ...]:
    return tuple(path.name for path in _children(folder))


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
