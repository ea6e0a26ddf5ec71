"""A host that is killed at any moment: the same command again makes whole what it left, and repeats nothing.

The kills themselves are those of `benchmarks/resume.py`, one in each stage of one search. The other tests show that
what it compares would be noticed.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ROW = {"created": "2026-11-21T00:00:00"}


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


aftermath = load("aftermath")
resume = load("resume")


@pytest.mark.timeout(900)
def test_a_search_killed_in_every_stage_ends_like_one_that_was_not() -> None:
    """Four kills of one command, in mid-search, mid-export, mid-deploy and mid-run, over SSH where sshd is there."""
    command = [sys.executable, str(BENCHMARKS / "resume.py"), "--kills=4", "--in-a-row=4", "--seed=3"]
    command += ["--trials=14", "--candidates=1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    stages = [line.split()[1] for line in done.stdout.splitlines()[2:6]]
    assert stages == ["search", "export", "deploy", "run"]
    assert done.stdout.endswith("4 of 4 kills: nothing lost, evaluated again, different or left\n")


def rows(trials: int, run: str) -> dict[str, list[dict[str, Any]]]:
    return {
        "studies": [{**ROW, "id": 1, "sensitivity": "{}"}],
        "trials": [{**ROW, "index": index, "config_digest": f"c{index}"} for index in range(trials)],
        "bundles": [{"digest": "b"}],
        "runs": [{**ROW, "run_id": run, "bundle": "b"}],
        "measurements": [],
    }


REFERENCE = aftermath.State(rows(3, "r0"), {"fp16": "b"}, frozenset({"torch"}))
KILLED = aftermath.State({**rows(2, "r1"), "runs": [], "bundles": []}, {}, frozenset())
RESUMED = aftermath.State(rows(3, "r2"), {"fp16": "b"}, frozenset({"torch"}))


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A work folder as a finished search leaves it."""
    run = tmp_path / "device" / "device" / "runs" / "r2"
    run.mkdir(parents=True)
    (run / "record.json").write_text("{}")
    (tmp_path / "device" / "device" / "lease").touch()
    return tmp_path


def test_a_search_that_went_on_well_has_no_problems(work: Path) -> None:
    assert aftermath.problems(work, KILLED, RESUMED, REFERENCE) == []
    assert list(aftermath.losses(KILLED, RESUMED)) == []


def changed(state: Any, table: str, row: int, **values: Any) -> Any:
    altered = [{**old, **values} if index == row else old for index, old in enumerate(state.rows[table])]
    return replace(state, rows={**state.rows, table: altered})


@pytest.mark.parametrize(
    ("resumed", "problem"),
    [
        (changed(RESUMED, "trials", 2, config_digest="other"), "from 2 on"),
        (changed(RESUMED, "trials", 0, index=7), "from 0 on"),
        (replace(RESUMED, rows={**RESUMED.rows, "trials": RESUMED.rows["trials"][:2]}), "from the last on"),
        (replace(RESUMED, bundles={"fp16": "other"}), "bundles differ from an uninterrupted run's: fp16"),
        (replace(RESUMED, bundles={}), "bundles differ"),
        (replace(RESUMED, rows={**RESUMED.rows, "runs": []}), "got 0 new runs"),
        (replace(RESUMED, temporary=frozenset({"torch", "tmpabc"})), "temporary folder: tmpabc"),
    ],
)
def test_what_differs_from_an_uninterrupted_search_is_noticed(work: Path, resumed: Any, problem: str) -> None:
    found = aftermath.problems(work, KILLED, resumed, REFERENCE)
    assert any(problem in each for each in found), found


def test_measurements_from_before_the_kill_are_not_taken_for_new(work: Path) -> None:
    measured = replace(KILLED, rows=RESUMED.rows)
    assert "got 0 new runs" in aftermath.problems(work, measured, RESUMED, REFERENCE)[0]


@pytest.mark.parametrize(
    ("table", "values"),
    [
        ("trials", {"created": "2026-11-21T00:00:01"}),
        ("trials", {"config_digest": "other"}),
        ("studies", {"sensitivity": '{"a": 1}'}),
        ("studies", {"created": "2026-11-21T00:00:01"}),
    ],
)
def test_a_recorded_row_that_was_written_again_is_noticed(table: str, values: dict[str, str]) -> None:
    (problem,) = aftermath.losses(KILLED, changed(RESUMED, table, 0, **values))
    assert f"recorded {table} were lost or changed" in problem


def test_sensitivities_may_be_filled_in_after_the_kill() -> None:
    assert list(aftermath.losses(changed(KILLED, "studies", 0, sensitivity=None), RESUMED)) == []


