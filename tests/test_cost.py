"""The proxy: two operations per weight and token, weighted by bits / 16."""

from __future__ import annotations

import pytest

from toggle_edge.config import FP16, Config, Format
from toggle_edge.cost import predicted_cost, proxy_flops_ratio
from toggle_edge.model.layers import Layer

LAYERS = (
    Layer("embedding", "embedding", 10, 64, multiplied=False),
    Layer("a", "q", 8, 64),
    Layer("b", "o", 64, 8),
)


def test_the_baseline_costs_two_operations_per_multiplied_weight() -> None:
    cost = predicted_cost(LAYERS, Config.uniform(("embedding", "a", "b"), FP16), kept_parameters=5)
    assert cost.proxy_flops == 2 * (8 * 64 + 64 * 8)
    assert cost.proxy_bytes == 2 * (640 + 512 + 512) + 4 * 5


def test_cost_is_linear_in_bits_and_bytes_count_scales() -> None:
    config = Config.of({"embedding": FP16, "a": Format(4, 32), "b": Format(8, 32)})
    cost = predicted_cost(LAYERS, config, 0)
    assert cost.proxy_flops == 2 * (512 * 4 / 16 + 512 * 8 / 16)
    # b's 8 columns are padded to one group of 32.
    assert cost.proxy_bytes == 1280 + 8 * 2 * (16 + 4) + 64 * (32 + 4)


def test_an_expert_costs_bytes_always_and_operations_when_it_is_active() -> None:
    expert = Layer("e.0", "down", 8, 64, expert=0, activity=0.25)
    cost = predicted_cost((expert,), Config.of({"e.0": FP16}), 0)
    assert (cost.proxy_flops, cost.proxy_bytes) == (2 * 8 * 64 / 4, 2 * 8 * 64)


@pytest.mark.parametrize(
    ("text", "ratio"), [("fp16", 1.0), ("int8-g64", 2.0), ("int4-g32", 4.0), ("int2-g64", 8.0)]
)
def test_the_ratio_is_baseline_over_candidate(text: str, ratio: float) -> None:
    assert proxy_flops_ratio(LAYERS, Config.uniform(("embedding", "a", "b"), Format.parse(text))) == ratio
