"""A worker environment found on the device: wheels that lie there, what a host left, or packages installed there.

Each is tried by importing numpy and onnxruntime in a process as bare as a worker's, so that what is chosen runs.
"""

import hashlib
import json
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, List, Tuple

from toggle_runtime import environments
from toggle_runtime.blobs import write_durably
from toggle_runtime.imports import FOUND, packages_of
from toggle_runtime.ingest import describe_file, take_file
from toggle_runtime.wire import RequestError

NEEDED = ("numpy", "onnxruntime")

_TRIAL_S = 300.0
_TRIAL = (
    "import json, sys; sys.path.append(sys.argv[1]); import numpy, onnxruntime; "
    "onnxruntime.InferenceSession; "
    "print(json.dumps({'numpy': numpy.__version__, 'onnxruntime': onnxruntime.__version__}))"
)


@dataclass(frozen=True)
class Engine:
    """A folder that has numpy and onnxruntime in these versions, and where it was found, in words."""

    folder: Path
    versions: Dict[str, str]
    found: str


def find(root: Path, beside: List[Path]) -> Engine:
    """The first environment that works: of wheels in the folders `beside`, of `root`, of this interpreter.

    Raises RequestError of kind `environment`, with what is wrong with each.
    """
    problems = []
    for found, folder in _candidates(root, beside):
        try:
            return Engine(folder, _versions(packages_of(folder)), found)
        except RequestError as exc:
            problems.append(f"{found}: {exc}")
    tried = (
        "; ".join(problems) or "there are no wheels, no environment that a host left, and no such packages"
    )
    raise RequestError(
        "environment",
        f"expected {' and '.join(NEEDED)} for {platform.python_implementation()} {platform.python_version()} on "
        f"{platform.machine()} in one folder, found none that works: {tried}. Put their wheels beside the bundle (on a "
        f"machine with a network: python3 -m pip download --no-deps {' '.join(NEEDED)}), or install both here",
    )


def look(folder: str) -> Dict[str, str]:
    """The versions of the device's own numpy and onnxruntime in a folder. Raises RequestError, kind `environment`,
    where it has not both, or they cannot be imported."""
    if not Path(folder).is_absolute():
        raise RequestError(
            "environment", f"packages: expected an absolute folder of the device, got {folder!r}"
        )
    for name in NEEDED:
        if not (Path(folder) / name / "__init__.py").is_file():
            raise RequestError(
                "environment", f"packages: expected {' and '.join(NEEDED)} in {folder}, found no {name}"
            )
    try:
        return _versions(Path(folder))
    except RequestError as exc:
        raise RequestError("environment", f"packages: {folder}: {exc}") from exc


def adopt(root: Path, folder: str) -> Tuple[str, Dict[str, str]]:
    """A worker environment that is the device's own packages in that folder: its name, made from folder and versions,
    and the versions. Raises as `look`."""
    versions = look(folder)
    told = json.dumps([folder, versions], sort_keys=True)
    name = hashlib.sha256(told.encode("utf-8")).hexdigest()
    final = environments.folder_of(root, name)
    final.mkdir(parents=True, exist_ok=True)
    write_durably(final / FOUND, folder.encode("utf-8"))
    return name, versions


def _candidates(root: Path, beside: List[Path]) -> Iterator[Tuple[str, Path]]:
    for folder in beside:
        wheels = _fitting(folder)
        if len(wheels) == len(NEEDED):
            yield f"wheels in {folder}", _unpacked(root, wheels)
    made = [path for path in (root / "environments").glob("*") if not path.name.startswith("unpacking-")]
    for path in sorted(made, key=lambda path: path.stat().st_mtime, reverse=True):
        yield "left here by a host", path
    for entry in sys.path:
        if all((Path(entry) / name / "__init__.py").is_file() for name in NEEDED):
            yield f"installed in {entry}", Path(entry).absolute()


def _fitting(folder: Path) -> List[Path]:
    """The newest wheel of each needed package, by its name, for this interpreter and machine."""
    python = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    chosen = []
    for name in NEEDED:
        fitting = [
            path
            for path in sorted(folder.glob(f"{name}-*.whl"))
            if {python, "py3", "abi3"} & set(path.stem.replace(".", "-").split("-"))
            and (platform.machine() in path.stem or path.stem.endswith("-any"))
        ]
        chosen += fitting[-1:]
    return chosen


def _unpacked(root: Path, wheels: List[Path]) -> Path:
    described = []
    for path in wheels:
        blob = describe_file(path)
        take_file(root, path, blob)
        described.append(environments.Wheel(blob.sha256, blob.size, path.name))
    # Named as hosts name it, so that theirs and this are one.
    name = hashlib.sha256("\n".join(sorted(wheel.sha256 for wheel in described)).encode("ascii")).hexdigest()
    return environments.prepare(root, name, described)


def _versions(folder: Path) -> Dict[str, str]:
    command = [sys.executable, "-B", "-I", "-S", "-c", _TRIAL, str(folder)]
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            timeout=_TRIAL_S,
        )
    except subprocess.TimeoutExpired as exc:
        raise RequestError("environment", f"importing it took more than {_TRIAL_S:g} s") from exc
    if done.returncode != 0:
        last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["no message"]
        raise RequestError("environment", f"it cannot be imported ({last[0][:200]})")
    return {str(name): str(version) for name, version in json.loads(done.stdout.decode("utf-8")).items()}
