"""Predicted cost of a config: pure, no torch.

`proxy_flops` is TOGGLE's cost (arXiv 2512.16855): two operations per weight and token, weighted by
bits / 16. An expert's weights count for the share of tokens that are routed to it. It is a proxy for time and
energy, not a count of what a kernel executes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from toggle_edge.config import FP16, Config
from toggle_edge.model.layers import Layer

REFERENCE_BITS = 16
KEPT_BYTES = 4
"""Bytes of each parameter that no layer covers (norms): they stay in float32."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Predicted per generated token (`proxy_flops`) and for the whole model (`proxy_bytes`)."""

    proxy_flops: float
    proxy_bytes: int


def predicted_cost(layers: Sequence[Layer], config: Config, kept_parameters: int) -> Cost:
    """Cost of `config`. Tied weights are one layer, so they are counted once."""
    formats = dict(config.formats)
    flops = sum(
        2.0 * layer.weights * layer.activity * formats[layer.name].bits / REFERENCE_BITS
        for layer in layers
        if layer.multiplied
    )
    stored = sum(formats[layer.name].storage_bytes(layer.rows, layer.columns) for layer in layers)
    return Cost(flops, stored + KEPT_BYTES * kept_parameters)


def proxy_flops_ratio(layers: Sequence[Layer], config: Config) -> float:
    """Baseline over candidate: 3.3 means 3.3 times fewer."""
    baseline = Config.uniform(tuple(layer.name for layer in layers), FP16)
    return predicted_cost(layers, baseline, 0).proxy_flops / predicted_cost(layers, config, 0).proxy_flops
