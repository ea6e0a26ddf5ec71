"""A worker that the kernel kills for lack of memory is told from one that anybody else killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from toggle_runtime import kills
from toggle_runtime.supervise import WorkerError, run_worker

LIMIT = 64 << 20
GREEDY = "held = []\nwhile True: held.append(bytearray(b'x') * (4 << 20))"


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of our own that may use 64 MiB."""
    unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    folder = Path("/sys/fs/cgroup" if unified else "/sys/fs/cgroup/memory") / f"toggle-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / ("memory.max" if unified else "memory.limit_in_bytes")).write_text(str(LIMIT))
    except OSError as exc:
        if folder.is_dir():
            folder.rmdir()
        pytest.skip(f"no memory control group can be made here: {exc}")
    swap = folder / ("memory.swap.max" if unified else "memory.swappiness")
    if swap.exists():
        swap.write_text("0")
    yield folder
    folder.rmdir()


def enter(group: Path) -> str:
    return f"import os\nopen({str(group / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))\n"


def reason_of(script: str, folder: Path) -> str:
    command = [sys.executable, "-I", "-S", "-c", script]
    with pytest.raises(WorkerError) as caught:
        run_worker(command, {}, folder, dict(os.environ), 60.0, lambda event: None, lambda pid: None)
    assert caught.value.outcome == "ERROR"
    return str(caught.value)


def test_a_worker_that_needs_too_much_memory_is_recognised(group: Path, tmp_path: Path) -> None:
    reason = reason_of(enter(group) + GREEDY, tmp_path)
    if "machine" not in kills.oom_kills():
        pytest.skip("this kernel counts no kills for lack of memory")
    assert reason.startswith("the worker was killed by the kernel for lack of memory (")
    assert "MiB are free now" in reason
    assert "choose a candidate with fewer bytes" in reason


def test_an_agent_inside_a_limited_group_names_the_limit(group: Path, tmp_path: Path) -> None:
    # The agent itself is in the group here, so the group's own counter and limit are its to read.
    runtime = str(Path(kills.__file__).parents[1])
    agent = (
        f"{enter(group)}import sys; sys.path.insert(0, {runtime!r})\n"
        "from pathlib import Path\n"
        "from toggle_runtime import kills\n"
        "from toggle_runtime.supervise import WorkerError, run_worker\n"
        "print(kills.memory_limit())\n"
        "before = kills.oom_kills()\n"
        "try:\n"
        f"    run_worker([sys.executable, '-I', '-S', '-c', {GREEDY!r}], {{}}, Path({str(tmp_path)!r}), {{}}, 60.0,\n"
        "               lambda event: None, lambda pid: None)\n"
        "except WorkerError as exc:\n"
        "    print(exc)\n"
        "print({name: kills.oom_kills()[name] - count for name, count in before.items()})\n"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", agent], capture_output=True, text=True)
    limit, reason, counted = done.stdout.splitlines()
    assert int(limit) == LIMIT, done.stderr
    assert reason.startswith("the worker was killed by the kernel for lack of memory (")
    assert "the agent's control group may use 64 MiB" in reason
    assert "'group': 1" in counted


def test_a_kill_by_somebody_else_is_not_blamed_on_memory(tmp_path: Path) -> None:
    reason = reason_of("import os; os.kill(os.getpid(), 9)", tmp_path)
    assert reason.startswith("the worker was killed by SIGKILL, not by the agent (")
    assert "for lack of memory (" not in reason


@pytest.mark.parametrize(
    ("number", "before", "after", "expected"),
    [
        (signal.SIGKILL, {"machine": 3}, {"machine": 4}, "by the kernel for lack of memory"),
        (signal.SIGKILL, {"machine": 3, "group": 0}, {"machine": 3, "group": 1}, "by the kernel for lack"),
        (signal.SIGKILL, {"machine": 3}, {"machine": 3}, "the kernel counts no kill for lack of memory"),
        (signal.SIGKILL, {}, {"machine": 9}, "the kernel counts no such kills here"),
        (signal.SIGKILL, {"group": 2}, {}, "not by the agent"),
        (signal.SIGSEGV, {"machine": 3}, {"machine": 4}, "killed by SIGSEGV"),
        (40, {}, {}, "killed by signal 40"),
    ],
)
def test_only_a_counter_that_rose_is_a_proof(
    monkeypatch: pytest.MonkeyPatch, number: int, before: dict[str, int], after: dict[str, int], expected: str
) -> None:
    monkeypatch.setattr(kills, "oom_kills", lambda: after)
    assert expected in kills.why_killed(number, before)


@pytest.mark.parametrize(
    ("files", "limit", "counted"),
    [
        (
            {
                "/proc/self/cgroup": "0::/box\n",
                "/sys/fs/cgroup/box/memory.max": "1048576\n",
                "/sys/fs/cgroup/box/memory.events": "low 0\noom 2\noom_kill 2\n",
            },
            1048576,
            {"group": 2},
        ),
        ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/memory.max": "max\n"}, None, {}),
        (
            {
                "/proc/self/cgroup": "5:cpu:/a\n8:memory:/box\n0::/\n",
                "/sys/fs/cgroup/memory/box/memory.limit_in_bytes": "9223372036854771712\n",
                "/sys/fs/cgroup/memory/box/memory.oom_control": "under_oom 0\noom_kill 7\n",
                "/proc/vmstat": "nr_free 1\noom_kill 9\n",
            },
            None,
            {"machine": 9, "group": 7},
        ),
        ({}, None, {}),
    ],
)
def test_both_versions_of_control_groups_and_none_are_read(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, str], limit: int | None, counted: dict[str, int]
) -> None:
    unified = not any("/memory/" in name for name in files)
    monkeypatch.setattr(kills, "_text", lambda path: files.get(path, ""))
    monkeypatch.setattr(Path, "exists", lambda self: unified)
    assert (kills.memory_limit(), kills.oom_kills()) == (limit, counted)
