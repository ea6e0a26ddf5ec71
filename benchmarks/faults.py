"""Hurt a device, its link or its host at drawn moments, give the same command again, and compare with what it does
undisturbed.

`OMP_NUM_THREADS=1 python benchmarks/faults.py --runs 200 --seed 0 --out faults.jsonl` makes two bundles of the demo
model, and then so many faults, of every kind in turn, each on a device of its own: a real sshd on loopback, the real
agent, real workers. It ends with 1 if after any of them the active bundle is neither the old nor the new one, whole; or
if after the same command again the device's files, the verdicts or the number of records are not as without the fault,
a record is lost or doubled, something half-written stays, or a process of ours lives on. Given again, it goes on where
it was. Root is needed for a full and a read-only disk, and for another boot id; without it these are left out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
from device_aftermath import (
    Records,
    aged,
    broken_activation,
    device_state,
    half_written,
    lost,
    records_of,
    survivors,
)
from fault_device import FaultyDevice, in_own_mounts
from fault_host import KILLED, REFUSED, Host, Job, context, start
from fault_kinds import KINDS, NEED_A_DISK, NOT_FOR_ROLLBACK, Fault, Reference, Scene, journalled
from rich.progress import Progress
from toggle_runtime.sweep import STALE_S

from toggle_edge.bundle import Bundle, read_bundle
from toggle_edge.fleet.chaos import Chaos
from toggle_edge.fleet.device import load_device
from toggle_edge.fleet.session import Session
from toggle_edge.fleet.transport import connect

ROOT = Path(__file__).parents[1]
PASSED = "PASS"
PATIENCE_S = 300.0
LOOK_S = 0.01

SITUATIONS = {
    "deploy on old": ("deploy", "old"),
    "validate on old": ("validate", "old"),
    "rollback on both": ("rollback", "both"),
    "deploy on empty": ("deploy", "empty"),
}
"""What is asked, and what the device has before: one bundle, two, or nothing."""

CHANCES = ("deploy on old", *SITUATIONS)
"""One of these is drawn for every run."""


@dataclass(frozen=True)
class Bench:
    """What all runs share. `old` is deployed before most of them, `new` is what they are about."""

    work: Path
    device: FaultyDevice
    made: ForkServerContext
    old: Bundle
    new: Bundle

    @property
    def file(self) -> Path:
        return self.work / "faulty.toml"

    def job(self, command: str, home: Path, host: int = 1) -> Job:
        return Job(command, self.file, self.new.folder, home / str(host))


def export(work: Path, config: str) -> Bundle:
    """A bundle of the demo model with few probes: to run it takes a moment."""
    from toggle_edge.pipeline.exporting import ExportOptions, run_export

    profile = work / "few.toml"
    text = (ROOT / "profiles" / "default.toml").read_text()
    profile.write_text(re.sub(r"(search|certificate) = \d+", r"\1 = 2", text))
    options = ExportOptions(str(ROOT / "demo" / "model"), work / config, config=config, profile=str(profile))
    run_export(options, lambda *_, **__: None)
    return read_bundle(work / config)


def undisturbed(bench: Bench, command: str, before: str) -> Reference:
    """The command without a fault, and what it left. Raises RuntimeError where that fails already."""
    device = bench.device
    device.lay_out(before)
    runs = {path.name for path in (device.root / "runs").glob("*")}
    home = _fresh(bench.work / "home")
    used, workers = device.used_bytes(), set[int]()
    with Chaos(device.port) as chaos:
        device.write_file(bench.file, chaos.port, shifted=False)
        host = start(bench.made, bench.job(command, home))
        while host.listen(LOOK_S):
            workers.update(device.processes("worker") if len(host.labels) > 2 else ())
    if host.outcome != PASSED or host.ended_s is None:
        raise RuntimeError(f"{command} on {before}: {host.outcome}: {host.words}")
    records = records_of(device.root, home)
    return Reference(
        labels=host.labels,
        seconds=host.ended_s,
        passed=chaos.passed,
        returned=chaos.returned,
        journalled=max(1, journalled(device.root, runs)),
        workers=max(1, len(workers)),
        grown_bytes=device.used_bytes() - used,
        state=device_state(device.root),
        modes=[records.modes[name] for name in records.home],
    )


def hurt(bench: Bench, scene: Scene, command: str, fault: Fault) -> tuple[list[Host], bool]:
    """The command with the fault; the hosts, ended, and whether the fault came."""
    fault.before()
    struck = fault.always
    with Chaos(bench.device.port, **fault.link) as chaos:  # type: ignore[arg-type]
        bench.device.write_file(bench.file, chaos.port, shifted=fault.shifted)
        hosts = [start(bench.made, bench.job(command, scene.home))]
        if fault.second_after_s is not None:
            hosts[0].listen(fault.second_after_s)
            hosts.append(start(bench.made, bench.job(command, scene.home, 2)))
        while [host for host in hosts if host.listen(LOOK_S)]:
            if not struck and fault.when(hosts[0]):
                struck = fault.strike(hosts[0], chaos)
            if time.monotonic() - hosts[0].begun > PATIENCE_S:
                for host in hosts:
                    host.process.kill()
        struck = struck or chaos.fired.is_set()
    if fault.must_fail:
        struck = hosts[0].outcome != PASSED
    return hosts, struck


def after_the_fault(
    bench: Bench, command: str, before: str, fault: Fault, hosts: list[Host]
) -> Iterator[str]:
    """What must hold before anybody tries again."""
    digests = {"old": {bench.old.digest}, "both": {bench.new.digest, bench.old.digest}, "empty": {None}}
    allowed: set[str | None] = set(digests[before])
    if command == "deploy":
        allowed.add(bench.new.digest)
    yield from broken_activation(bench.device.root, allowed, fault.damaged)
    for host in hosts:
        if host.ended_s is not None and host.ended_s > PATIENCE_S:
            yield f"the command did not end within {PATIENCE_S:g} s; last heard of: {host.labels[-1:]}"
        elif host.outcome == KILLED and not fault.kills_the_host:
            yield "the command ended without a word"
    if len(hosts) > 1:
        ended = sorted((host.outcome, host.words) for host in hosts)
        if PASSED not in [outcome for outcome, _ in ended]:
            yield f"neither of two hosts got through: {ended}"
        for outcome, words in ended:
            if outcome != PASSED and not (outcome == REFUSED and "AgentError" in words and "lease" in words):
                yield f"a second host was not refused but ended with {outcome}: {words}"


def again(bench: Bench, scene: Scene, command: str, fault: Fault, first: str) -> Iterator[str]:
    """The same command again, and what must hold then. A `rollback` that told of its success is not given again."""
    root, home = bench.device.root, scene.home
    before = records_of(root, home)
    with Chaos(bench.device.port) as chaos:
        bench.device.write_file(bench.file, chaos.port, shifted=fault.shifted)
        if (command, first) != ("rollback", PASSED):
            host = start(bench.made, bench.job(command, home))
            while host.listen(LOOK_S) and time.monotonic() - host.begun < PATIENCE_S:
                continue
            if host.outcome != PASSED:
                host.process.kill()
                yield f"the same command again: {host.outcome} after {host.labels[-1:]}: {host.words}"
        yield from survivors(root)
        yield from _differences(scene, before, records_of(root, home))
        # Time passes, and somebody comes again.
        aged(root, 2 * STALE_S)
        device = load_device(bench.file)
        session = Session(device, connect)
        try:
            session.ask("collect", {"quota_bytes": device.quota_bytes})
        finally:
            session.close()
    yield from (f"left half-written: {path}" for path in half_written(root, home))


def _differences(scene: Scene, before: Records, after: Records) -> Iterator[str]:
    root, reference = scene.device.root, scene.reference
    yield from lost(before, after, root)
    state = device_state(root)
    for name in ("active", "previous", "environments", "blobs", "deployed", "agents"):
        if getattr(state, name) != getattr(reference.state, name):
            yield f"{name}: expected {getattr(reference.state, name)}, got {getattr(state, name)}"[:600]
    new = sorted(set(after.home) - set(before.home))
    if len(new) != len(reference.modes):  # type: ignore[arg-type]
        yield f"expected {len(reference.modes)} new records at home, got {new}"  # type: ignore[arg-type]
    elif [after.modes[name] for name in new] != reference.modes:
        yield "the verdicts are not those of the undisturbed run"


def one(
    bench: Bench, references: Mapping[tuple[str, str], Reference], seed: int, index: int, kind: str
) -> dict[str, Any]:
    """One fault of that kind, the retry, and what was found, as a line of the report."""
    rng = np.random.default_rng([seed, index])
    possible = [each for each in map(SITUATIONS.__getitem__, CHANCES) if each in references]
    possible = [each for each in possible if each[0] != "rollback" or kind not in NOT_FOR_ROLLBACK]
    command, before = possible[int(rng.integers(len(possible)))]
    bench.device.set_clock(0.0)
    bench.device.lay_out(before)
    scene = Scene(bench.device, bench.new, references[command, before], rng, _fresh(bench.work / "home"))
    fault = KINDS[kind](scene)
    began = time.monotonic()
    hosts, struck = hurt(bench, scene, command, fault)
    found = list(after_the_fault(bench, command, before, fault, hosts))
    fault.mend()
    found += again(bench, scene, command, fault, hosts[0].outcome)
    return {
        "seed": seed,
        "index": index,
        "kind": kind,
        "command": command,
        "before": before,
        "what": fault.what,
        "injected": struck,
        "ended": [f"{host.outcome}: {host.words}"[:400] for host in hosts],
        "seconds": round(time.monotonic() - began, 1),
        "problems": found,
    }


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def prepared(bench: Bench, situations: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Reference]:
    """Devices as runs begin with them, and the undisturbed commands."""
    swapped = Bench(bench.work, bench.device, bench.made, bench.new, bench.old)
    undisturbed(swapped, "deploy", "empty")
    bench.device.keep("old")
    found = {}
    # What this leaves is where `rollback` begins.
    for command, before in dict.fromkeys([("deploy", "old"), *situations]):
        found[command, before] = undisturbed(bench, command, before)
        if (command, before) == ("deploy", "old"):
            bench.device.keep("both")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=24, help="faults to inject (default 24)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS, action="append", help="only this kind; repeatable")
    parser.add_argument("--situation", choices=SITUATIONS, help="only this one")
    parser.add_argument("--only", type=int, help="only the run with this index")
    parser.add_argument(
        "--out", type=Path, help="a line of JSON for every run; those in it are not done again"
    )
    options = parser.parse_args()
    in_own_mounts(sys.argv)
    done = _lines(options.out, options.seed)
    with tempfile.TemporaryDirectory(prefix="toggle-edge-faults-") as scratch:
        work = Path(scratch)
        os.environ["TOGGLE_EDGE_HOME"] = str(work / "signing")
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        old, new = export(work, "int8-g64"), export(work, "int8-g32")
        with FaultyDevice(work / "device") as device, Progress(transient=True) as progress:
            kinds = options.kind or [kind for kind in KINDS if device.has_disk or kind not in NEED_A_DISK]
            bar = progress.add_task("undisturbed", total=options.runs)
            bench = Bench(work, device, context(), old, new)
            chosen = [options.situation] if options.situation else list(SITUATIONS)
            references = prepared(bench, [SITUATIONS[each] for each in chosen])
            for index in itertools.count() if options.only is None else [options.only]:
                injected = sum(line["injected"] for line in done.values())
                progress.update(bar, completed=injected, description=f"run {index}")
                if injected >= options.runs or index > 4 * options.runs:
                    break
                if index in done:
                    continue
                line = one(bench, references, options.seed, index, kinds[index % len(kinds)])
                done[index] = line
                if options.out is not None:
                    with options.out.open("a", encoding="utf-8") as stream:
                        stream.write(json.dumps(line) + "\n")
                for problem in line["problems"]:
                    progress.console.print(f"{index} {line['kind']}, {line['what']}: {problem}", markup=False)
    return report(list(done.values()))


def _lines(path: Path | None, seed: int) -> dict[int, dict[str, Any]]:
    if path is None or not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {line["index"]: line for line in lines if line["seed"] == seed}


def report(lines: list[dict[str, Any]]) -> int:
    """The table of what was injected and survived; the exit status."""
    injected = [line for line in lines if line["injected"]]
    survived = Counter(line["kind"] for line in injected if not line["problems"])
    count = Counter(line["kind"] for line in injected)
    for kind in sorted(count):
        outcomes = Counter(line["ended"][0].split(":")[0] for line in injected if line["kind"] == kind)
        words = ", ".join(f"{number} {outcome}" for outcome, number in sorted(outcomes.items()))
        print(f"{kind:<24} {survived[kind]:>4} of {count[kind]:>4} survived   the command itself: {words}")
    missed = len(lines) - len(injected)
    bad = [line for line in lines if line["problems"]]
    print(
        f"{sum(survived.values())} of {len(injected)} faults survived; {missed} more runs ended before theirs came"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
