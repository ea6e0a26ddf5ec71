"""What reduced baselines cost, and how wide the intervals are that they give.

`python benchmarks/reductions.py`, with OMP_NUM_THREADS=1. First bytes per probe for a model with a vocabulary of 128k,
32 layers of 32 heads and states of 4,096, and how long one probe takes to reduce and to bound. Then the demo model:
each config beside fp16, every signal at every step, with the share of steps at which the interval holds the value
that the whole baseline gives. Ends with 1 where one does not.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from toggle_runtime.intervals import bounds_of
from toggle_runtime.reduction import Limits, reduce_baseline, reduced_bytes
from toggle_runtime.reduction_files import read_reduced, write_reduced
from toggle_runtime.signals import SIGNALS, Outputs, trace_of

from toggle_edge.compress.bank import LayerBank
from toggle_edge.config import Config, Format
from toggle_edge.model.load import load_model
from toggle_edge.probes import Probe, load_probes
from toggle_edge.signals import baseline_outputs

DEMO = Path(__file__).parents[1] / "demo"
LARGE = {"vocabulary": 128_256, "layers": 32, "heads": 32, "width": 4096}
USUAL = ("jsd", "attention", "context", "factual")
UNCAPPED = Limits(probe_bytes=2**40)
CONFIGS = {"int8": Format(8, 64), "int4": Format(4, 32), "int2": Format(2, 64)}


@dataclass
class Widths:
    """Widths of one signal's intervals, and how many steps' true values lie outside."""

    values: list[float]
    outside: int = 0


def exact_signals(baseline: Outputs, candidate: Outputs, probe: Probe) -> dict[str, np.ndarray]:
    """Every signal in float64 from the whole outputs of both models."""
    gold = np.array(probe.continuation)
    answer = np.isin(np.arange(probe.steps), probe.answer_steps)
    return trace_of(baseline, candidate, gold, answer).signals


def measured(baseline: list[Outputs], module: torch.nn.Module, probes: list[Probe]) -> dict[str, Widths]:
    found: dict[str, Widths] = {}
    candidates = baseline_outputs(module, probes, free_running=True)
    for probe, whole, candidate in zip(probes, baseline, candidates, strict=True):
        gold = np.array(probe.continuation)
        reduced = reduce_baseline(whole, gold, probe.prompt_tokens, SIGNALS, UNCAPPED)
        answer = np.isin(np.arange(probe.steps), probe.answer_steps)
        bounds = bounds_of(reduced, candidate, gold, answer)
        truth = exact_signals(whole, candidate, probe)
        for name, lower in bounds.lower.items():
            widths = found.setdefault(name, Widths([]))
            steps = answer if name == "factual" else slice(None)
            widths.values += (bounds.upper[name] - lower)[steps].tolist()
            inside = (lower <= truth[name]) & (truth[name] <= bounds.upper[name])
            widths.outside += int((~inside).sum())
    return found


def demo_widths(count: int) -> Iterator[tuple[str, str, Widths]]:
    model = load_model(DEMO / "model")
    probes = list(load_probes(DEMO / "probes.jsonl", model.tokenizer, steps=32, context_tokens=256))[:count]
    baseline = baseline_outputs(model.module, probes, free_running=True)
    layers = tuple(layer.name for layer in model.layers)
    for name, each in CONFIGS.items():
        module = LayerBank(model).assemble(Config.uniform(layers, each))
        for signal, widths in measured(baseline, module, probes).items():
            yield name, signal, widths


def large_probe(steps: int, keys: int) -> tuple[Outputs, np.ndarray]:
    """Random outputs of the large model, peaked as those of language models are."""
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(LARGE["layers"], LARGE["heads"], steps, keys)).astype(np.float32) * 3
    scores[..., 0] += 6  # most heads attend to the first token
    attention = np.exp(scores - scores.max(axis=-1, keepdims=True))
    attention /= attention.sum(axis=-1, keepdims=True)
    hidden = generator.standard_t(3, size=(LARGE["layers"], steps, LARGE["width"])).astype(np.float32)
    logits = (generator.normal(size=(steps, LARGE["vocabulary"])) * 3.5).astype(np.float32)
    gold = generator.integers(0, LARGE["vocabulary"], size=steps)
    return Outputs(logits, attention, hidden, gold), gold


def print_large(steps: int, keys: int) -> None:
    print(f"{LARGE}, {steps} steps, {keys} keys; the cap is {Limits().probe_bytes:,} bytes a probe")
    outputs, gold = large_probe(steps, keys)
    for title, signals in (("the usual four", USUAL), ("all eight", SIGNALS)):
        most = reduced_bytes(keys=keys, steps=steps, signals=signals, **LARGE)
        start = time.perf_counter()
        reduced = reduce_baseline(outputs, gold, keys - steps + 1, signals, UNCAPPED)
        middle = time.perf_counter()
        bounds_of(reduced, outputs, gold, np.ones(steps, dtype=bool))
        end = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "reduced.npz"
            write_reduced(path, [reduced])
            read_reduced(path)
            size = path.stat().st_size
        whole = sum(array.nbytes for array in (outputs.logits, outputs.attention, outputs.hidden))
        print(
            f"{title}: at most {most:,} bytes, here {size:,} (whole: {whole:,}); "
            f"reduced in {middle - start:.1f} s, bounded in {end - middle:.1f} s"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--probes", type=int, default=60, help="probes of the demo model")
    parser.add_argument("--steps", type=int, default=64, help="steps of the large model's probe")
    parser.add_argument("--keys", type=int, default=512, help="keys of the large model's probe")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print_large(arguments.steps, arguments.keys)
    print("| config | signal | n | width p50 | width p99 | widest | outside |\n|---|---|---|---|---|---|---|")
    outside = 0
    for config, signal, widths in demo_widths(arguments.probes):
        half, most = np.percentile(widths.values, [50, 99])
        outside += widths.outside
        print(
            f"| {config} | {signal} | {len(widths.values)} | {half:.2g} | {most:.2g} "
            f"| {max(widths.values):.2g} | {widths.outside} |"
        )
    return int(outside > 0)


if __name__ == "__main__":
    sys.exit(main())
