"""The C++ runner: built from the source that is shipped, once per version and architecture, into the cache."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import zipfile
from pathlib import Path

from toggle_edge.cache import cache_folder, locked
from toggle_edge.errors import ExportError
from toggle_edge.export.executorch.overlay import VERSION, sdk

COMPILERS = {"x86_64": "x86_64-linux-gnu-g++", "aarch64": "aarch64-linux-gnu-g++"}
PROGRAM = "executorch_runner"
LIBRARIES = (
    "executorch",
    "executorch_threadpool",
    "executorch_kernels_optimized",
    "executorch_kernels_quantized",
    "executorch_backend_xnnpack",
)
"""What the runner is linked with, and what must lie in `lib/` beside it. 12 to 15 MB."""

# C10_USING_CUSTOM_GENERATED_MACROS: the wheel has no generated cmake_macros.h. The other changes a class's layout
# in the headers, and the libraries were compiled with it.
FLAGS = (
    "-std=c++17",
    "-O2",
    "-Wall",
    "-Wextra",
    "-DC10_USING_CUSTOM_GENERATED_MACROS",
    "-DET_EVENT_TRACER_ENABLED",
)


def source() -> Path:
    """The runner's source: in an installed wheel, else in the checkout."""
    package = Path(__file__).resolve().parents[2]
    packed = package / "_data" / "executorch_runner"
    folder = packed if packed.is_dir() else package.parent / "runtime" / "executorch_runner"
    return folder / "runner.cpp"


def compiler_for(machine: str) -> str | None:
    """A compiler for the architecture on the path, None without one. This machine's own may be called plainly."""
    own = ("g++",) if machine == platform.machine() else ()
    return next((name for name in (COMPILERS[machine], *own) if shutil.which(name)), None)


def runner(machine: str) -> Path:
    """The folder with the runner for an architecture, and its libraries in `lib/`; built if the cache lacks it.

    Raises ExportError, with the remedy, where there is no compiler, or no wheel to build against.
    """
    code = source().read_bytes()
    digest = hashlib.sha256(code + " ".join((*FLAGS, *LIBRARIES)).encode()).hexdigest()[:12]
    folder = cache_folder() / "executorch" / f"runner-{machine}-{VERSION}-{digest}"
    if folder.is_dir():
        return folder
    compiler, built_with = compiler_for(machine), sdk(machine)
    if compiler is None:
        raise ExportError(
            f"executorch runner: expected a C++ compiler for {machine} ({COMPILERS[machine]}) on the path, found none; "
            f"install g++{'' if machine == platform.machine() else '-' + machine.replace('_', '-') + '-linux-gnu'}"
        )
    with locked(folder.parent / "lock"):
        if not folder.is_dir():  # built while we waited
            _build(compiler, built_with, folder)
    return folder


def archive(machine: str) -> Path:
    """The runner of an architecture as one file, which a worker environment unpacks into a folder of the runner's name;
    equal runners give equal bytes. Raises ExportError as `runner` does."""
    folder = runner(machine)
    path = folder.with_name(f"{folder.name}.zip")
    if path.is_file():
        return path
    with locked(folder.parent / "lock"), tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch) / "made"
        with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as packed:
            contents = {
                "version": VERSION.encode(),
                **{
                    str(each.relative_to(folder)): each.read_bytes()
                    for each in folder.rglob("*")
                    if each.is_file()
                },
            }
            for name, content in sorted(contents.items()):
                entry = zipfile.ZipInfo(f"{PROGRAM}/{name}", (1980, 1, 1, 0, 0, 0))
                entry.external_attr = (0o755 if name == PROGRAM else 0o644) << 16
                packed.writestr(entry, content, zipfile.ZIP_DEFLATED)
        made.replace(path)
    return path


def _build(compiler: str, wheel: Path, folder: Path) -> None:
    include = wheel / "include"
    with tempfile.TemporaryDirectory(prefix=".building-", dir=folder.parent) as scratch:
        made = Path(scratch) / "made"
        (made / "lib").mkdir(parents=True)
        command = [compiler, *FLAGS]
        for path in (include, include / "executorch" / "runtime" / "core" / "portable_type" / "c10"):
            command += ["-isystem", str(path)]
        command += [str(source()), "-o", str(made / PROGRAM), "-L", str(wheel / "lib")]
        command += ["-Wl,--no-as-needed", *(f"-l{name}" for name in LIBRARIES), "-Wl,-rpath,$ORIGIN/lib"]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"}
        )
        if done.returncode != 0:
            first = next((line for line in done.stderr.splitlines() if "error" in line), "no message")
            raise ExportError(f"executorch runner: {compiler} cannot build it: {first}")
        for name in LIBRARIES:
            shutil.copyfile(wheel / "lib" / f"lib{name}.so", made / "lib" / f"lib{name}.so")
        made.replace(folder)
