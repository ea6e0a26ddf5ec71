"""What a trial costs beside one plain forward pass over the same tokens, and how much memory it takes.

`python benchmarks/evaluate.py`. Both are timed in turns, in one process, at the same batch: the ratio is what counts.
The peak is how far the process grew beyond what it had after one plain pass, with model and baseline in memory. Models:
`../shared/models` where they lie beside the checkout, and a random Llama of about 100M parameters.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from toggle_edge.probes import Probe
from toggle_edge.reading import BATCH
from toggle_edge.signals import baseline_outputs, traces_of

SHARED = Path(__file__).parents[2] / "shared" / "models"


def models() -> Iterator[tuple[str, torch.nn.Module]]:
    for name in ("stories260K", "stories-gpt2-1M"):
        if (SHARED / name).is_dir():
            yield (
                name,
                AutoModelForCausalLM.from_pretrained(
                    SHARED / name, dtype=torch.float32, attn_implementation="eager", local_files_only=True
                ),
            )
        else:
            print(f"{name}: not beside the checkout, left out")
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
        attn_implementation="eager",
    )
    yield "random Llama", LlamaForCausalLM(config)


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


def plain_forward(module: torch.nn.Module, probes: list[Probe]) -> None:
    with torch.inference_mode():
        for start in range(0, len(probes), BATCH):
            rows = [list(probe.tokens[:-1]) for probe in probes[start : start + BATCH]]
            longest = max(len(row) for row in rows)
            module(
                input_ids=torch.tensor([row + [0] * (longest - len(row)) for row in rows]), use_cache=False
            )


def seconds(work: Callable[..., object], *arguments: object) -> float:
    started = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--probes", type=int, default=BATCH * 2)
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| model | parameters | plain forward | a trial's signals | ratio, median [least, most] | n | peak beyond |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, module in models():
        module.eval().requires_grad_(False)
        probes = random_probes(arguments.probes, arguments.tokens, arguments.steps, module.config.vocab_size)
        baseline = baseline_outputs(module, probes)
        plain_forward(module, probes)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        pairs = [
            (seconds(plain_forward, module, probes), seconds(traces_of, module, probes, baseline))
            for _ in range(arguments.repeats)
        ]
        beyond = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        ratios = [trial / plain for plain, trial in pairs]
        count = sum(parameter.numel() for parameter in module.parameters())
        print(
            f"| {name} | {count:,} | {statistics.median(p for p, _ in pairs):.3f} s "
            f"| {statistics.median(t for _, t in pairs):.3f} s "
            f"| {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}] | {len(pairs)} "
            f"| {beyond / 1024:.0f} MB |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
