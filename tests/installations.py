"""Python environments with a few packages and nothing else, for what users have who lack toggle-edge."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement

_START = "import sys; sys.path[:] = {paths!r} + sys.path; exec(sys.stdin.read())"


def linked_site(folder: Path, *names: str) -> Path:
    """A site folder with these distributions, what they require, and no other: links to the ones installed here."""
    folder.mkdir()
    wanted, seen = list(names), set()
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        found = distribution(name)
        for top in {
            path.parts[0] for path in found.files or () if path.parts[0] not in ("..", "__pycache__")
        }:
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(str(found.locate_file(top))).resolve())
        needed = map(Requirement, found.requires or ())
        wanted += [each.name for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})]
    return folder


def run_in(
    sites: Sequence[Path], code: str, *arguments: object, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run Python code in a fresh process that finds packages in `sites` alone; they see `sys.argv[1:]`."""
    start = _START.format(paths=[str(site) for site in sites])
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", start, *map(str, arguments)],
        input=code,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=cwd,
        env={"PATH": os.environ.get("PATH", ""), "ORT_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"},
    )


@cache
def fetched_site(requirement: str) -> Path | None:
    """A site folder with one distribution, without what it requires; None where no package index has it for us.

    Fetched once for all tests of a process; pip keeps the wheel for the next.
    """
    folder = Path(tempfile.mkdtemp(prefix="toggle-edge-site-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--no-deps"]
    command += ["--only-binary=:all:", "--no-compile", "--retries", "1", "--target", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    return folder if done.returncode == 0 else None
