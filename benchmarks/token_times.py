"""Token times of one process, printed as JSON: what `regression.py` starts again and again, so it imports little.

`python benchmarks/token_times.py FOLDER [SLOWER]` opens the artifact in FOLDER (with `shape.json` beside it) with the
worker's own backend and does what the latency pass does; every token takes SLOWER times as long.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from toggle_runtime import timing
from toggle_runtime.records import Generation, LatencySample, ModelShape, from_json

ASKED = {"tokens": 33, "warmups": 1, "generations": 3, "contexts": []}


def measure(backend: Any, folder: Path, shape: ModelShape) -> LatencySample:
    """What the latency pass does, after a prompt of 16 tokens."""
    model = backend.open_model(folder, shape, backend.GRAPH, 1)
    prompt = np.random.default_rng(0).integers(3, shape.vocabulary, size=16).tolist()
    return timing.timed(backend, model, [prompt], progress=lambda **_: None, **ASKED)


def slowed(slower: float) -> Any:
    """The worker's backend with every token `slower` times as long."""
    from toggle_runtime.backends import onnx

    def generate(model: Any, prompt: Sequence[int], tokens: int) -> Generation:
        stamps = [time.perf_counter_ns()]
        for _ in onnx.stream(model, prompt, tokens):
            # Busy: asleep, the core would be given away, and the next token would be slower than asked for.
            until = stamps[-1] + (time.perf_counter_ns() - stamps[-1]) * slower
            while time.perf_counter_ns() < until:
                pass
            stamps.append(time.perf_counter_ns())
        taken = np.diff(stamps).tolist()
        return Generation(taken[0], taken[1:], len(prompt))

    return SimpleNamespace(open_model=onnx.open_model, GRAPH=onnx.GRAPH, generate=generate)


def main() -> None:
    folder, slower = Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 1.0
    shape = from_json(ModelShape, (folder / "shape.json").read_text(encoding="utf-8"))
    print(json.dumps(dataclasses.asdict(measure(slowed(slower), folder, shape))))


if __name__ == "__main__":
    main()
