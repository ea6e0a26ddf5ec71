"""The worker's wheels: numpy and the inference engine, pinned, for the device's Python and architecture. ExecuTorch's
engine is our runner, in a file of its own beside numpy's wheel.

They are fetched once into a cache on the host and shipped as blobs; the device needs no package index.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from toggle_runtime.facts import gather

from toggle_edge.cache import cache_folder
from toggle_edge.errors import ExportError, FleetError
from toggle_edge.fleet.device import Device
from toggle_edge.fleet.facts import DeviceFacts, read_facts

PINS = {
    "3.8": ("onnxruntime==1.19.2", "numpy==1.24.4"),
    "3.9": ("onnxruntime==1.19.2", "numpy==2.0.2"),
    "3.10": ("onnxruntime==1.23.2", "numpy==2.2.6"),
    "3.11": ("onnxruntime==1.31.1", "numpy==2.4.6"),
    "3.12": ("onnxruntime==1.31.1", "numpy==2.4.6"),
    "3.13": ("onnxruntime==1.31.1", "numpy==2.4.6"),
    "3.14": ("onnxruntime==1.31.1", "numpy==2.5.5"),
}
"""The newest wheels that exist for each Python, together. They need nothing else to run a graph."""

EXECUTORCH = "executorch-xnnpack"
RUNNER_GLIBC = 28
"""The oldest glibc 2 that the libraries of executorch's wheel run on."""

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


def worker_wheels(facts: DeviceFacts, cache: Path | None = None, target: str = "onnx-cpu") -> list[WheelFile]:
    """What runs bundles for `target` on a device with these `facts` (the agent's answer), fetched if need be.

    Raises FleetError when there is no such thing for the device, or when it cannot be fetched or built.
    """
    version, machine, minor = wheel_platform(facts)
    folder = (cache or cache_folder() / "wheels") / f"cp{version.replace('.', '')}-{machine}"
    lowered = target == EXECUTORCH
    pins = [pin for pin in PINS[version] if not (lowered and pin.startswith("onnxruntime=="))]
    wheels = [_cached(folder, pin, minor) for pin in pins]
    if None in wheels:
        _fetch(folder, pins, version, machine, minor)
        wheels = [_cached(folder, pin, minor) for pin in pins]
    found = [_describe(path) for path in wheels if path is not None]
    if len(found) != len(pins):
        raise FleetError(f"worker wheels: expected {pins} in {folder}, got {[w.name for w in found]}")
    return [*found, _runner(machine, minor)] if lowered else found


def _runner(machine: str, minor: int) -> WheelFile:
    from toggle_edge.export.executorch.runner import archive  # torch comes along, which no other target needs

    if minor < RUNNER_GLIBC:
        raise FleetError(
            f"executorch runner: expected glibc 2.{RUNNER_GLIBC} or later on the device, got 2.{minor}; export for an "
            "onnx-cpu target"
        )
    try:
        return _describe(archive(machine))
    except ExportError as exc:
        raise FleetError(str(exc)) from exc


def prefetch() -> None:
    """Fetch the wheels for this interpreter and machine, so that later runs need no network."""
    here = Device(name="here", transport="local")
    worker_wheels(read_facts(gather(Path.cwd()), here))


def wheel_platform(facts: DeviceFacts) -> tuple[str, str, int]:
    """The device's Python (`3.11`), architecture, and glibc's minor version. Raises FleetError where no wheels fit."""
    version = ".".join(facts.python.split(".")[:2])
    what = f"{facts.implementation} {facts.python} {facts.system} {facts.machine} {facts.libc}"
    if facts.implementation != "CPython" or version not in PINS:
        raise FleetError(
            f"worker wheels: expected CPython {', '.join(PINS)} on the device, got {what}; "
            "set `python` in the device file to another interpreter"
        )
    minor = re.fullmatch(r"2\.(\d{1,3})", facts.libc_version)
    if facts.system != "Linux" or facts.libc != "glibc" or minor is None:
        raise FleetError(
            "worker wheels: onnxruntime publishes them for Linux with glibc 2 only, got "
            f"{what} {facts.libc_version}"
        )
    # It becomes a folder's name and an argument of pip, and a device may say anything.
    if not re.fullmatch(r"[a-z0-9_]{1,32}", facts.machine):
        raise FleetError(
            f"worker wheels: expected an architecture such as aarch64, got {facts.machine[:60]!r}"
        )
    return version, facts.machine, int(minor[1])


def _cached(folder: Path, pin: str, minor: int) -> Path | None:
    name, _, version = pin.partition("==")
    for path in sorted(folder.glob(f"{name}-{version}-*.whl")):
        floors = [int(floor) for floor, _ in _TAG.findall(path.stem)]
        if floors and min(floors) <= minor:
            return path
    return None


def _fetch(folder: Path, pins: list[str], version: str, machine: str, minor: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tags = [f"manylinux_2_{generation}_{machine}" for generation in range(_GLIBC_FLOOR, minor + 1)]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    command += ["--implementation", "cp", "--python-version", version]
    for tag in tags:
        command += ["--platform", tag]
    done = subprocess.run([*command, *pins], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise FleetError(
            f"worker wheels: cannot fetch {', '.join(pins)} for CPython {version} on {machine} with "
            f"glibc 2.{minor}: {last[0]}; connect this host to a package index once, or copy the wheels into "
            f"{folder}"
        )


def _describe(path: Path) -> WheelFile:
    with path.open("rb") as stream:
        return WheelFile(path, hashlib.file_digest(stream, "sha256").hexdigest(), path.stat().st_size)
