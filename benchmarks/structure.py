"""What removing structure saves: parameters, files and decode time, beside the whole model in the same sitting.

`OMP_NUM_THREADS=1 python benchmarks/structure.py`. Two random models of about 100M parameters, a Llama with grouped
heads and a GPT-2. A third of the heads, a quarter of the channels, one block, and all of these are removed. torch
decodes in float32 with the key-value cache, onnxruntime (Llama only) the exported artifact in int4-g32, each on one
thread. In every round the whole model and the narrowed one take turns, so that what else the machine does falls on
both; the ratio of a round is whole over narrowed, and more than 1 is faster.

Where weights happen to lie in memory changes times by some percent, and a model as it was loaded is not laid out as a
copy is. So both are made alike, and made anew `--placements` times, each first in every other one. The rows "nothing"
compare the whole model with itself that way: no difference smaller than their spread means anything.

Ends with 1 where parameters or bytes do not fall, or where all of the structure removed does not make decoding faster.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from toggle_runtime.backends import onnx as backend
from toggle_runtime.records import ModelShape
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from toggle_edge.compress.bank import LayerBank
from toggle_edge.compress.structure import Ranking
from toggle_edge.config import Config, Format
from toggle_edge.export import Artifact, Skeleton, build_skeleton, narrowed, narrowed_shape
from toggle_edge.export.onnx import export_onnx
from toggle_edge.model.load import LanguageModel, load_model
from toggle_edge.model.removal import without
from toggle_edge.structure import WHOLE, Structure

ROOT = Path(__file__).parents[1]
PROMPT = [(7 * i) % 500 + 3 for i in range(32)]

Decode = Callable[[], float]
"""Decodes once and gives milliseconds per token."""

Times = list[float]


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


ALL = "all of these"


def structures(model: LanguageModel) -> dict[str, Structure]:
    blocks, groups, inner = range(model.anatomy.blocks), model.shape.kv_heads, model.anatomy.channels(0)
    middle = len(blocks) // 2
    rest = [block for block in blocks if block != middle]
    heads = tuple((block, groups - groups // 3) for block in blocks)
    channels = tuple((block, inner - inner // 4) for block in blocks)
    return {
        "nothing": WHOLE,
        "a third of the heads": Structure(kv_groups=heads),
        "a quarter of the channels": Structure(channels=channels),
        "one block": Structure((middle,)),
        ALL: Structure(
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


def exported(
    model: LanguageModel, bank: LayerBank, skeleton: Skeleton, structure: Structure, folder: Path
) -> tuple[Artifact, ModelShape]:
    formats = {layer.name: Format(4, 32) for layer in model.remaining(structure)}
    kept, shape = bank.kept(structure), model.shape
    if kept is not None:
        skeleton, shape = narrowed(skeleton, model.anatomy, structure), narrowed_shape(shape, kept)
    layers = bank.compressed(Config.of(formats, structure=structure))
    return export_onnx(skeleton, layers, folder), shape


def onnx_decode(made: tuple[Artifact, ModelShape], tokens: int) -> Decode:
    artifact, shape = made
    opened = backend.open_model(artifact.folder, shape, backend.GRAPH, threads=1)
    return lambda: statistics.mean(backend.generate(opened, PROMPT, tokens + 1).token_ns) / 1e6


def turns(makers: Sequence[Callable[[], Decode]], placements: int, rounds: int) -> tuple[Times, Times]:
    """Milliseconds per token of both, in turns; of each placement the first round is not counted."""
    times: tuple[Times, Times] = ([], [])
    for placement in range(placements):
        made: dict[int, Decode] = {}
        for which in (0, 1) if placement % 2 else (1, 0):
            made[which] = makers[which]()
        for index in range(rounds + 1):
            for which in (0, 1) if index % 2 else (1, 0):
                found = made[which]()
                if index:
                    times[which].append(found)
    return times


def spread(values: Sequence[float], digits: int = 2) -> str:
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def row(name: str, engine: str, saved: str, times: tuple[Times, Times]) -> float:
    """Print a row; the median ratio."""
    ratios = [before / after for before, after in zip(*times, strict=True)]
    cells = (name, engine, saved, *(spread(each) for each in (*times, ratios)), str(len(ratios)))
    print(f"| {' | '.join(cells)} |", flush=True)
    return statistics.median(ratios)


def measure(kind: str, folder: Path, placements: int, rounds: int, tokens: int) -> bool:
    model = load_model(save_model(kind, folder / kind))
    ranking, bank, fine = Ranking(model), LayerBank(model), True

    def torch_made(structure: Structure) -> Callable[[], Decode]:
        return lambda: torch_decode(without(model.module, model.anatomy, ranking.kept(structure)), tokens)

    skeleton = build_skeleton(model, folder / "skeletons") if kind == "llama" else None
    for index, (name, structure) in enumerate(structures(model).items()):
        before, after = (
            sum(layer.weights for layer in model.remaining(each)) + model.remaining_parameters(each)
            for each in (WHOLE, structure)
        )
        saved = f"{before / 1e6:.1f} to {after / 1e6:.1f} M parameters"
        times = turns((torch_made(WHOLE), torch_made(structure)), placements, rounds)
        faster = row(f"{kind}: {name}", "torch fp32", saved, times) > 1
        fine &= (after < before or not structure) and (faster or name != ALL)
        if skeleton is None:
            continue
        folders = folder / f"whole-{index}", folder / f"narrowed-{index}"
        pair = [
            exported(model, bank, skeleton, each, place)
            for each, place in zip((WHOLE, structure), folders, strict=True)
        ]
        sizes = [artifact.artifact_bytes for artifact, _ in pair]
        saved = f"{sizes[0] / 1e6:.1f} to {sizes[1] / 1e6:.1f} MB"
        makers = [partial(onnx_decode, each, tokens) for each in pair]
        faster = row(f"{kind}: {name}", "onnxruntime int4-g32", saved, turns(makers, placements, rounds)) > 1
        fine &= (sizes[1] < sizes[0] or not structure) and (faster or name != ALL)
    return fine


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--placements", type=int, default=4, help="how often both are made anew")
    parser.add_argument("--rounds", type=int, default=5, help="turns of both in each placement")
    parser.add_argument("--tokens", type=int, default=8, help="decoded each time")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| removed | engine | saved | whole, ms per token | narrowed | ratio by round | n |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="toggle-edge-structure-") as folder:
        counts = arguments.placements, arguments.rounds, arguments.tokens
        fine = [measure(kind, Path(folder), *counts) for kind in ("llama", "gpt2")]
    return 0 if all(fine) else 1


if __name__ == "__main__":
    sys.exit(main())
