"""What removing structure saves: parameters, files and decode time, beside the whole model in the same sitting.

`OMP_NUM_THREADS=1 python benchmarks/structure.py`. Two random models of about 100M parameters, a Llama with grouped
heads and a GPT-2. A third of the heads, a quarter of the channels, one block, and all of these are removed. torch
decodes in float32 with the key-value cache, onnxruntime (Llama only) the exported artifact in int4-g32, each on one
thread. In every round the whole model and the narrowed one take turns, so that what else the machine does falls on
both; the ratio of a round is whole over narrowed, and more than 1 is faster.

Ends with 1 where parameters, bytes or the median time do not fall.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from toggle_runtime.backends import onnx as backend
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from toggle_edge.compress.bank import LayerBank
from toggle_edge.compress.structure import Ranking
from toggle_edge.config import Config, Format
from toggle_edge.export import Skeleton, build_skeleton, narrowed, narrowed_shape
from toggle_edge.export.onnx import export_onnx
from toggle_edge.model.load import LanguageModel, load_model
from toggle_edge.model.removal import without
from toggle_edge.structure import WHOLE, Structure

ROOT = Path(__file__).parents[1]
PROMPT = [(7 * i) % 500 + 3 for i in range(32)]

Decode = Callable[[], float]
"""Decodes once and gives milliseconds per token."""


def save_model(kind: str, folder: Path) -> Path:
    torch.manual_seed(0)
    if kind == "llama":
        module: Any = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=8192,
                hidden_size=768,
                intermediate_size=2304,
                num_hidden_layers=14,
                num_attention_heads=12,
                num_key_value_heads=6,
                max_position_embeddings=512,
                tie_word_embeddings=True,
            )
        )
    else:
        module = GPT2LMHeadModel(
            GPT2Config(vocab_size=8192, n_embd=768, n_layer=14, n_head=12, n_positions=512)
        )
    module.save_pretrained(folder)
    AutoTokenizer.from_pretrained(ROOT / "demo" / "model").save_pretrained(folder)
    return folder


def structures(model: LanguageModel) -> dict[str, Structure]:
    blocks, groups, inner = range(model.anatomy.blocks), model.shape.kv_heads, model.anatomy.channels(0)
    middle = len(blocks) // 2
    rest = [block for block in blocks if block != middle]
    heads = tuple((block, groups - groups // 3) for block in blocks)
    channels = tuple((block, inner - inner // 4) for block in blocks)
    return {
        "a third of the heads": Structure(kv_groups=heads),
        "a quarter of the channels": Structure(channels=channels),
        "one block": Structure((middle,)),
        "all of these": Structure(
            (middle,),
            tuple(pair for pair in heads if pair[0] in rest),
            tuple(pair for pair in channels if pair[0] in rest),
        ),
    }


def torch_decode(module: Any, tokens: int) -> Decode:
    def decode() -> float:
        with torch.inference_mode():
            step = module(input_ids=torch.tensor([PROMPT]), use_cache=True)
            started = time.perf_counter()
            for _ in range(tokens):
                chosen = step.logits[:, -1:].argmax(-1)
                step = module(input_ids=chosen, past_key_values=step.past_key_values, use_cache=True)
        return (time.perf_counter() - started) * 1e3 / tokens

    return decode


def onnx_decode(
    model: LanguageModel, bank: LayerBank, skeleton: Skeleton, structure: Structure, folder: Path, tokens: int
) -> tuple[Decode, int]:
    """The decoder of the exported artifact, and the artifact's bytes."""
    formats = {layer.name: Format(4, 32) for layer in model.remaining(structure)}
    kept, shape = bank.kept(structure), model.shape
    if kept is not None:
        skeleton, shape = narrowed(skeleton, model.anatomy, structure), narrowed_shape(shape, kept)
    artifact = export_onnx(skeleton, bank.compressed(Config.of(formats, structure=structure)), folder)
    opened = backend.open_model(folder, shape, backend.GRAPH, threads=1)

    def decode() -> float:
        return statistics.mean(backend.generate(opened, PROMPT, tokens + 1).token_ns) / 1e6

    return decode, artifact.artifact_bytes


def turns(whole: Decode, narrowed: Decode, rounds: int) -> tuple[list[float], list[float]]:
    """Milliseconds per token of both, in turns and each first in every other round; one round before is not counted."""
    times: tuple[list[float], list[float]] = ([], [])
    for index in range(rounds + 1):
        order = (0, 1) if index % 2 else (1, 0)
        for which in order:
            found = (whole, narrowed)[which]()
            if index:
                times[which].append(found)
    return times


def spread(values: Sequence[float], digits: int = 2) -> str:
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def row(name: str, engine: str, saved: str, times: tuple[list[float], list[float]]) -> bool:
    """Print a row; whether the median round was faster."""
    ratios = [before / after for before, after in zip(*times, strict=True)]
    print(
        f"| {name} | {engine} | {saved} | {spread(times[0])} | {spread(times[1])} | {spread(ratios)} | {len(ratios)} |"
    )
    return statistics.median(ratios) > 1


def measure(kind: str, folder: Path, rounds: int, tokens: int) -> bool:
    model = load_model(save_model(kind, folder / kind))
    ranking, fine = Ranking(model), True
    before = sum(parameter.numel() for parameter in model.module.parameters())
    bank = LayerBank(model)
    skeleton = build_skeleton(model, folder / "skeletons") if kind == "llama" else None
    whole_onnx = None
    if skeleton is not None:
        whole_onnx = onnx_decode(model, bank, skeleton, WHOLE, folder / "whole", tokens)
    for index, (name, structure) in enumerate(structures(model).items()):
        module = without(model.module, model.anatomy, ranking.kept(structure))
        after = sum(parameter.numel() for parameter in module.parameters())
        saved = f"{before / 1e6:.1f} to {after / 1e6:.1f} M parameters"
        times = turns(torch_decode(model.module, tokens), torch_decode(module, tokens), rounds)
        fine &= row(f"{kind}: {name}", "torch fp32", saved, times) and after < before
        if skeleton is not None and whole_onnx is not None:
            decode, size = onnx_decode(model, bank, skeleton, structure, folder / str(index), tokens)
            saved = f"{whole_onnx[1] / 1e6:.1f} to {size / 1e6:.1f} MB"
            times = turns(whole_onnx[0], decode, rounds)
            fine &= row(f"{kind}: {name}", "onnxruntime int4-g32", saved, times) and size < whole_onnx[1]
    return fine


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=16, help="decoded each time")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| removed | engine | saved | whole, ms per token | narrowed | ratio by round | n |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="toggle-edge-structure-") as folder:
        fine = [measure(kind, Path(folder), arguments.rounds, arguments.tokens) for kind in ("llama", "gpt2")]
    return 0 if all(fine) else 1


if __name__ == "__main__":
    sys.exit(main())
