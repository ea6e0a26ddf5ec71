"""The host of the fault suite: one command in a process of its own, which tells what it does and how it ended."""

from __future__ import annotations

import multiprocessing
import re
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from toggle_runtime.plan import Plan

PLAN = Plan(["parity", "verify"], restarts=1, generations=1, warmups=0, tokens=4, pass_timeout_s=60, idle_s=0)
"""Small: a run is to take seconds, and what is measured does not matter."""

COMMANDS = ("deploy", "validate", "rollback")
REFUSED = "refused"
KILLED = "killed"
_PRELOAD = ["fault_host", "toggle_edge.pipeline.deploying", "toggle_edge.fleet.ssh", "rtamt"]


@dataclass(frozen=True)
class Job:
    """A command as somebody would give it. `output` is where its runs come home."""

    command: str
    device_file: Path
    bundle: Path
    output: Path


@dataclass
class Host:
    """A command at work: what it reported, by label, and when; how it ended, once it has."""

    process: ForkServerProcess
    inbox: Connection
    begun: float = field(default_factory=time.monotonic)
    labels: list[tuple[str, float]] = field(default_factory=list)
    outcome: str = KILLED
    words: str = ""
    ended_s: float | None = None

    def listen(self, seconds: float) -> bool:
        """Take in what it says for so long; whether it goes on."""
        until = time.monotonic() + seconds
        while self.ended_s is None:
            left = until - time.monotonic()
            if not self.inbox.poll(max(0.0, left)):
                return True
            try:
                kind, first, second = self.inbox.recv()
            except (EOFError, OSError):  # killed, perhaps in the middle of a word
                break
            if kind == "end":
                self.outcome, self.words = first, second
                break
            self._note(re.sub(r"\d+", "", f"{first} {second}").strip(" /"))
        if self.ended_s is None:
            self.ended_s = time.monotonic() - self.begun
            self.process.join(30)
            self.inbox.close()
        return False

    def _note(self, label: str) -> None:
        if not self.labels or self.labels[-1][0] != label:
            self.labels.append((label, time.monotonic() - self.begun))


def context() -> multiprocessing.context.ForkServerContext:
    """Processes that begin with everything imported: a command starts in milliseconds, and can be killed by itself."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(_PRELOAD)
    return made


def start(made: multiprocessing.context.ForkServerContext, job: Job) -> Host:
    inbox, outbox = made.Pipe(duplex=False)
    process = made.Process(target=_work, args=(job, outbox), daemon=True)
    process.start()
    outbox.close()
    return Host(process, inbox)


def _work(job: Job, outbox: Connection) -> None:
    import torch

    from toggle_edge.errors import ToggleEdgeError
    from toggle_edge.pipeline.deploying import DeployOptions, run_deploy, run_rollback
    from toggle_edge.pipeline.validation import ValidateOptions, run_validate

    torch.set_num_threads(1)

    def report(stage: str, done: int, of: int, note: str = "", standing: object = None) -> None:
        outbox.send(("event", stage, note))

    device = str(job.device_file)
    try:
        if job.command == "deploy":
            deployed = run_deploy(DeployOptions(device, job.bundle, output=job.output, plan=PLAN), report)
            outcome, words = deployed.outcome, deployed.validation.reason
        elif job.command == "validate":
            validated = run_validate(
                ValidateOptions(device, job.bundle, output=job.output, plan=PLAN), report
            )
            outcome, words = validated.outcome, validated.reason
        else:
            run_rollback(device, report)
            outcome, words = "PASS", ""
    except ToggleEdgeError as exc:
        outcome, words = REFUSED, f"{type(exc).__name__}: {exc}"
    outbox.send(("end", outcome, words or ""))
