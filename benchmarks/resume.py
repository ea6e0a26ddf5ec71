"""Kill the host at drawn moments, give the same command again, and compare with a run that nobody interrupted.

`python benchmarks/resume.py --kills 30 --seed 0` prints a table and ends with 1 if anything is lost, evaluated
again, different or left behind. Moments are uniform in time within their stage, as an uninterrupted run's
events divide it. Only the host is killed, as a crash would: agent, worker and sshd see their peer disappear. With
`--only search` the host does no more than search, so that many kills of that take minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from aftermath import STORE, State, losses, problems, state_of

STAGES = ("search", "export", "deploy", "run")
PASSES = ("parity", "verify", "latency")
PATIENCE_S = 900.0


@dataclass(frozen=True)
class Event:
    """What the host reported, `at_s` seconds after it was started."""

    at_s: float
    stage: str
    done: int
    of: int
    note: str

    @property
    def key(self) -> tuple[str, int, str]:
        """What is the same in another run. A search's note says how long trials take."""
        return self.stage, self.done, "" if self.stage == "search" else self.note


@dataclass(frozen=True)
class Moment:
    """`delay_s` after the host reported `event`, which begins a piece of `stage`."""

    stage: str
    event: Event
    delay_s: float


@dataclass(frozen=True)
class Outcome:
    """Kills in one work folder, the rows that each left in the store, and what the last command made of it."""

    moments: Sequence[Moment]
    left: Sequence[State]
    finished_s: float
    problems: Sequence[str]


def report(stage: str, done: int, of: int, note: str = "", standing: object = None) -> None:
    """Tell every event on stderr."""
    print(json.dumps([stage, done, of, note]), file=sys.stderr, flush=True)


def host(work: Path, trials: int, candidates: int, local: bool) -> None:
    """The process that is killed: the demo with a short plan."""
    from toggle_runtime.plan import Plan

    from toggle_edge.pipeline.demo import DemoOptions, run_demo

    plan = Plan(list(PASSES), restarts=1, generations=2, warmups=1, tokens=8)
    run_demo(DemoOptions(work, trials, candidates, local=local, plan=plan), report)


def searching_host(work: Path, trials: int, probes: int) -> None:
    """The process that is killed where only the search is of interest: as `toggle-edge search` on the demo model, under
    the default profile with so many search probes."""
    import torch

    from toggle_edge.pipeline.inputs import demo_folder
    from toggle_edge.pipeline.searching import SearchOptions, run_search
    from toggle_edge.profiles import builtin_profiles

    torch.set_num_threads(1)
    text, profile = builtin_profiles()["default"].read_text(encoding="utf-8"), work / "fewer.toml"
    profile.write_text(re.sub(r"(search|certificate) = \d+", rf"\1 = {probes}", text), encoding="utf-8")
    store = f"sqlite:///{work / STORE}"
    options = SearchOptions(demo_folder() / "model", str(profile), trials=trials, study="killed", store=store)
    run_search(replace(options, output=work / "studies"), report)


def moments_of(events: Sequence[Event]) -> dict[str, list[tuple[Event, float]]]:
    """By stage, the events that begin a piece of it, and how long each piece took."""
    pieces: dict[str, list[tuple[Event, float]]] = {stage: [] for stage in STAGES}
    stage: str | None = None
    for event, following in itertools.pairwise(events):
        stage = _stage_after(event, stage)
        if stage is not None:
            pieces[stage].append((event, following.at_s - event.at_s))
    return pieces


def _stage_after(event: Event, stage: str | None) -> str | None:
    """What the host does from this event on."""
    if event.stage in ("sensitivity", "search"):
        return "search" if event.stage == "sensitivity" or event.done < event.of else "export"
    if event.stage == "export":
        return "export" if event.done < event.of else "deploy"
    if event.stage != "device":
        return stage
    if event.note.endswith("shipped"):
        return "run"
    if ": " in event.note:  # the outcome of a bundle's run; the next bundle follows
        return "deploy" if event.done < event.of else None
    return stage


def drawn(
    pieces: Mapping[str, Sequence[tuple[Event, float]]], stage: str, rng: np.random.Generator
) -> Moment:
    """A moment of a stage, uniform in time."""
    ends = np.cumsum([length for _, length in pieces[stage]])
    at = float(rng.uniform(0, ends[-1]))
    index = int(np.searchsorted(ends, at, side="right"))
    event, length = pieces[stage][index]
    return Moment(stage, event, at - float(ends[index]) + length)


