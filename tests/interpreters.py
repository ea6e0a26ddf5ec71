"""The Pythons of this machine that a device might have, by version."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from functools import cache
from pathlib import Path

VERSIONS = ("3.8", "3.9", "3.10", "3.11", "3.12", "3.13", "3.14")


@cache
def interpreter(version: str) -> str | None:
    """A Python of that version that runs, or None. A name on the path may be a shim for one that is not there."""
    homes = {os.environ.get("PYENV_ROOT"), str(Path.home() / ".pyenv")}
    homes.add(str(Path(pwd.getpwuid(os.getuid()).pw_dir) / ".pyenv"))  # HOME may be set to an empty folder
    candidates = [shutil.which(f"python{version}")]
    for home in sorted(filter(None, homes)):
        candidates += map(str, sorted(Path(home).glob(f"versions/{version}.*/bin/python")))
    return next((path for path in candidates if path is not None and _is(path, version)), None)


def _is(path: str, version: str) -> bool:
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([path, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=30)
    except OSError:
        return False
    return done.returncode == 0 and done.stdout.strip() == version
