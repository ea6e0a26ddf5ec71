"""A model larger than its memory: what reading it from disk layer by layer costs in time.

`python benchmarks/streaming.py`. A randomly initialised Llama of TinyLlama's shape (1.1B parameters, 2.2 GB in bf16) is
loaded, its baseline recorded on 16 probes of 64 tokens, every layer compressed to int4-g32, and that candidate judged;
each time by a fresh process: one that may use all memory, and one inside a control group that may use 2.5 GB, torch
included. Files are dropped from the page cache before each run. Needs a writable memory control group (root).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
SHAPE = {
    "vocab_size": 32_000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}


def save_model(folder: Path) -> None:
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    LlamaForCausalLM(LlamaConfig(**SHAPE, dtype="bfloat16")).save_pretrained(folder)
    AutoTokenizer.from_pretrained(ROOT / "demo" / "model").save_pretrained(folder)


def measure(folder: Path, group: str, threads: int) -> None:
    """In a process of its own: enter the control group, evaluate, print what it took."""
    if group:
        (Path(group) / "cgroup.procs").write_text(str(os.getpid()))
    started = time.perf_counter()
    import torch
    from toggle_runtime.records import ModeSpecification

    from toggle_edge.compress.bank import LayerBank
    from toggle_edge.config import Config, Format
    from toggle_edge.evaluate import Evaluator
    from toggle_edge.model.load import load_model
    from toggle_edge.probes import Probe

    torch.set_num_threads(threads)
    peak = anonymous_peak()
    seconds = {"import": time.perf_counter() - started}

    def note(name: str) -> None:
        seconds[name] = time.perf_counter() - started - sum(seconds.values())

    generator = np.random.default_rng(0)
    probes = [
        Probe(str(index), tuple(generator.integers(3, SHAPE["vocab_size"], size=64).tolist()), 32, (31,))
        for index in range(16)
    ]
    specification = {"optimal": ModeSpecification({"coherence": "always (jsd <= 0.25)"}, 0.95, 95.0)}
    model = load_model(folder)
    note("load")
    with tempfile.TemporaryDirectory(dir=folder.parent) as cache:
        bank = LayerBank(model, folder=Path(cache) / "layers")
        evaluator = Evaluator(model, bank, probes, specification, folder=Path(cache) / "baselines")
        note("baseline")
        config = Config.uniform(tuple(layer.name for layer in model.layers), Format.parse("int4-g32"))
        bank.assemble(config)
        note("compress")
        evaluation = evaluator.evaluate(config)
        note("evaluate")
    print(
        json.dumps(
            {
                "seconds": seconds,
                "total": time.perf_counter() - started,
                "anonymous": peak(),
                "placement": model.placement,
                "avgpp": evaluation.avgpp,
            }
        )
    )


def anonymous_peak() -> object:
    """Watch what the process has of its own, files that it has mapped not counted."""
    most = 0

    def watch() -> None:
        nonlocal most
        while True:
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    most = max(most, int(line.split()[1]) * 1024)
            time.sleep(0.02)

    threading.Thread(target=watch, daemon=True).start()
    return lambda: most


@contextmanager
def control_group(most_bytes: int) -> Iterator[tuple[Path, Path]]:
    """A memory control group of our own, and the file that says what it used at most."""
    unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    group = Path("/sys/fs/cgroup" if unified else "/sys/fs/cgroup/memory") / f"streaming-{os.getpid()}"
    group.mkdir()
    try:
        (group / ("memory.max" if unified else "memory.limit_in_bytes")).write_text(str(most_bytes))
        swap = group / ("memory.swap.max" if unified else "memory.swappiness")
        if swap.exists():
            swap.write_text("0")
        yield group, group / ("memory.peak" if unified else "memory.max_usage_in_bytes")
    finally:
        group.rmdir()


def run(folder: Path, group: str, threads: int) -> dict[str, object]:
    os.sync()
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    command = [sys.executable, __file__, "--measure", str(folder), "--threads", str(threads)]
    done = subprocess.run(
        [*command, *(["--group", group] if group else [])], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(
            f"the process ended with {done.returncode} (-9: killed for lack of memory)\n{done.stderr}"
        )
    result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--folder", type=Path, help="where the model lies, or is put; else a temporary one")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--group", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure, arguments.group, arguments.threads)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = (arguments.folder or Path(scratch)) / "random-llama-1.1B"
        if not (folder / "config.json").is_file():
            save_model(folder)
        limit, ratios = int(arguments.gigabytes * 1e9), []
        print(
            "| run | import | load | baseline | compress | evaluate | total | own memory | group's peak | AvgPP |"
        )
        print("|---|---|---|---|---|---|---|---|---|---|")
        for _ in range(arguments.repeats):
            free = run(folder, "", arguments.threads)
            show("all memory", free, None)
            with control_group(limit) as (group, peak):
                bound = run(folder, str(group), arguments.threads)
                show(f"{arguments.gigabytes:g} GB", bound, int(peak.read_text()))
            ratios.append(bound["total"] / free["total"])  # type: ignore[operator]
        print(f"\nall memory: {free['placement']}\n{arguments.gigabytes:g} GB: {bound['placement']}")
        print(
            f"ratio: {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}], n = {len(ratios)}"
        )
    return 0 if statistics.median(ratios) <= 2.0 else 1


def show(name: str, found: dict[str, object], peak: int | None) -> None:
    seconds: dict[str, float] = found["seconds"]  # type: ignore[assignment]
    parts = " | ".join(
        f"{seconds[part]:.1f} s" for part in ("import", "load", "baseline", "compress", "evaluate")
    )
    group = "–" if peak is None else f"{peak / 1e9:.2f} GB"
    print(
        f"| {name} | {parts} | {found['total']:.1f} s | {found['anonymous'] / 1e9:.2f} GB | {group} "  # type: ignore[operator]
        f"| {found['avgpp']:.2f} % |",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
