"""What a trial costs beside one plain forward pass over the same tokens, and how much memory it takes.

`python benchmarks/evaluate.py`. A trial is all that one config costs in a search: its candidate assembled from the
layer bank (its layers lie there), signals on every probe, verdicts, predicted cost. It is timed in turns with plain
forward passes of the baseline over the same tokens in the same batches; the ratio is what counts. From one trial to
the next `--changed` of the layers get another format, a quarter of them if nothing is said.
Times are the processor's for this process, which has one thread: on a shared machine they say more than a clock.

Memory is the process's own (`RssAnon`; files that it has mapped can be dropped and do not count), sampled all the time.
The peak is how far that grew during trials beyond what it was with the baseline's module alone in memory, so all of it
counts: the candidate's weights, the layer bank's, activations. Models: `../shared/models` where they lie beside the
checkout, and a random Llama of about 100M parameters; each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from toggle_runtime.records import ModeSpecification
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from toggle_edge.compress.bank import LayerBank
from toggle_edge.config import Config, Format
from toggle_edge.evaluate import Evaluator
from toggle_edge.model.load import LanguageModel, load_model
from toggle_edge.probes import Probe
from toggle_edge.profiles import load_profile
from toggle_edge.reading import batch_size, batches_of
from toggle_edge.specification import specification_of

ROOT = Path(__file__).parents[1]
SHARED = Path(__file__).parents[2] / "shared" / "models"
FORMATS = tuple(Format.parse(text) for text in ("int3-g32", "int4-g32", "int6-g32", "int8-g32"))
ROOM = 64 * 2**20
"""What a trial may take beside the model and one layer."""


def save_llama(folder: Path) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16_384,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=11,
        num_attention_heads=12,
        num_key_value_heads=12,
        max_position_embeddings=512,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(ROOT / "demo" / "model").save_pretrained(folder)
    return folder


def random_probes(count: int, tokens: int, steps: int, vocabulary: int) -> list[Probe]:
    """Probes of `tokens` tokens, some up to a quarter shorter; their last step is the answer."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(tokens - tokens // 4, tokens + 1, size=count)
    return [
        Probe(
            str(index),
            tuple(generator.integers(3, vocabulary, size=length).tolist()),
            int(length) - steps,
            (steps - 1,),
        )
        for index, length in enumerate(lengths)
    ]


def configs(model: LanguageModel, changed: int) -> Iterator[Config]:
    """Random formats, of which `changed` layers get others each time."""
    generator = np.random.default_rng(0)
    chosen = {layer.name: FORMATS[generator.integers(len(FORMATS))] for layer in model.layers}
    while True:
        yield Config.of(chosen)
        for name in generator.choice(list(chosen), size=changed, replace=False).tolist():
            others = [fmt for fmt in FORMATS if fmt != chosen[name]]
            chosen[name] = others[generator.integers(len(others))]


def plain_forward(module: torch.nn.Module, probes: list[Probe]) -> None:
    with torch.inference_mode():
        for _, tokens, _ in batches_of(probes, batch_size(module, probes)):
            module(input_ids=tokens, use_cache=False)


def own_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the kernel does not say what this process has of its own")


@contextmanager
def peak_of_own_bytes() -> Iterator[list[int]]:
    most, ended = [own_bytes()], threading.Event()

    def watch() -> None:
        while not ended.wait(0.002):
            most[0] = max(most[0], own_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield most
    finally:
        ended.set()
        watcher.join()


def fill(folder: Path, cache: Path) -> None:
    """Put every layer in every format into the bank's folder, in a process of its own."""
    model = load_model(folder)
    bank = LayerBank(model, folder=cache / "layers")
    for layer in model.layers:
        for fmt in FORMATS:
            bank.layer(layer.name, fmt)


def measure(folder: Path, cache: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    specification: dict[str, ModeSpecification] = specification_of(load_profile("default"))
    model = load_model(folder)
    # What reading and importing left behind is the allocator's by now, and is not given back later.
    before = own_bytes()
    probes = random_probes(arguments.probes, arguments.tokens, arguments.steps, model.shape.vocabulary)
    bank = LayerBank(model, folder=cache / "layers")
    evaluator = Evaluator(model, bank, probes, specification, folder=cache / "baselines")
    changed = arguments.changed or max(1, len(model.layers) // 4)
    candidates = configs(model, changed)
    evaluator.evaluate(next(candidates))
    plain, trials = [], []
    for _ in range(arguments.repeats):
        started = time.process_time()
        plain_forward(model.module, probes)
        plain.append(time.process_time() - started)
        config = next(candidates)
        started = time.process_time()
        evaluator.evaluate(config)
        trials.append(time.process_time() - started)
    with peak_of_own_bytes() as most:
        evaluator.evaluate(next(candidates))
    return {
        "parameters": sum(parameter.numel() for parameter in model.module.parameters()),
        "layers": f"{changed} of {len(model.layers)}",
        "batch": batch_size(model.module, probes),
        "plain": statistics.median(plain),
        "trial": statistics.median(trials),
        "ratios": [trial / once for trial, once in zip(trials, plain, strict=True)],
        "beyond": most[0] - before,
        "allowed": 4 * max(layer.weights for layer in model.layers) + ROOM,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--probes", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--changed", type=int, default=0)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--fill", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.fill:
        fill(arguments.fill, arguments.cache)
        return 0
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.cache, arguments)))
        return 0
    print("| model | parameters | layers changed | batch | plain forward | a trial ", end="")
    print("| ratio, median [least, most] | n | memory beyond the model | one layer + 64 MB |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    kept = True
    with tempfile.TemporaryDirectory() as scratch:
        models = {name: (SHARED / name, 2.0) for name in ("stories260K", "stories-gpt2-1M")}
        models["random Llama"] = (save_llama(Path(scratch) / "llama"), 1.25)
        for name, (folder, most) in models.items():
            if not folder.is_dir():
                print(f"{name}: not beside the checkout, left out")
                continue
            place = ["--cache", f"{scratch}/{name}"]
            own = [sys.executable, __file__, *place]
            subprocess.run([*own, "--fill", str(folder)], check=True, stderr=subprocess.DEVNULL)
            keys = ("probes", "tokens", "steps", "repeats", "changed")
            given = [f"--{key}={getattr(arguments, key)}" for key in keys]
            done = subprocess.run(
                [*own, "--measure", str(folder), *given], check=True, stdout=subprocess.PIPE, text=True
            )
            found = json.loads(done.stdout.splitlines()[-1])
            ratios = found["ratios"]
            print(
                f"| {name} | {found['parameters']:,} | {found['layers']} | {found['batch']} | {found['plain']:.3f} s "
                f"| {found['trial']:.3f} s | {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}] "
                f"| {len(ratios)} | {found['beyond'] / 2**20:.0f} MB | {found['allowed'] / 2**20:.0f} MB |",
                flush=True,
            )
            kept = kept and statistics.median(ratios) <= most and found["beyond"] <= found["allowed"]
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
