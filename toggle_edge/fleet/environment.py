"""The worker's wheels: numpy and the inference engine, pinned, for the device's Python and architecture.

They are fetched once into a cache on the host and shipped as blobs; the device needs no package index.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toggle_runtime.facts import gather

from toggle_edge.errors import FleetError

PINS = {
    "3.8": ("onnxruntime==1.19.2", "numpy==1.24.4"),
    "3.9": ("onnxruntime==1.19.2", "numpy==2.0.2"),
    "3.10": ("onnxruntime==1.23.2", "numpy==2.2.6"),
    "3.11": ("onnxruntime==1.31.1", "numpy==2.4.6"),
    "3.12": ("onnxruntime==1.31.1", "numpy==2.4.6"),
    "3.13": ("onnxruntime==1.31.1", "numpy==2.4.6"),
}
"""The newest wheels that exist for each Python, together. They need nothing else to run a graph."""

_GLIBC_FLOOR = 17  # the oldest manylinux generation (2.17) that these projects ever built for
_TAG = re.compile(r"manylinux_2_(\d+)_(\w+)\.?")


@dataclass(frozen=True, slots=True)
class WheelFile:
    """A wheel in the cache, with the digest and size that the device will check."""

    path: Path
    sha256: str
    size: int

    @property
    def name(self) -> str:
        return self.path.name


def environment_id(wheels: list[WheelFile]) -> str:
    """Names the environment made of these wheels: equal wheels, equal name."""
    return hashlib.sha256("\n".join(sorted(wheel.sha256 for wheel in wheels)).encode()).hexdigest()


def cache_folder() -> Path:
    """`$TOGGLE_EDGE_CACHE`, or `~/.cache/toggle-edge/wheels`."""
    return Path(os.environ.get("TOGGLE_EDGE_CACHE") or Path.home() / ".cache" / "toggle-edge" / "wheels")


def worker_wheels(facts: Mapping[str, Any], cache: Path | None = None) -> list[WheelFile]:
    """The wheels for a device with these `facts` (the agent's answer), fetched if the cache lacks one.

    Raises FleetError when no such wheels exist, or when they cannot be fetched.
    """
    version, machine, minor = _platform_of(facts)
    folder = (cache or cache_folder()) / f"cp{version.replace('.', '')}-{machine}"
    wheels = [_cached(folder, pin, minor) for pin in PINS[version]]
    if None in wheels:
        _fetch(folder, version, machine, minor)
        wheels = [_cached(folder, pin, minor) for pin in PINS[version]]
    found = [_describe(path) for path in wheels if path is not None]
    if len(found) != len(PINS[version]):
        raise FleetError(
            f"worker wheels: expected {PINS[version]} in {folder}, got {[w.name for w in found]}"
        )
    return found


def prefetch() -> None:
    """Fetch the wheels for this interpreter and machine, so that later runs need no network."""
    worker_wheels(gather(Path.cwd()))


def _platform_of(facts: Mapping[str, Any]) -> tuple[str, str, int]:
    version = ".".join(str(facts["python"]).split(".")[:2])
    what = " ".join(str(facts[key]) for key in ("implementation", "python", "system", "machine", "libc"))
    if facts["implementation"] != "CPython" or version not in PINS:
        raise FleetError(
            f"worker wheels: expected CPython {', '.join(PINS)} on the device, got {what}; "
            "set `python` in the device file to another interpreter"
        )
    if facts["system"] != "Linux" or facts["libc"] != "glibc":
        raise FleetError(f"worker wheels: onnxruntime publishes them for Linux with glibc only, got {what}")
    return version, str(facts["machine"]), int(str(facts["libc_version"]).split(".")[1])


def _cached(folder: Path, pin: str, minor: int) -> Path | None:
    name, _, version = pin.partition("==")
    for path in sorted(folder.glob(f"{name}-{version}-*.whl")):
        floors = [int(floor) for floor, _ in _TAG.findall(path.stem)]
        if floors and min(floors) <= minor:
            return path
    return None


def _fetch(folder: Path, version: str, machine: str, minor: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tags = [f"manylinux_2_{generation}_{machine}" for generation in range(_GLIBC_FLOOR, minor + 1)]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    command += ["--implementation", "cp", "--python-version", version]
    for tag in tags:
        command += ["--platform", tag]
    done = subprocess.run([*command, *PINS[version]], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise FleetError(
            f"worker wheels: cannot fetch {', '.join(PINS[version])} for CPython {version} on {machine} with "
            f"glibc 2.{minor}: {last[0]}; connect this host to a package index once, or copy the wheels into "
            f"{folder}"
        )


def _describe(path: Path) -> WheelFile:
    with path.open("rb") as stream:
        return WheelFile(path, hashlib.file_digest(stream, "sha256").hexdigest(), path.stat().st_size)
