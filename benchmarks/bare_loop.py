"""The least that decodes with onnxruntime: what `worker_overhead.py` holds our worker against.

`python benchmarks/bare_loop.py FOLDER` prints the median nanoseconds of a token in a process that imports as little as
the worker does: what else lies in a process's memory makes a difference of some percent.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from toggle_runtime.records import ModelShape, from_json

PROMPT, TOKENS, GENERATIONS = 16, 65, 3


def shape_of(folder: Path) -> ModelShape:
    return from_json(ModelShape, (folder / "shape.json").read_text(encoding="utf-8"))


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


def main() -> None:
    """After one generation as a warm-up."""
    folder = Path(sys.argv[1])
    shape = shape_of(folder)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    made = [bare(session, shape, prompt_of(shape))[1] for _ in range(1 + GENERATIONS)]
    print(float(np.median(made[1:])))


if __name__ == "__main__":
    main()
