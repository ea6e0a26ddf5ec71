"""What our worker adds to a token, beside a bare onnxruntime loop over the same graph, in turns.

`OMP_NUM_THREADS=1 python benchmarks/worker_overhead.py`. Two comparisons. In one process, generations of the worker's
backend and of a loop that does nothing but bind, run and take the largest logit, in an order drawn for each pair: what
the loop adds. In processes of their own, the real agent's latency pass and such a loop: what the worker as a whole
adds. Tokens are the same. Ends with 1 where the first adds more than 3 % and more than 20 microseconds a
token by its estimate.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from bare_loop import GENERATIONS, PROMPT, TOKENS, bare, prompt_of, shape_of
from regression import FORMAT, artifact
from toggle_runtime.backends import onnx
from toggle_runtime.records import (
    MANIFEST_VERSION,
    LatencySample,
    Manifest,
    ModeSpecification,
    from_data,
)

from toggle_edge.fleet.agent_client import agent_archive
from toggle_edge.statistics import compare_pairs

MOST_SHARE, MOST_US = 0.03, 20.0


def one_process(folder: Path, pairs: int) -> tuple[list[float], list[float]]:
    """Median nanoseconds of a token, bare and ours, of each pair of generations."""
    shape = shape_of(folder)
    model, prompt = onnx.open_model(folder, shape, onnx.GRAPH, 1), prompt_of(shape)
    if list(onnx.stream(model, prompt, TOKENS)) != bare(model.session, shape, prompt)[0]:
        raise SystemExit("the two loops choose different tokens")
    turns: list[tuple[Callable[[], list[int]], list[float]]] = [
        (lambda: bare(model.session, shape, prompt)[1], []),
        (lambda: onnx.generate(model, prompt, TOKENS).token_ns, []),
    ]
    random = np.random.default_rng(0)
    for _ in range(pairs):
        for measure, found in turns if random.random() < 0.5 else turns[::-1]:
            found.append(float(np.median(measure())))
    return turns[0][1], turns[1][1]


def bare_process(folder: Path) -> float:
    """The median of a process that does nothing else, after one generation as a warm-up."""
    command = [sys.executable, str(Path(__file__).with_name("bare_loop.py")), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def worker_process(folder: Path, work: Path) -> float:
    """The median of the real worker, started as the agent starts it."""
    shape = shape_of(folder)
    bundle, pyz = work / "bundle", work / "agent.pyz"
    if not pyz.is_file():
        pyz.write_bytes(agent_archive())
        (bundle / "probes").mkdir(parents=True)
        (bundle / "artifact").symlink_to(folder.absolute())
        probe = {"tokens": [*prompt_of(shape), 3], "prompt_tokens": PROMPT, "answer_steps": []}
        (bundle / "probes" / "probes.json").write_text(json.dumps([probe]), encoding="utf-8")
    manifest = Manifest(
        MANIFEST_VERSION, "onnx-cpu", {}, shape, {"m": ModeSpecification({}, 1.0, 0.0)}, "m", {}, 0, {}
    )
    request = {
        "pass": "latency",
        "environment": str(Path(np.__file__).parents[1]),
        "bundle": str(bundle),
        "manifest": dataclasses.asdict(manifest),
        "output": str(work),
        "threads": 1,
        "generations": GENERATIONS,
        "warmups": 1,
        "tokens": TOKENS,
        "contexts": [],
    }
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(pyz), "worker", str(os.getpid())],
        input=json.dumps(request) + "\n",
        capture_output=True,
        text=True,
        check=True,
    )
    sample = from_data(LatencySample, json.loads(done.stdout.splitlines()[-1])["sample"])
    return float(np.median([t for g in sample.generations if not g.warmup for t in g.token_ns]))


def processes(folder: Path, pairs: int) -> tuple[list[float], list[float]]:
    before: list[float] = []
    after: list[float] = []
    random = np.random.default_rng(1)
    with tempfile.TemporaryDirectory(prefix="toggle-edge-worker-") as scratch:
        for _ in range(pairs):
            turns: list[tuple[Callable[[], float], list[float]]] = [
                (lambda: bare_process(folder), before),
                (lambda: worker_process(folder, Path(scratch)), after),
            ]
            for measure, found in turns if random.random() < 0.5 else turns[::-1]:
                found.append(measure())
    return before, after


def show(name: str, before: list[float], after: list[float]) -> bool:
    """Print a row; return whether the worker adds no more than it may, by the estimate."""
    found = compare_pairs(before, after)
    typical = float(np.median(before)) / 1e3
    low, high = found.ci95 or (float("nan"), float("nan"))
    added, bounds = (found.ratio - 1) * typical, ((low - 1) * typical, (high - 1) * typical)
    print(
        f"| {name} | {found.pairs} | {typical:.0f} | {100 * (found.ratio - 1):+.2f} [{100 * (low - 1):+.2f}, "
        f"{100 * (high - 1):+.2f}] | {added:+.1f} [{bounds[0]:+.1f}, {bounds[1]:+.1f}] |",
        flush=True,
    )
    return found.ratio - 1 <= MOST_SHARE or added <= MOST_US


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="an artifact with shape.json beside it")
    parser.add_argument("--pairs", type=int, default=100, help="of generations in one process")
    parser.add_argument("--processes", type=int, default=40, help="pairs of processes")
    arguments = parser.parse_args()
    for folder in artifact(arguments.folder):
        print(f"{FORMAT}, medians of tokens; the worker's over the bare loop's, interval 95 %\n")
        print("| | pairs | bare, us a token | added, % | added, us a token |\n|---|---|---|---|---|")
        good = show("one process", *one_process(folder, arguments.pairs))
        show("processes of their own", *processes(folder, arguments.processes))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
