"""`kill -9` of the host in the middle of the loop, then the same command again: is anything lost, done twice, or left?

Runs a short demo once undisturbed, then kills it again and again: in mid-search, mid-export, mid-deploy (upload) and
mid-run. The moment is drawn from a seeded generator among the lines of progress that the undisturbed run printed in
that stage, plus a random delay. After each kill the same command runs to its end, and everything is compared.

    python benchmarks/resume.py --kills 30 --seed 0
"""

from __future__ import annotations

import argparse
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

STAGES = ("search", "export", "deploy", "run")
COMPARED = ("index", "config_digest", "origin", "proxy_flops", "avgpp", "robustness", "feasible", "payload")
LONGEST_DELAY_S = 0.4


@dataclass(frozen=True)
class Outcome:
    """One kill: where, what had been recorded by then, and what was wrong after resuming (nothing, one hopes)."""

    stage: str
    line: int
    recorded_trials: int
    resumed_s: float
    problems: tuple[str, ...]


def main() -> int:
    """Print a line per kill and a summary; exit 1 if anything was lost, done twice or left behind."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return run_demo_in(arguments.child)
    with tempfile.TemporaryDirectory(prefix="toggle-edge-resume-") as folder:
        outcomes = list(kills(Path(folder), arguments.kills, arguments.seed, show=True))
    good = sum(not outcome.problems for outcome in outcomes)
    print(
        f"\n{good} of {len(outcomes)} kills: resumed with equal trials and bundles, nothing twice, nothing left"
    )
    for stage in STAGES:
        of_stage = [outcome for outcome in outcomes if outcome.stage == stage]
        print(f"  {stage:<7} {sum(not o.problems for o in of_stage)} of {len(of_stage)}")
    return int(good < len(outcomes))


def run_demo_in(work: Path) -> int:
    """What is killed: the demo, shortened, with a line of progress for everything that it reports."""
    from toggle_runtime.plan import Plan

    from toggle_edge.pipeline.demo import DemoOptions, run_demo

    plan = Plan(["parity", "verify", "latency"], restarts=1, generations=2, warmups=0, tokens=8)
    last_upload = 0.0

    def report(stage: str, done: int, of: int, note: str = "") -> None:
        nonlocal last_upload
        if "upload" in note:  # one per 32 KiB: show some of them
            if time.monotonic() - last_upload < 0.01:
                return
            last_upload = time.monotonic()
        print(f"{category(stage, note)} {stage} {done}/{of} {note}", flush=True)

    run_demo(DemoOptions(work, trials=17, candidates=2, plan=plan), report)
    return 0


def category(stage: str, note: str) -> str:
    """Which of the stages that are killed a line of progress belongs to."""
    if stage == "device":
        return "deploy" if "upload" in note else "run"
    return stage if stage in STAGES else "other"


def kills(
    folder: Path, count: int, seed: int, *, show: bool = False, stages: tuple[str, ...] = STAGES
) -> Iterator[Outcome]:
    """Yield an Outcome per kill, stages taking turns."""
    environment = {**os.environ, "TOGGLE_EDGE_HOME": str(folder / "home")}
    began = time.monotonic()
    lines = undisturbed(folder / "reference", environment)
    if show:
        print(f"undisturbed: {time.monotonic() - began:.1f} s, {len(lines)} lines of progress", flush=True)
    generator = np.random.default_rng(seed)
    for index in range(count):
        stage = stages[index % len(stages)]
        of_stage = [number for number, line in enumerate(lines) if line.startswith(stage)]
        nth = int(generator.integers(1, len(of_stage) + 1))
        delay = float(generator.uniform(0, LONGEST_DELAY_S if stage != "deploy" else 0.02))
        work = folder / f"kill-{index}"
        outcome = one_kill(work, stage, nth, delay, folder / "reference", environment)
        if show:
            verdict = "ok" if not outcome.problems else "; ".join(outcome.problems)
            print(
                f"{index:>3} {stage:<7} line {nth:>3} of {len(of_stage):<3} +{delay:.2f} s  "
                f"{outcome.recorded_trials:>2} trials recorded  resumed in {outcome.resumed_s:5.1f} s  {verdict}",
                flush=True,
            )
        yield outcome


def undisturbed(work: Path, environment: Mapping[str, str]) -> list[str]:
    done = subprocess.run(command(work), env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"the undisturbed run failed: {done.stderr[-2000:]}")
    return done.stdout.splitlines()


def one_kill(
    work: Path, stage: str, nth: int, delay: float, reference: Path, environment: Mapping[str, str]
) -> Outcome:
    """Kill at the `nth` line of a stage, `delay` seconds later; run again; compare with the undisturbed run."""
    kill_at(work, stage, nth, delay, environment)
    before = trials_of(work)
    began = time.monotonic()
    again = subprocess.run(command(work), env=environment, capture_output=True, text=True, check=False)
    resumed_s = time.monotonic() - began
    problems = [f"the second run failed: {again.stderr[-300:]}"] if again.returncode else []
    problems += differences(before, work, reference)
    problems += leftovers(work)
    return Outcome(stage, nth, len(before), resumed_s, tuple(problems))


def kill_at(work: Path, stage: str, nth: int, delay: float, environment: Mapping[str, str]) -> None:
    process = subprocess.Popen(
        command(work), env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    seen = 0
    with process:
        for line in process.stdout or ():
            seen += line.startswith(stage)
            if seen == nth:
                time.sleep(delay)
                # The host alone, as a crash would: what runs on the device goes on.
                os.kill(process.pid, signal.SIGKILL)
                break


def command(work: Path) -> list[str]:
    return [sys.executable, str(Path(__file__).absolute()), "--child", str(work)]


def trials_of(work: Path) -> list[dict[str, object]]:
    """All columns of all recorded trials, as they lie in the database."""
    path = work / "toggle-edge.sqlite"
    if not path.exists():
        return []
    connection = sqlite3.connect(path)
    connection.row_factory = sqlite3.Row
    try:
        return [dict(row) for row in connection.execute('SELECT * FROM trials ORDER BY "index"')]
    except sqlite3.OperationalError:  # killed before the tables were made
        return []
    finally:
        connection.close()


def differences(before: list[dict[str, object]], work: Path, reference: Path) -> list[str]:
    """What resuming did otherwise than the undisturbed run, or did a second time."""
    problems = []
    after, expected = trials_of(work), trials_of(reference)
    if [[row[key] for key in COMPARED] for row in after] != [
        [row[key] for key in COMPARED] for row in expected
    ]:
        problems.append("the trial sequence differs")
    # `created` is among the columns: a trial that was evaluated again would have been written again.
    if after[: len(before)] != before:
        problems.append("recorded trials were written again")
    if digests(work) != digests(reference):
        problems.append("bundle digests differ")
    ours, theirs = runs_of(work), runs_of(reference)
    if {bundle for bundle, _ in ours} != {bundle for bundle, _ in theirs}:
        problems.append("not every bundle was measured")
    if {run for _, run in ours} & {run for _, run in theirs}:
        problems.append("measurements are not new")
    return problems


def digests(work: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in work.glob("bundles/*/manifest.json")}


def runs_of(work: Path) -> set[tuple[str, str]]:
    connection = sqlite3.connect(work / "toggle-edge.sqlite")
    try:
        return set(connection.execute("SELECT bundle, run_id FROM runs"))
    finally:
        connection.close()


def leftovers(work: Path) -> list[str]:
    """Half-written files on host and device, runs without a record, processes that nobody waits for."""
    problems = []
    for pattern in (
        "**/.export-*",
        "**/.parity-*",
        "**/.skeleton-*",
        "**/*.partial",
        "**/*.part",
        "**/*.tmp",
    ):
        problems += [f"left: {path.relative_to(work)}" for path in work.glob(pattern)]
    for run in work.glob("device/device/runs/*"):
        if not (run / "record.json").is_file():
            problems.append(f"run {run.name} has no record")
        problems += [
            f"left: {path.relative_to(work)}" for path in (run / "bundle", run / "output") if path.exists()
        ]
    deadline = time.monotonic() + 5  # sshd ends when its parent does, not before
    while (alive := processes(work)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return problems + [f"still running: {each}" for each in alive]


def processes(work: Path) -> list[str]:
    """Command lines of living processes that name the work folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if str(work) in text and int(path.parent.name) != os.getpid():
            found.append(text[:120])
    return found


if __name__ == "__main__":
    sys.exit(main())
