"""What a refuted trial costs beside a whole one, in real searches.

`OMP_NUM_THREADS=1 python benchmarks/refuting.py`. A search of `--trials` trials under the default profile on each story
model, 59 search probes. Refuted trials stopped when no mode could be satisfied any more; each is then evaluated once
more to the end, in turns of the same sitting, so that what the stopping saved is measured and not inferred.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

from forgetful import Memory

from toggle_edge.config import Config
from toggle_edge.evaluate import Evaluation, Evaluator
from toggle_edge.pipeline.inputs import prepared_for
from toggle_edge.pipeline.trials import search, sensitivities_of, space_of
from toggle_edge.report.progress import silent

SHARED = Path(__file__).parents[2] / "shared"
MODELS = ("stories260K", "stories-gpt2-1M")


def measure(name: str, trials: int) -> bool:
    prepared = prepared_for(
        SHARED / "models" / name, "default", [str(SHARED / "data" / "tinystories" / "stories.jsonl")], silent
    )
    pairs: list[tuple[float, float, int]] = []
    evaluate = Evaluator.evaluate

    def timed(self: Evaluator, config: Config, order: Sequence[int] | None = None) -> Evaluation:
        started = time.perf_counter()
        found = evaluate(self, config, order)
        stopped = time.perf_counter()
        if found.refuted:
            evaluate(self, config)
            pairs.append((stopped - started, time.perf_counter() - stopped, found.read))
        return found

    found = sensitivities_of(prepared, space_of(prepared), silent)
    with patch.object(Evaluator, "evaluate", timed):
        search(prepared, Memory(), sensitivities=found, seed=0, max_trials=trials, report=silent)
    if not pairs:
        print(f"| {name} | {trials} | 0 | | | |")
        return False
    shares = sorted(refuted / whole for refuted, whole, _ in pairs)
    mean = sum(pair[0] for pair in pairs) / sum(pair[1] for pair in pairs)
    read = statistics.mean(pair[2] for pair in pairs)
    print(
        f"| {name} | {trials} | {len(pairs)} | {read:.1f} of {len(prepared.probes.search)} | {mean:.2f} "
        f"| {statistics.median(shares):.2f} [{shares[0]:.2f}, {shares[-1]:.2f}] |",
        flush=True,
    )
    return mean <= 1 / 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=80)
    arguments = parser.parse_args()
    if not SHARED.is_dir():
        print(f"{SHARED} is not there: the story models lie there", file=sys.stderr)
        return 2
    print("| model | trials | refuted | probes read, mean | cost, all of them | cost, median [least, most] |")
    print("|---|---|---|---|---|---|")
    within = [measure(name, arguments.trials) for name in MODELS]
    return 0 if all(within) else 1


if __name__ == "__main__":
    sys.exit(main())
