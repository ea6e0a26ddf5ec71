"""Predicted cost of a config: pure, no torch.

`proxy_flops` is TOGGLE's cost (arXiv 2512.16855): two operations per weight and token, weighted by
bits / 16. An expert's weights count for the share of tokens that are routed to it. It is a proxy for time and
energy, not a count of what a kernel executes.

Zeros save nothing here: no kernel of ours skips them, and files keep their places. `paper_cost` is TOGGLE's own
arithmetic, which credits them in full, for comparison with published figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from toggle_edge.config import FP16, Config
from toggle_edge.model.layers import Layer
from toggle_edge.targets import PAPER

REFERENCE_BITS = 16
PAPER_TOKENS = 512
"""Tokens of the text that the paper counts FLOPs for."""

KEPT_BYTES = 4
"""Bytes of each parameter that no layer covers (norms): they stay in float32."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Predicted per generated token (`proxy_flops`) and for the whole model (`proxy_bytes`)."""

    proxy_flops: float
    proxy_bytes: int


def predicted_cost(
    layers: Sequence[Layer], config: Config, kept_parameters: int, *, target: str = ""
) -> Cost:
    """Cost of `config`, on the target `paper` by its formulas. Tied weights are one layer, and counted once.

    `layers` and `kept_parameters` are what the config's structure leaves, at the sizes that they have then.
    """
    if target == PAPER:
        paper = paper_cost(layers, config, kept_parameters)
        return Cost(paper.flops / PAPER_TOKENS, round(paper.bytes))
    formats = dict(config.formats)
    flops = sum(
        2.0 * layer.weights * layer.activity * formats[layer.name].bits / REFERENCE_BITS
        for layer in layers
        if layer.multiplied
    )
    stored = sum(formats[layer.name].storage_bytes(layer.rows, layer.columns) for layer in layers)
    return Cost(flops, stored + KEPT_BYTES * kept_parameters)


def proxy_flops_ratio(
    layers: Sequence[Layer], config: Config, *, whole: Sequence[Layer] | None = None, target: str = ""
) -> float:
    """Baseline over candidate: 3.3 means 3.3 times fewer. `whole` are the baseline's layers where `layers`, those that
    the config's structure leaves, are fewer or narrower."""
    original = layers if whole is None else whole
    baseline = predicted_cost(original, _untouched(original), 0, target=target)
    return baseline.proxy_flops / predicted_cost(layers, config, 0, target=target).proxy_flops


@dataclass(frozen=True, slots=True)
class PaperCost:
    """TOGGLE's figures for a config: `flops` for a text of `PAPER_TOKENS` tokens, `bytes` of the whole model, and what
    they come to beside 16 bits without zeros: FLOPs baseline over candidate, and the share of the size that is saved.
    `bits` and `sparsity` are means over layers, each layer counting once, as the paper prints them."""

    flops: float
    bytes: float
    flops_ratio: float
    size_reduction: float
    bits: float
    sparsity: float


def paper_cost(
    layers: Sequence[Layer],
    config: Config,
    kept_parameters: int,
    *,
    whole: Sequence[Layer] | None = None,
    whole_kept_parameters: int | None = None,
) -> PaperCost:
    """Cost by the formulas of TOGGLE's published code (arXiv 2512.16855).

    FLOPs are 2 * 512 * sum over multiplied layers of (1 - sparsity) * weights * bits / 16, embeddings and attention
    scores left out; the size is the sum of (1 - sparsity) * weights * bits / 8, and 2 bytes for what is no layer.
    Scales, zero-points and where the zeros are cost nothing in it, so no file is that small. `whole` and
    `whole_kept_parameters` are the baseline's where the config's structure leaves less.
    """
    original = layers if whole is None else whole
    found, before = _paper_sums(layers, config), _paper_sums(original, _untouched(original))
    kept = kept_parameters * REFERENCE_BITS / 8
    kept_before = kept if whole_kept_parameters is None else whole_kept_parameters * REFERENCE_BITS / 8
    count = max(len(config), 1)
    return PaperCost(
        flops=found[0],
        bytes=found[1] + kept,
        flops_ratio=before[0] / found[0],
        size_reduction=1 - (found[1] + kept) / (before[1] + kept_before),
        bits=sum(fmt.bits for _, fmt in config) / count,
        sparsity=sum(share for _, share in config.sparsities) / count,
    )


def _paper_sums(layers: Sequence[Layer], config: Config) -> tuple[float, float]:
    formats, sparsities = dict(config.formats), dict(config.sparsities)
    flops, size = 0.0, 0.0
    for layer in layers:
        weighted = (1 - sparsities.get(layer.name, 0.0)) * layer.weights * formats[layer.name].bits
        size += weighted / 8
        if layer.multiplied:
            flops += 2.0 * PAPER_TOKENS * layer.activity * weighted / REFERENCE_BITS
    return flops, size


def _untouched(layers: Sequence[Layer]) -> Config:
    return Config.uniform(tuple(layer.name for layer in layers), FP16)
