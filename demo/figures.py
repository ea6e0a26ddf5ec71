"""Print the figures of the model card as JSON: how the demo model reacts to fewer bits.

    python demo/figures.py --work WORK --teacher ../shared/models/stories260K

Perplexity of uniform formats, what each layer breaks on its own, and the share of probes that keep the
contract's `jsd` and `factual` properties. Layers are the matrices of the blocks and the embedding, which is
the head too.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from toggle_edge.compress.quantise import dequantise, quantise
from toggle_edge.config import Format

JSD_LIMIT_BITS = 0.25
FACTUAL_LIMIT = 0.70
SENSITIVITY_ROWS = 24

INT8, INT4, INT2 = Format(8, 64), Format(4, 32), Format(2, 64)


def layers(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    return {
        name.removesuffix(".weight").removeprefix("model."): parameter
        for name, parameter in model.named_parameters()
        if parameter.dim() == 2
    }


@contextmanager
def compressed(model: PreTrainedModel, formats: Mapping[str, Format]) -> Iterator[None]:
    """Lower the named layers to their formats, and put the weights back afterwards."""
    lowered = {name: parameter for name, parameter in layers(model).items() if name in formats}
    kept = {name: parameter.data for name, parameter in lowered.items()}
    for name, parameter in lowered.items():
        parameter.data = dequantise(quantise(parameter.data, formats[name]))
    try:
        yield
    finally:
        for name, parameter in lowered.items():
            parameter.data = kept[name]


@torch.no_grad()
def log_probabilities(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Next-token log-probabilities at every position but the last."""
    return model(tokens, use_cache=False).logits[:, :-1].double().log_softmax(-1)


def perplexity(model: PreTrainedModel, rows: list[Tensor]) -> float:
    losses = []
    for row in rows:
        chances = log_probabilities(model, row).flatten(0, 1)
        losses.append(functional.nll_loss(chances, row[:, 1:].flatten(), reduction="none"))
    return math.exp(torch.cat(losses).mean().item())


def jsd_bits(one: Tensor, other: Tensor) -> Tensor:
    """Jensen-Shannon divergence of log-distributions on the last axis."""
    mixed = torch.logaddexp(one, other) - math.log(2)
    terms = one.exp() * (one - mixed) + other.exp() * (other - mixed)
    return terms.sum(-1) / (2 * math.log(2))


def sensitivity(model: PreTrainedModel, tokens: Tensor, layer_format: Format) -> dict[str, float]:
    """Mean JSD to the model, in bits, with one layer lowered and all others untouched."""
    baseline = log_probabilities(model, tokens)
    found = {}
    for name in layers(model):
        with compressed(model, {name: layer_format}):
            found[name] = jsd_bits(baseline, log_probabilities(model, tokens)).mean().item()
    return found


def answer_positions(tokenizer: PreTrainedTokenizerBase, probe: dict[str, str]) -> tuple[Tensor, list[int]]:
    """Tokens of a probe, and the positions whose next token is one of the answer's."""
    encoded = tokenizer(probe["text"], return_offsets_mapping=True)
    start = probe["text"].rindex(probe["answer"])
    end = start + len(probe["answer"])
    touched = [i for i, (low, high) in enumerate(encoded["offset_mapping"]) if low < end and high > start]
    return torch.tensor([encoded["input_ids"]]), [i - 1 for i in touched]


def probe_share(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    probes: list[dict[str, str]],
    formats: Mapping[str, Format],
) -> dict[str, float]:
    """Share of probes on which a config keeps each property, and both."""
    read = [answer_positions(tokenizer, probe) for probe in probes]
    baselines = [log_probabilities(model, tokens)[0] for tokens, _ in read]
    coherent, factual = [], []
    with compressed(model, formats):
        for (tokens, positions), baseline in zip(read, baselines, strict=True):
            candidate = log_probabilities(model, tokens)[0]
            gold = tokens[0, torch.tensor(positions) + 1]
            coherent.append(jsd_bits(baseline, candidate).max().item() <= JSD_LIMIT_BITS)
            ratio = (candidate[positions, gold] - baseline[positions, gold]).exp()
            factual.append(ratio.min().item() >= FACTUAL_LIMIT)
    both = np.logical_and(coherent, factual)
    return {"jsd": float(np.mean(coherent)), "factual": float(np.mean(factual)), "both": float(both.mean())}


def half_and_half(model: PreTrainedModel, found: Mapping[str, float]) -> dict[str, Format]:
    """int4 for the least sensitive layers up to half of the weights, int8 for the others."""
    sizes = {name: parameter.numel() for name, parameter in layers(model).items()}
    left, formats = sum(sizes.values()) // 2, dict.fromkeys(sizes, INT8)
    for name in sorted(sizes, key=lambda name: found[name] / sizes[name]):
        if sizes[name] <= left:
            formats[name] = INT4
            left -= sizes[name]
    return formats


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    here = Path(__file__).parent
    parser.add_argument("--work", type=Path, required=True, help="folder in which train.py left its text")
    parser.add_argument("--model", type=Path, default=here / "model")
    parser.add_argument("--probes", type=Path, default=here / "probes.jsonl")
    parser.add_argument("--teacher", type=Path, help="folder of the teacher, for its perplexity too")
    parser.add_argument("--stories", type=Path, help='more text to read: JSON lines {"text": ...}')
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    held_out = torch.from_numpy(np.load(next(args.work.glob("held-out-*.npy")))).long()
    texts = {"held_out": list(held_out.split(32))}
    if args.stories:
        lines = args.stories.read_text(encoding="utf-8").splitlines()
        read = [tokenizer(json.loads(line)["text"], return_tensors="pt").input_ids for line in lines]
        texts["stories"] = [row[:, :256] for row in read]  # no longer than the rows of the training
    readers = {"fp16": model}
    if args.teacher:
        readers["teacher"] = AutoModelForCausalLM.from_pretrained(args.teacher, dtype=torch.float32).eval()

    uniform = {"int8-g64": INT8, "int4-g32": INT4, "int2-g64": INT2}
    configs = {label: dict.fromkeys(layers(model), layer_format) for label, layer_format in uniform.items()}
    perplexities = {
        name: {reader: perplexity(network, rows) for reader, network in readers.items()}
        for name, rows in texts.items()
    }
    for label, config in configs.items():
        with compressed(model, config):
            perplexities["held_out"][label] = perplexity(model, texts["held_out"])
    found = sensitivity(model, held_out[:SENSITIVITY_ROWS], INT2)
    mix = half_and_half(model, sensitivity(model, held_out[:SENSITIVITY_ROWS], INT4))
    configs["half-int4-half-int8"] = mix
    probes = [json.loads(line) for line in args.probes.read_text(encoding="utf-8").splitlines()]
    figures = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens": {name: sum(row[:, 1:].numel() for row in rows) for name, rows in texts.items()},
        "perplexity": perplexities,
        "sensitivity_int2_g64_jsd_bits": found,
        "sensitivity_ratio": max(found.values()) / min(found.values()),
        "half_int4_layers": sorted(name for name, chosen in mix.items() if chosen == INT4),
        "probe_share": {
            name: probe_share(model, tokenizer, probes, config) for name, config in configs.items()
        },
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
