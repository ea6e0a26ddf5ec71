"""How much of a search's wall time is not evaluation, on a model of 100M parameters.

`OMP_NUM_THREADS=1 python benchmarks/overhead.py`. A search as `toggle-edge search` makes it, from empty caches, on a
random Llama: sensitivities, then `--trials` trials, more than the initial design. The overhead of a trial is all that
lies between two evaluations: fitting, proposing, recording. Fewer probes than the profile's 59 make evaluations
cheaper, and so the share larger than a user's. Ends with 1 where it is more than a tenth.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import torch
from evaluate import ROOT, save_llama
from forgetful import Memory

from toggle_edge.config import Config
from toggle_edge.evaluate import Evaluation, Evaluator
from toggle_edge.pipeline.inputs import prepared_for
from toggle_edge.pipeline.trials import search, sensitivities_of, space_of
from toggle_edge.profiles import builtin_profiles
from toggle_edge.report.progress import silent

MOST = 0.1


@dataclass
class Clock:
    """When each evaluation began and ended."""

    begun: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)

    @property
    def between(self) -> list[float]:
        """Seconds before each evaluation but the first, since the one before."""
        return [begun - ended for begun, ended in zip(self.begun[1:], self.ended, strict=False)]

    @property
    def evaluating(self) -> list[float]:
        return [ended - begun for begun, ended in zip(self.begun, self.ended, strict=True)]


def profile_of(folder: Path, probes: int) -> Path:
    """The default profile with so many search probes."""
    text = builtin_profiles()["default"].read_text(encoding="utf-8")
    path = folder / "fewer.toml"
    path.write_text(re.sub(r"(search|certificate) = \d+", rf"\1 = {probes}", text), encoding="utf-8")
    return path


def median(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} s [{min(values):.2f}, {max(values):.2f}]"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--probes", type=int, default=59)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    clock, evaluate = Clock(), Evaluator.evaluate

    def timed(self: Evaluator, config: Config, order: Sequence[int] | None = None) -> Evaluation:
        clock.begun.append(time.perf_counter())
        found = evaluate(self, config, order)
        clock.ended.append(time.perf_counter())
        return found

    with tempfile.TemporaryDirectory() as scratch:
        os.environ["TOGGLE_EDGE_HOME"] = f"{scratch}/home"
        prepared = prepared_for(
            save_llama(Path(scratch) / "llama"),
            profile_of(Path(scratch), arguments.probes),
            [str(ROOT / "demo" / "probes.jsonl")],
            silent,
        )
        torch.set_num_threads(1)
        started = time.perf_counter()
        sensitivities = sensitivities_of(prepared, space_of(prepared), silent)
        measured = time.perf_counter()
        with patch.object(Evaluator, "evaluate", timed):
            trials = search(
                prepared,
                Memory(),
                sensitivities=sensitivities,
                seed=0,
                max_trials=arguments.trials,
                report=silent,
            )
        ended = time.perf_counter()
    parameters = sum(parameter.numel() for parameter in prepared.model.module.parameters())
    overhead = ended - measured - sum(clock.evaluating)
    guided = [
        seconds
        for seconds, trial in zip(clock.between, trials[1:], strict=True)
        if not trial.origin.startswith(("uniform", "knapsack"))
    ]
    refuted = sum(trial.observation.refuted for trial in trials)
    print(
        f"{parameters:,} parameters, {len(space_of(prepared).dimensions)} dimensions, {arguments.probes} probes, "
        f"{len(trials)} trials ({refuted} refuted): sensitivities {measured - started:.0f} s, trials "
        f"{ended - measured:.0f} s, of which {overhead:.1f} s are not evaluation\n"
    )
    print(
        "| share of the trials' time | share of all | an evaluation, median [least, most] | a guided proposal | n |"
    )
    print("|---|---|---|---|---|")
    print(
        f"| {overhead / (ended - measured):.3f} | {overhead / (ended - started):.3f} | {median(clock.evaluating)} "
        f"| {median(guided)} | {len(guided)} |"
    )
    return 0 if overhead <= MOST * (ended - measured) else 1


if __name__ == "__main__":
    sys.exit(main())
