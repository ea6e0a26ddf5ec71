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
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from regression import FORMAT, artifact
from toggle_runtime.backends import onnx
from toggle_runtime.records import (
    MANIFEST_VERSION,
    LatencySample,
    Manifest,
    ModelShape,
    ModeSpecification,
    from_data,
    from_json,
)

from toggle_edge.fleet.agent_client import agent_archive
from toggle_edge.statistics import compare_pairs

MOST_SHARE, MOST_US = 0.03, 20.0
PROMPT, TOKENS, GENERATIONS = 16, 65, 3


def prompt_of(shape: ModelShape) -> list[int]:
    return np.random.default_rng(0).integers(3, shape.vocabulary, size=PROMPT).tolist()


def bare(session: Any, shape: ModelShape, prompt: list[int]) -> tuple[list[int], list[int]]:
    """Tokens, and nanoseconds of each after the first, of the least that decodes with onnxruntime's own binding."""
    binding, room = session.io_binding(), len(prompt) + TOKENS
    caches = []
    for block in shape.blocks:
        for part in ("key", "value"):
            zeros = np.zeros((1, len(block.kv_groups), room, shape.head_size), np.float32)
            caches.append(onnxruntime.OrtValue.ortvalue_from_numpy(zeros))
            binding.bind_ortvalue_input(f"past_key_values.{block.block}.{part}", caches[-1])
            binding.bind_ortvalue_output(f"present.{block.block}.{part}", caches[-1])
    mask, ids = np.ones((1, room), np.int64), np.array([prompt], np.int64)
    first = np.empty((1, len(prompt), shape.vocabulary), np.float32)
    binding.bind_cpu_input("input_ids", ids)
    binding.bind_cpu_input("attention_mask", mask[:, : len(prompt)])
    binding.bind_ortvalue_output("logits", onnxruntime.OrtValue.ortvalue_from_numpy(first))
    session.run_with_iobinding(binding)
    token, logits = np.zeros((1, 1), np.int64), np.empty((1, 1, shape.vocabulary), np.float32)
    binding.bind_cpu_input("input_ids", token)
    binding.bind_ortvalue_output("logits", onnxruntime.OrtValue.ortvalue_from_numpy(logits))
    chosen = [int(first[0, -1].argmax())]
    stamps = [time.perf_counter_ns()]
    for step in range(TOKENS - 1):
        token[0, 0] = chosen[-1]
        binding.bind_cpu_input("attention_mask", mask[:, : len(prompt) + step + 1])
        session.run_with_iobinding(binding)
        chosen.append(int(logits.argmax()))
        stamps.append(time.perf_counter_ns())
    return chosen, np.diff(stamps).tolist()


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
    command = [sys.executable, __file__, "bare", "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def run_bare(folder: Path) -> None:
    shape = shape_of(folder)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    made = [bare(session, shape, prompt_of(shape))[1] for _ in range(1 + GENERATIONS)]
    print(float(np.median(made[1:])))


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


def shape_of(folder: Path) -> ModelShape:
    return from_json(ModelShape, (folder / "shape.json").read_text(encoding="utf-8"))


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
    parser.add_argument("action", nargs="?", choices=("compare", "bare"), default="compare")
    parser.add_argument("--folder", type=Path, help="an artifact with shape.json beside it")
    parser.add_argument("--pairs", type=int, default=100, help="of generations in one process")
    parser.add_argument("--processes", type=int, default=40, help="pairs of processes")
    arguments = parser.parse_args()
    if arguments.action == "bare":
        run_bare(arguments.folder)
        return 0
    for folder in artifact(arguments.folder):
        print(f"{FORMAT}, medians of tokens; the worker's over the bare loop's, interval 95 %\n")
        print("| | pairs | bare, us a token | added, % | added, us a token |\n|---|---|---|---|---|")
        good = show("one process", *one_process(folder, arguments.pairs))
        show("processes of their own", *processes(folder, arguments.processes))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
