"""Shares of the device's limits beside figures computed by hand."""

from __future__ import annotations

import dataclasses

import pytest
from toggle_runtime.records import (
    MANIFEST_VERSION,
    Blob,
    CapacitySample,
    Generation,
    LatencySample,
    Manifest,
    ModelShape,
    ModeSpecification,
    RunRecord,
)

from toggle_edge.fleet.measurements import measured
from toggle_edge.fleet.utilisation import bytes_per_token, multiplied_weights

UP, HEAD, EMBEDDING = "model.layers.0.mlp.up_proj", "lm_head", "model.embed_tokens"


def manifest(target: str = "onnx-cpu", **formats: str) -> Manifest:
    """4 bits in groups of 32 take 5 bits a weight with the scale: 1,000,000 weights, 625,000 bytes."""
    config = {UP: "int4-g32", HEAD: "int8-axis", EMBEDDING: "int8-axis", **formats}
    sizes = {UP: 625_000, HEAD: 200_000, EMBEDDING: 200_000, "shared": 1_000}
    return Manifest(
        version=MANIFEST_VERSION,
        target=target,
        config=config,
        model=ModelShape(1, 2, 8, 16, 64, None),
        specification={"optimal": ModeSpecification({}, 1.0, 95.0)},
        default_mode="optimal",
        files={f"artifact/weights/{name}.bin": Blob("0" * 64, size) for name, size in sizes.items()},
        probe_bytes=0,
        environment={},
    )


def record(**fields: object) -> RunRecord:
    # 1 ms a token, prompts of 40 tokens in 20 ms; 44 tokens precede a token on average.
    samples = [LatencySample(1, [Generation(20_000_000, [1_000_000] * 8, 40)] * 3) for _ in range(10)]
    capacity = CapacitySample([1e9, 4e9, 2e9], [1e10, 8e9], 1)
    given = {"latency": samples, "capacity": capacity, **fields}
    return RunRecord(3, "run", "bundle", "PASS", **given)  # type: ignore[arg-type]


def test_a_token_reads_what_multiplies_and_the_cache() -> None:
    cache = 2 * 2 * 8 * 4 * 44
    assert bytes_per_token(manifest(), 44) == 625_000 + 200_000 + 1_000 + cache
    tied = dataclasses.replace(manifest(), config={UP: "int4-g32", EMBEDDING: "int8-axis"})
    assert bytes_per_token(tied, 0) == 625_000 + 200_000 + 200_000 + 1_000
    assert multiplied_weights(manifest()) == pytest.approx(1_000_000 + 200_000)


def test_shares_are_work_times_speed_over_the_best_round() -> None:
    result = measured(record(), manifest())
    cache = 2 * 2 * 8 * 4 * 44
    assert result["copy_bytes_per_s"].value == 4e9
    assert result["int8_operations_per_s"].value == 1e10
    share = result["decode_bandwidth_share"]
    assert share.value == pytest.approx((826_000 + cache) * 1000 / 4e9)
    assert share.ci95 == pytest.approx([share.value, share.value])
    assert result["prefill_compute_share"].value == pytest.approx(2 * 1_200_000 * 2000 / 1e10)


def test_the_longest_prompt_decides_the_share_of_arithmetic() -> None:
    longer = [
        dataclasses.replace(each, contexts=[Generation(128_000_000, [1], 128)]) for each in record().latency
    ]
    result = measured(record(latency=longer), manifest())
    assert result["prefill_compute_share"].value == pytest.approx(2 * 1_200_000 * 1000 / 1e10)
    assert "at_128" in result["prefill_compute_share"].method


@pytest.mark.parametrize(
    ("fields", "given", "reason"),
    [
        ({"capacity": None}, manifest(), "no capacity pass"),
        ({}, None, "manifest is not at hand"),
        ({}, manifest("onnx-cuda"), "the GPU's own limits"),
        ({"latency": []}, manifest(), "no timed generations"),
        ({}, dataclasses.replace(manifest(), files={}), "layer by layer"),
        ({"capacity": CapacitySample([], [], 1)}, manifest(), "nothing to measure it with"),
        ({}, manifest(**{UP: "int4-odd"}), "int4-odd"),
    ],
)
def test_what_is_not_known_gives_no_share(
    fields: dict[str, object], given: Manifest | None, reason: str
) -> None:
    result = measured(record(**fields), given)
    for name in ("decode_bandwidth_share", "prefill_compute_share"):
        assert result[name].value is None
        assert reason in str(result[name].reason)


def test_more_than_the_limit_says_that_the_limit_is_wrong() -> None:
    result = measured(record(capacity=CapacitySample([1e6], [1e10], 1)), manifest())
    assert result["decode_bandwidth_share"].value > 1  # type: ignore[operator]
    assert "limits.json" in str(result["decode_bandwidth_share"].reason)
