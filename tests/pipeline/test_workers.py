"""A real search by two processes and by one: the same trials, also where a worker is killed in between."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from search_problems import Memory

from toggle_edge.errors import ConfigError, ModelError, StudyError
from toggle_edge.model.placement import THREADS_WEIGHTS, use_threads
from toggle_edge.pipeline import workers
from toggle_edge.pipeline.inputs import demo_folder
from toggle_edge.pipeline.preparing import Prepared, identity_of, prepare
from toggle_edge.pipeline.searching import SearchOptions, run_search
from toggle_edge.pipeline.trials import search, sensitivities_of, space_of
from toggle_edge.profiles import builtin_profiles, load_profile
from toggle_edge.report.progress import silent
from toggle_edge.search.sensitivity import Sensitivities
from toggle_edge.search.trial import Trial
from toggle_edge.sources import ProbeSource
from toggle_edge.store import open_store

MODEL = demo_folder() / "model"
TRIALS, BATCH = 11, 4
PROFILE = (
    builtin_profiles()["default"]
    .read_text()
    .replace("search = 59", "search = 12")
    .replace("certificate = 59", "certificate = 1")
    .replace("[search]\n", '[search]\nstructure = ["kv_groups", "blocks"]\n')
)

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workers")
    (folder / "few.toml").write_text(PROFILE)
    return folder


@pytest.fixture(scope="module")
def prepared(folder: Path) -> Prepared:
    source = ProbeSource(None, str(demo_folder() / "probes.jsonl"))
    return prepare(MODEL, load_profile(folder / "few.toml"), [source], silent)


@pytest.fixture(scope="module")
def sensitivities(prepared: Prepared) -> Sensitivities:
    return sensitivities_of(prepared, space_of(prepared), silent)


def searched(prepared: Prepared, sensitivities: Sensitivities, workers: int) -> tuple[Trial, ...]:
    return search(
        prepared,
        Memory(),
        sensitivities=sensitivities,
        seed=0,
        max_trials=TRIALS,
        report=silent,
        batch=BATCH,
        workers=workers,
    )


@pytest.fixture(scope="module")
def alone(prepared: Prepared, sensitivities: Sensitivities) -> tuple[Trial, ...]:
    return searched(prepared, sensitivities, 1)


def test_two_workers_find_what_one_finds(
    prepared: Prepared, sensitivities: Sensitivities, alone: tuple[Trial, ...]
) -> None:
    assert searched(prepared, sensitivities, 2) == alone
    assert any(trial.config.structure for trial in alone)
    # Some trials ended early, so that the order in which probes are read mattered.
    assert {trial.payload["probes_read"] for trial in alone[BATCH:]} == {8, 12}


def recorded(folder: Path) -> Sequence[Trial]:
    with open_store(f"sqlite:///{folder / 'toggle-edge.db'}") as store:
        studies = store.studies()
        return store.ledger(studies[0].id).trials() if studies else []


def children_of(process: int) -> list[int]:
    """Its worker processes; the one that cleans up behind multiprocessing is none."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            command = (path.parent / "cmdline").read_text()
        except OSError:
            continue
        if parent == process and "spawn_main" in command:
            found.append(int(path.parent.name))
    return found


def test_a_command_whose_worker_is_killed_goes_on_with_the_same_trials(
    folder: Path,
    prepared: Prepared,
    sensitivities: Sensitivities,
    alone: tuple[Trial, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The study begins as the command would begin it, but for its sensitivities, which are at hand.
    with open_store(f"sqlite:///{folder / 'toggle-edge.db'}") as store:
        study = store.open_study("s", identity_of(prepared, 0, BATCH))
        store.record_sensitivity(study.id, sensitivities.to_flat())
    command = [sys.executable, "-m", "toggle_edge", "search", str(MODEL), "--profile", "few.toml"]
    command += ["--study", "s", "--trials", str(TRIALS), "--workers", "2", "--json"]
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as first:
        assert first.stderr is not None
        for line in first.stderr:
            event = json.loads(line) if line.startswith("{") else {}
            # In the middle of the second batch.
            if event.get("stage") == "search" and event["done"] == BATCH + 1:
                os.kill(children_of(first.pid)[-1], signal.SIGKILL)
                break
        rest = first.stderr.read()
    assert first.returncode == 3, rest
    assert "expected an answer of every worker, one ended without" in rest
    kept = len(recorded(folder))
    assert BATCH + 1 <= kept < TRIALS
    monkeypatch.chdir(folder)
    options = SearchOptions(MODEL, "few.toml", study="s", trials=TRIALS)
    with pytest.raises(StudyError, match=f"the number of trials in a batch was {BATCH}, is now 2"):
        run_search(dataclasses.replace(options, batch=2), silent)
    # By this process alone, and without saying which batch: the study knows.
    run_search(options, silent)
    assert tuple(recorded(folder)) == alone


def test_a_recipe_is_plain_and_its_evaluator_is_made_once(
    prepared: Prepared, alone: tuple[Trial, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_loaded", [])
    recipe = workers.recipe_of(prepared, 2)
    evaluate = workers.WorkerEvaluate(recipe, range(12))
    observation, _ = evaluate(alone[0].config)
    assert observation.robustness == alone[0].observation.robustness
    ((_, first),) = workers._loaded
    workers.WorkerEvaluate(dataclasses.replace(recipe), range(11, -1, -1))(alone[0].config)
    assert workers._loaded[0][1] is first
    with pytest.raises(ModelError, match="its files changed while it is searched"):
        workers.WorkerEvaluate(dataclasses.replace(recipe, model_digest="0" * 64), range(12))(alone[0].config)


def test_more_models_than_memory_has_room_for_are_refused(
    prepared: Prepared, sensitivities: Sensitivities, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "available_bytes", lambda: 30_000_000)
    with pytest.raises(ConfigError, match=r"available on cpu; expected at most [12], got 40"):
        searched(prepared, sensitivities, 40)
    workers.require_room(dataclasses.replace(prepared), 1)
    monkeypatch.setattr(workers, "available_bytes", lambda: None)
    workers.require_room(prepared, 40)


def test_workers_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr("torch.set_num_threads", lambda _: None)
    assert [use_threads(THREADS_WEIGHTS, n) for n in (1, 2, 3, 8, 20)] == [8, 4, 2, 1, 1]
    assert use_threads(THREADS_WEIGHTS - 1, 1) == 1


def test_a_batch_keeps_every_worker_busy() -> None:
    assert [workers.default_batch(n) for n in (1, 2, 4)] == [1, 4, 8]
