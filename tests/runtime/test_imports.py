"""What Python keeps of a module that it compiled is whole, or is not there."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import toggle_runtime

RUNTIME = Path(toggle_runtime.__file__).parents[1]
CODE = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from toggle_runtime.imports import use_environment
use_environment(Path(sys.argv[2]))
import engine.core, json
print(engine.core.answer(), engine.core.__file__, json.__file__)
"""


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    folder = tmp_path / "environment"
    (folder / "engine").mkdir(parents=True)
    (folder / "engine" / "__init__.py").write_text("")
    (folder / "engine" / "core.py").write_text(f"data = {'x' * 50_000!r}\ndef answer(): return 42\n")
    (folder / "json.py").write_text("raise SystemExit('the standard library was shadowed')\n")
    return folder


def imported(environment: Path, before: Callable[[], None] = lambda: None) -> str:
    command = [sys.executable, "-I", "-S", "-c", CODE, str(RUNTIME), str(environment)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, preexec_fn=before)
    return done.stdout


def kept(environment: Path) -> list[Path]:
    return sorted((environment / "engine" / "__pycache__").glob("*"))


def test_what_is_compiled_is_kept_and_used(environment: Path) -> None:
    assert imported(environment).split()[:2] == ["42", str(environment / "engine" / "core.py")]
    assert [path.name.split(".")[0] for path in kept(environment)] == ["__init__", "core"]
    moments = [path.stat().st_mtime_ns for path in kept(environment)]
    imported(environment)
    assert [path.stat().st_mtime_ns for path in kept(environment)] == moments


def test_what_cannot_be_written_whole_is_not_kept(environment: Path) -> None:
    """Files of this process end at 4,000 bytes, as on a disk that is full: the first write is cut short without an
    error, which is what Python's own way of keeping does not look at."""

    def small_files() -> None:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))

    assert imported(environment, small_files).startswith("42 ")
    assert [path.name.split(".")[0] for path in kept(environment)] == ["__init__"]
    assert imported(environment).startswith("42 ")
    assert len(kept(environment)) == 2


@pytest.mark.parametrize("size", [0, 10, 16, 500])
def test_what_was_kept_in_part_is_made_again(environment: Path, size: int) -> None:
    imported(environment)
    [core] = [path for path in kept(environment) if path.name.startswith("core")]
    whole = core.read_bytes()
    core.write_bytes(whole[:size])
    assert imported(environment).startswith("42 ")
    assert core.read_bytes() == whole


@pytest.mark.skipif(os.getuid() == 0, reason="root writes everywhere")
def test_an_environment_that_cannot_be_written_is_read(environment: Path) -> None:
    (environment / "engine").chmod(0o555)
    assert imported(environment).startswith("42 ")