def attempt(arguments: Sequence[str], work: Path, moment: Moment | None) -> list[Event]:
    """Run the host in `work`, to its end or until `moment`; return its events.

    Raises RuntimeError when the host fails, or ends before the moment comes.
    """
    (work / "tmp").mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "--host", str(work), *arguments]
    environment = {**os.environ, "TMPDIR": str(work / "tmp")}
    begun, events, said = time.monotonic(), [], []
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        for line in process.stderr or ():
            if not line.startswith("["):
                said.append(line)
                continue
            events.append(Event(time.monotonic() - begun, *json.loads(line)))
            if moment is not None and events[-1].key == moment.event.key:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(moment.delay_s)
                process.send_signal(signal.SIGKILL)
                break
        status = process.wait(PATIENCE_S)
    if status != (0 if moment is None else -signal.SIGKILL):
        raise RuntimeError(f"the host ended with {status} after {events[-1:]}: {''.join(said)[-2000:]}")
    return events


def kills(arguments: Sequence[str], work: Path, moments: Sequence[Moment], reference: State) -> Outcome:
    """Start the host in an empty folder, kill it at each of `moments` in turn, let it finish, and look."""
    left: list[State] = []
    found: list[str] = []
    begun = time.monotonic()
    try:
        for moment in [*moments, None]:
            begun = time.monotonic()
            events = attempt(arguments, work, moment)
            if left:
                found += repeated(left[-1], events)
                found += losses(left[-1], state_of(work))
            if moment is not None:
                left.append(state_of(work))
        found += problems(work, left[-1], state_of(work), reference)
    except RuntimeError as exc:
        found.append(str(exc))
    return Outcome(moments, left, time.monotonic() - begun, found)


def repeated(killed: State, events: Sequence[Event]) -> list[str]:
    """What was recorded before the kill, and was computed again after it."""
    found = []
    if any(row["sensitivity"] for row in killed.rows["studies"]) and any(
        event.stage == "sensitivity" for event in events
    ):
        found.append("the recorded sensitivities were computed again")
    evaluated = [event.done - 1 for event in events if event.stage == "search"][1:]
    again = [index for index in evaluated if index < len(killed.rows["trials"])]
    return [*found, f"recorded trials were evaluated again: {again}"] if again else found


def show(number: int, moment: Moment, left: State | None) -> None:
    at = f"{moment.delay_s * 1000:.0f} ms after {moment.event.stage} {moment.event.done} {moment.event.note}"
    rows = ("-", "-") if left is None else (len(left.rows["trials"]), len(left.rows["runs"]))
    print(f"{number:>3} {moment.stage:<7} {at[:60]:<60} {rows[0]:>6} {rows[1]:>4}", end="", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--kills", type=int, default=30, help="how often to kill; stages take turns (default 30)"
    )
    parser.add_argument(
        "--in-a-row", type=int, default=1, help="kills of the same search before it may finish"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (default 0)")
    parser.add_argument("--trials", type=int, default=24, help="trials of the search (default 24)")
    parser.add_argument("--candidates", type=int, default=4, help="candidates that are exported (default 4)")
    parser.add_argument("--local", action="store_true", help="do without sshd")
    parser.add_argument("--only", choices=STAGES, help="kill in this stage alone")
    parser.add_argument(
        "--probes", type=int, default=59, help="search probes with --only search (default 59)"
    )
    parser.add_argument("--host", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.host is not None:
        if options.only == "search":
            searching_host(options.host, options.trials, options.probes)
        else:
            host(options.host, options.trials, options.candidates, options.local)
        return 0
    arguments = [f"--trials={options.trials}", f"--candidates={options.candidates}"]
    arguments += ["--local"] if options.local else []
    arguments += [f"--only={options.only}", f"--probes={options.probes}"] if options.only else []
    stages = (options.only,) if options.only else STAGES
    with tempfile.TemporaryDirectory(prefix="toggle-edge-resume-") as folder:
        # One signing key for all, else the bundles of two runs could not be equal.
        os.environ["TOGGLE_EDGE_HOME"] = str(Path(folder) / "home")
        begun = time.monotonic()
        events = attempt(arguments, Path(folder) / "reference", None)
        reference = state_of(Path(folder) / "reference")
        sizes = f"{len(reference.rows['trials'])} trials, {len(reference.bundles)} bundles"
        print(f"uninterrupted: {time.monotonic() - begun:.0f} s, {sizes}")
        print(f"{'':>3} {'stage':<7} {'killed':<60} {'trials':>6} {'runs':>4}   finished")
        pieces, rng = moments_of(events), np.random.default_rng(options.seed)
        planned = [drawn(pieces, stages[index % len(stages)], rng) for index in range(options.kills)]
        bad = 0
        for first in range(0, len(planned), options.in_a_row):
            moments = planned[first : first + options.in_a_row]
            outcome = kills(arguments, Path(folder) / f"work-{first}", moments, reference)
            bad += len(moments) if outcome.problems else 0
            for offset, (moment, left) in enumerate(itertools.zip_longest(moments, outcome.left)):
                show(first + offset + 1, moment, left)
                print(f" {outcome.finished_s:>8.1f} s" if offset == len(moments) - 1 else "", flush=True)
            print("".join(f"    {problem}\n" for problem in outcome.problems), end="", flush=True)
        print(
            f"{options.kills - bad} of {options.kills} kills: nothing lost, evaluated again, different or left"
        )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
