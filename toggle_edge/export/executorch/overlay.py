"""The overlay: executorch and what it needs, in a folder that only the process that lowers has on its path.

Its requirements and ours cannot be met in one environment (two antlr runtimes). So it is fetched without them, once per
set of versions, into the cache, and torch stays the one that is there.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from toggle_edge.cache import cache_folder, locked
from toggle_edge.errors import ExportError

VERSION = "1.5.1"
PINS = (
    f"executorch=={VERSION}",
    "torchao==0.18.0",
    "flatbuffers==25.12.19",
    "parameterized==0.9.0",
    "ruamel.yaml==0.19.1",
    "tabulate==0.10.0",
)
"""All that lowering imports beside torch, numpy and packaging. 160 MB unpacked."""

MACHINES = {"x86_64": "manylinux_2_28_x86_64", "aarch64": "manylinux_2_28_aarch64"}
"""Architectures for which the wheel ships the runtime's libraries, and its tag for each."""


def overlay() -> Path:
    """The folder, fetched if the cache lacks it. Raises ExportError, with the remedy, where it cannot be."""
    return _made("overlay", PINS, [])


def sdk(machine: str) -> Path:
    """The `executorch` folder of an architecture's wheel: headers and shared libraries. Raises ExportError."""
    if machine not in MACHINES:
        raise ExportError(f"executorch: expected one of {', '.join(MACHINES)}, got {machine!r}")
    if machine == platform.machine():
        return overlay() / "executorch"
    choice = ["--only-binary=:all:", "--platform", MACHINES[machine], "--implementation", "cp"]
    return _made(f"sdk-{machine}", PINS[:1], [*choice, "--python-version", "3.11"]) / "executorch"


def prefetch() -> None:
    """Fetch all of it, so that nothing is fetched later; says what cannot be."""
    try:
        overlay()
        for machine in MACHINES:
            sdk(machine)
    except ExportError as exc:
        print(f"note: {exc}", file=sys.stderr)


def _made(kind: str, pins: Sequence[str], choice: Sequence[str]) -> Path:
    digest = hashlib.sha256("\n".join([*pins, *choice, sys.version.split()[0]]).encode()).hexdigest()[:12]
    folder = cache_folder() / "executorch" / f"{kind}-{VERSION}-{digest}"
    if folder.is_dir():
        return folder
    try:
        with locked(folder.parent / "lock"):
            if not folder.is_dir():  # made while we waited
                _fetch(folder, pins, choice)
    except OSError as exc:
        raise ExportError(f"executorch: {folder} cannot be written: {exc}; free some space there") from exc
    return folder


def _fetch(folder: Path, pins: Sequence[str], choice: Sequence[str]) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--no-deps"]
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder.parent) as scratch:
        made = Path(scratch) / "made"
        done = subprocess.run(
            [*command, "--target", str(made), *choice, *pins],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PIP_ROOT_USER_ACTION": "ignore"},
        )
        if done.returncode != 0:
            last = done.stderr.strip().splitlines()[-1:] or ["no message"]
            raise ExportError(
                f"executorch: cannot fetch {', '.join(pins)} into {folder.parent}: {last[0]}; connect this host to a "
                "package index once, or copy that folder from a host where it was fetched"
            )
        shutil.move(made, folder)
