"""Workers: who evaluates does not show in what is found, and none of them outlives the search."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import remote_evaluations as remote
from search_problems import MODES, SPACE, Memory, evaluate

from toggle_edge.errors import SearchError
from toggle_edge.search.executors import LocalProcesses
from toggle_edge.search.seeds import initial_design
from toggle_edge.search.study import Study
from toggle_edge.search.trial import Trial

TRIALS, BATCH = 6, 4
TESTS = Path(__file__).parents[1]


def study(ledger: Memory) -> Study:
    """Its first batch are the uniform configs, from 16 bits down; its second one is proposed."""
    initial = initial_design(SPACE)
    return Study(SPACE, ledger, seed=0, max_trials=TRIALS, modes=MODES, initial=initial, batch=BATCH)


@pytest.fixture(scope="module")
def whole() -> tuple[Trial, ...]:
    return study(Memory()).run(evaluate)


def until(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} within {seconds} s"
        time.sleep(0.05)


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def processes(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir()]


def test_workers_are_other_processes_and_results_come_in_order(whole: tuple[Trial, ...]) -> None:
    with LocalProcesses(2) as executor:
        trials = study(Memory()).run(remote.noted, executor=executor)
    workers = {trial.payload["process"] for trial in trials}
    assert os.getpid() not in workers
    assert 1 <= len(workers) <= 2
    assert [trial.observation for trial in trials] == [trial.observation for trial in whole]
    assert not any(isinstance(worker, int) and alive(worker) for worker in workers)


def test_a_worker_that_is_killed_ends_the_search_and_it_goes_on_as_if_it_had_not(
    whole: tuple[Trial, ...],
) -> None:
    ledger = Memory()
    with (
        pytest.raises(SearchError, match=r"one ended without: killed, or out of memory.*fewer workers"),
        LocalProcesses(2) as executor,
    ):
        study(ledger).run(remote.deadly, executor=executor)
    # Nothing half-recorded: what is there is the beginning of what would have been there.
    kept = len(ledger.kept)
    assert tuple(ledger.kept) == whole[:kept]
    assert kept < BATCH, "the killed one is of the first batch"
    with LocalProcesses(2) as executor:
        assert study(ledger).run(evaluate, executor=executor) == whole


def test_an_error_in_a_worker_arrives_as_itself() -> None:
    with pytest.raises(ValueError, match="expected another config than"), LocalProcesses(1) as executor:
        study(Memory()).run(remote.mistaken, executor=executor)


def test_leaving_on_an_error_does_not_wait_for_what_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROCESSES", str(tmp_path))

    def interrupt(trial: Trial) -> None:
        until(lambda: len(processes(tmp_path)) > 0, "a worker begins")
        raise KeyboardInterrupt

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt), LocalProcesses(2) as executor:
        study(Memory()).run(remote.endless, interrupt, executor=executor)
    assert time.monotonic() - begun < remote.LONG_S / 3
    assert not any(map(alive, processes(tmp_path)))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_the_search_however_it_ends(how: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, str(TESTS / "remote_evaluations.py"), "2"]
    environment = {**os.environ, "PROCESSES": str(tmp_path)}
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as search:
        try:
            until(lambda: len(processes(tmp_path)) == 2 or search.poll() is not None, "two workers begin")
            if how == signal.SIGINT:  # as a terminal does it: to all of them
                os.killpg(search.pid, how)
            else:
                search.send_signal(how)
            _, said = search.communicate(timeout=60)
            until(lambda: not any(map(alive, processes(tmp_path))), "all workers end")
        finally:
            search.kill()
    assert search.returncode == -how
    if how == signal.SIGINT:
        assert said.count("KeyboardInterrupt") == 1, "only the search itself is told"
