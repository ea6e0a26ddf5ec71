"""The watchdog over one worker process: whatever the worker does, the pass ends, with the right reason."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from toggle_runtime import supervise
from toggle_runtime.supervise import WorkerError, run_worker

ANSWER = 'print(\'{"event": "result", "value": 1}\', flush=True)\n'
PROGRESS = 'print(\'{"event": "progress", "done": 1}\', flush=True)\n'


def work(folder: Path, script: str, timeout_s: float = 30.0, request: Any = None) -> tuple[Any, list[Any]]:
    events: list[Any] = []
    result = run_worker(
        [sys.executable, "-I", "-S", "-c", script],
        request or {},
        folder,
        dict(os.environ),
        timeout_s,
        events.append,
        lambda pid: None,
    )
    return result, events


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_progress_and_result_are_seen_in_order(tmp_path: Path) -> None:
    result, events = work(tmp_path, PROGRESS + ANSWER)
    assert result == {"event": "result", "value": 1}
    assert [event["event"] for event in events] == ["progress", "result"]


def test_a_large_request_and_a_large_answer_do_not_block_each_other(tmp_path: Path) -> None:
    echo = "import sys, json\nprint(json.dumps({'event': 'result', 'size': len(sys.stdin.readline())}))"
    noise = "import sys\nfor _ in range(300): print('x' * 1000, file=sys.stderr)\n"
    result, _ = work(tmp_path, noise + echo, request={"blob": "y" * 1_000_000})
    assert result["size"] > 1_000_000


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL, not by the agent"),
        ("import os; os.kill(os.getpid(), 11)", "killed by SIGSEGV"),
        ("import os; os.kill(os.getpid(), 40)", "killed by signal 40"),
        ("raise ValueError('out of luck')", "status 1; its stderr ends: .*\n.*\nValueError: out of luck"),
        (ANSWER + "raise SystemExit(3)", "exited with status 3"),
        ("", "ended without a result"),
        ("print('hello')", "expected a JSON event from the worker, got b'hello'"),
        ("print('[1]')", "expected a JSON event"),
        ("print('[' * 100000)", "expected a JSON event"),
        ("import os; os.write(1, b'\\xff\\n')", "expected a JSON event"),
        ('print(\'{"event": "dance"}\')', "unexpected event 'dance'"),
        (ANSWER + ANSWER, "unexpected event 'result'"),
        ('print(\'{"event": "error", "message": "no model"}\'); raise SystemExit(1)', "no model"),
        ("print('x' * (17 << 20))", "line longer than 16777216 bytes"),
    ],
)
def test_a_broken_worker_is_an_error(tmp_path: Path, script: str, reason: str) -> None:
    with pytest.raises(WorkerError, match=f"(?s){reason}") as caught:
        work(tmp_path, script)
    assert caught.value.outcome == "ERROR"


@pytest.mark.parametrize("script", ["import time; time.sleep(60)", f"while True: {PROGRESS}"])
def test_a_worker_without_a_result_times_out(tmp_path: Path, script: str) -> None:
    with pytest.raises(WorkerError, match=r"no result within 0.5 s") as caught:
        work(tmp_path, script, timeout_s=0.5)
    assert caught.value.outcome == "TIMEOUT"


def test_the_end_of_stderr_is_told(tmp_path: Path) -> None:
    with pytest.raises(WorkerError) as caught:
        work(tmp_path, "import sys\nfor i in range(99): print('line', i, file=sys.stderr)\nsys.exit(7)")
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("its stderr ends: line 79")
    assert lines[-1] == "line 98"
    assert len(lines) == 20


def test_a_worker_that_answers_and_hangs_counts_and_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "EXIT_GRACE_S", 0.2)
    script = f"import os, time\nopen('pid', 'w').write(str(os.getpid()))\n{ANSWER}time.sleep(60)"
    assert work(tmp_path, script)[0]["value"] == 1
    assert gone(int((tmp_path / "pid").read_text()))


def test_children_of_the_worker_die_with_it(tmp_path: Path) -> None:
    # The child holds the pipes open: waiting for their end would wait for the child.
    child = "import subprocess\nchild = subprocess.Popen(['sleep', '60'])\n"
    script = f"{child}open('pid', 'w').write(str(child.pid))\n{ANSWER}"
    started = time.monotonic()
    assert work(tmp_path, script)[0]["value"] == 1
    assert time.monotonic() - started < 10
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 5
    while not gone(pid):
        assert time.monotonic() < deadline, "the worker's child is still there"
        time.sleep(0.01)
