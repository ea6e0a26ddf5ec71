"""The proxy: two operations per weight and token, weighted by bits / 16."""

from __future__ import annotations

import pytest

from toggle_edge.config import FP16, Config, Format
from toggle_edge.cost import paper_cost, predicted_cost, proxy_flops_ratio
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


WIDTH, VOCABULARY = 768, 50257
GPT2 = (
    Layer("wte", "embedding", VOCABULARY, WIDTH),
    *(
        Layer(f"h.{block}.{role}", role, rows * WIDTH, columns * WIDTH)
        for block in range(12)
        for role, rows, columns in (("qkv", 3, 1), ("o", 1, 1), ("up", 4, 1), ("down", 1, 4))
    ),
)
GPT2_KEPT = 124_439_808 - VOCABULARY * WIDTH - 12 * 12 * WIDTH**2
"""Positions, norms and biases."""


def test_the_papers_formulas_on_gpt2() -> None:
    """Written out from the reference: E = 2 S (sum of (1 - p) W b / 16), head included; N (1 - p) b / 8 bytes."""
    names = tuple(layer.name for layer in GPT2)
    whole = paper_cost(GPT2, Config.uniform(names, FP16), GPT2_KEPT)
    assert whole.flops == 2 * 512 * (12 * 12 * WIDTH**2 + VOCABULARY * WIDTH)
    assert whole.bytes == 124_439_808 * 2  # the paper's 248 MB
    assert (whole.flops_ratio, whole.size_reduction, whole.bits, whole.sparsity) == (1, 0, 16, 0)
    blocks = {name: Format(7, -1) for name in names[1:]}
    found = paper_cost(GPT2, Config.of({"wte": FP16, **blocks}, dict.fromkeys(blocks, 0.4)), GPT2_KEPT)
    inside = 12 * 12 * WIDTH**2
    assert found.flops == pytest.approx(2 * 512 * (inside * 0.6 * 7 / 16 + VOCABULARY * WIDTH))
    assert found.bytes == pytest.approx(inside * 0.6 * 7 / 8 + (124_439_808 - inside) * 2)
    assert found.size_reduction == pytest.approx(1 - found.bytes / (124_439_808 * 2))
    assert found.flops_ratio == pytest.approx(whole.flops / found.flops)
    assert found.bits == pytest.approx((48 * 7 + 16) / 49)
    assert found.sparsity == pytest.approx(48 * 0.4 / 49)


def test_zeros_save_nothing_but_in_the_paper() -> None:
    names = ("embedding", "a", "b")
    dense, sparse = Config.uniform(names, Format(4, 32)), dict.fromkeys(names, 0.5)
    pruned = Config.of(dict(dense), sparse)
    assert predicted_cost(LAYERS, pruned, 7) == predicted_cost(LAYERS, dense, 7)
    assert paper_cost(LAYERS, pruned, 7).flops == paper_cost(LAYERS, dense, 7).flops / 2