def unfinished(run: Path) -> None:
    (run / "record.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (
            lambda work: (work / "bundles" / ".export-1").mkdir(parents=True),
            "half-written: bundles/.export-1",
        ),
        (lambda work: (work / "device" / "x.part").touch(), "half-written: device/x.part"),
        (lambda work: unfinished(work / "device/device/runs/r2"), "run without a record on the device: r2"),
        (lambda work: (work / "device/device/runs/r2/output").mkdir(), "left on the device: r2/output"),
    ],
)
def test_what_is_left_half_written_is_noticed(
    work: Path, spoil: Callable[[Path], object], problem: str
) -> None:
    spoil(work)
    (found,) = aftermath.problems(work, KILLED, RESUMED, REFERENCE)
    assert problem in found


def test_a_lease_and_a_process_that_outlive_the_host_are_noticed(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aftermath, "ENDING_S", 0.3)
    with (work / "device" / "device" / "lease").open("rb") as lease:
        fcntl.flock(lease, fcntl.LOCK_EX)
        (found,) = aftermath.problems(work, KILLED, RESUMED, REFERENCE)
    assert "lease is still held" in found
    command = [sys.executable, "-c", "print(flush=True); input()", str(work)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # until then the kernel may not show its command line yet
        (found,) = aftermath.problems(work, KILLED, RESUMED, REFERENCE)
        process.communicate(b"\n")
    assert f"process {process.pid} is still there" in found


def told(*lines: tuple[str, int, int, str]) -> list[Any]:
    return [resume.Event(float(at), *line) for at, line in enumerate(lines)]


def test_work_done_again_is_noticed_in_what_the_host_reports() -> None:
    good = told(("search", 2, 3, ""), ("search", 3, 3, ""))
    assert resume.repeated(KILLED, good) == []
    again = told(("sensitivity", 1, 9, ""), ("search", 1, 3, ""), ("search", 2, 3, ""), ("search", 3, 3, ""))
    assert resume.repeated(KILLED, again) == [
        "the recorded sensitivities were computed again",
        "recorded trials were evaluated again: [1]",
    ]
    unknown = changed(KILLED, "studies", 0, sensitivity=None)
    assert len(resume.repeated(unknown, again)) == 1


EVENTS = told(
    ("baseline", 3, 3, ""),
    ("sensitivity", 1, 1, ""),
    ("search", 0, 1, ""),
    ("search", 1, 1, ""),
    ("export", 0, 1, ""),
    ("export", 1, 1, ""),
    ("device", 0, 2, "fp16 upload 1/2"),
    ("device", 0, 2, "fp16 shipped"),
    ("device", 1, 2, "fp16 verify 1/2"),
    ("device", 1, 2, "fp16: PASS"),
    ("device", 1, 2, "trial-1 shipped"),
    ("device", 2, 2, "trial-1: PASS"),
    ("rerank", 1, 1, ""),
)


def test_an_event_is_known_again_in_a_run_that_takes_longer() -> None:
    fast, slow, later = told(
        ("search", 3, 9, "1 feasible · 0.2 s/trial"),
        ("search", 3, 9, "1 feasible · 2.5 s/trial"),
        ("search", 4, 9, "1 feasible · 2.5 s/trial"),
    )
    assert fast.key == slow.key != later.key
    shipped, running = told(("device", 0, 2, "fp16 shipped"), ("device", 0, 2, "fp16 verify 1/2"))
    assert shipped.key != running.key


def test_every_event_begins_a_piece_of_the_stage_that_follows_it() -> None:
    pieces = {
        stage: [EVENTS.index(event) for event, _ in each] for stage, each in resume.moments_of(EVENTS).items()
    }
    assert pieces == {"search": [1, 2], "export": [3, 4], "deploy": [5, 6, 9], "run": [7, 8, 10]}


def test_moments_are_drawn_inside_their_stage_and_fixed_by_the_seed() -> None:
    pieces = resume.moments_of(EVENTS)

    def draws(seed: int) -> Iterator[Any]:
        rng = np.random.default_rng(seed)
        yield from (resume.drawn(pieces, "deploy", rng) for _ in range(50))

    first = list(draws(0))
    assert first == list(draws(0)) != list(draws(1))
    assert {EVENTS.index(moment.event) for moment in first} == {5, 6, 9}
    assert all(0 <= moment.delay_s < 1 for moment in first)


def test_a_state_is_read_without_changing_the_folder(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    assert aftermath.state_of(tmp_path).rows["trials"] == []
    (tmp_path / "bundles" / "fp16").mkdir(parents=True)
    (tmp_path / "bundles" / "fp16" / "manifest.json").write_text(json.dumps({}))
    assert list(aftermath.state_of(tmp_path).bundles) == ["fp16"]
