"""Scales as XNNPACK takes them: positive, and in groups bfloat16. What is evaluated is then what it computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toggle_edge.compress.bank import LayerBank
from toggle_edge.compress.calibration import InputStatistics
from toggle_edge.compress.quantise import QUANTISERS, CompressedLayer, dequantise, quantise
from toggle_edge.config import Format
from toggle_edge.model.load import LanguageModel
from toggle_edge.pipeline.preparing import bank_of
from toggle_edge.probes import Probe
from toggle_edge.targets import TARGETS

FORMATS = ("int4-g32", "int4-g128", "int8-axis", "int2-g32")


def compressed(text: str, quantiser: str, seed: int, narrow: bool) -> tuple[torch.Tensor, CompressedLayer]:
    generator = torch.Generator().manual_seed(seed)
    # Lopsided on purpose: groups whose largest weight is positive want a negative scale.
    weight = torch.randn(6, 128, generator=generator) + 0.4
    inputs = torch.randn(64, 128, generator=generator)
    statistics = InputStatistics(64, inputs.square().mean(0).double(), inputs.T @ inputs / 64)
    found = quantise(weight, Format.parse(text), statistics, quantiser=quantiser, narrow_scales=narrow)
    return weight, found


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(FORMATS), st.sampled_from(sorted(set(QUANTISERS) - {"seq"})), st.integers(0, 10_000))
def test_scales_are_positive_and_those_of_groups_bfloat16(text: str, quantiser: str, seed: int) -> None:
    weight, layer = compressed(text, quantiser, seed, narrow=True)
    assert layer.scales is not None
    assert bool((layer.scales > 0).all())
    if layer.format.group > 0:
        assert torch.equal(layer.scales, layer.scales.bfloat16().float())
    assert layer.zero_points is None
    _, free = compressed(text, quantiser, seed, narrow=False)
    error, least = (float((dequantise(each) - weight).norm()) for each in (layer, free))
    # A range that cannot be turned round costs something, most at 2 bits; it does not cost the layer. (gptq lowers
    # another error.)
    assert quantiser == "gptq" or error <= (2.0 if layer.format.bits == 2 else 1.25) * least + 1e-6


def test_without_it_scales_of_both_signs_are_used() -> None:
    _, layer = compressed("int4-g32", "rtn", 0, narrow=False)
    assert layer.scales is not None
    assert bool((layer.scales < 0).any())


def test_a_bank_is_narrow_where_its_target_is(
    tiny: LanguageModel, probes: tuple[Probe, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TOGGLE_EDGE_CACHE", str(tmp_path))
    assert [name for name, target in TARGETS.items() if target.narrow_scales] == ["executorch-xnnpack"]
    name, fmt = tiny.layers[1].name, Format(4, 32)
    expected = quantise(tiny.weight(tiny.layers[1]), fmt, narrow_scales=True)
    found = {
        target: bank_of(tiny, probes, quantiser="rtn", pruner="magnitude", target=target).layer(name, fmt)
        for target in ("onnx-cpu", "executorch-xnnpack")
    }
    # One cache for both: the key says which of the two a layer is.
    assert torch.equal(dequantise(found["executorch-xnnpack"]), dequantise(expected))
    assert torch.equal(dequantise(found["onnx-cpu"]), dequantise(LayerBank(tiny).layer(name, fmt)))
    assert not torch.equal(dequantise(found["onnx-cpu"]), dequantise(expected))
