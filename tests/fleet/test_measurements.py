"""Raw samples become measurements; what is missing is unavailable with its reason, never a number."""

from __future__ import annotations

import numpy as np
import pytest
from toggle_runtime.records import (
    EnergySample,
    Generation,
    LatencySample,
    MemorySample,
    RunRecord,
)

from toggle_edge.fleet.measurements import measured


def generation(scale: float, *, warmup: bool = False) -> Generation:
    return Generation(int(5e6 * scale), [int(1e6 * scale * factor) for factor in (1, 2, 3, 10)], 50, warmup)


def record(**fields: object) -> RunRecord:
    samples = [
        LatencySample(
            20_000_000, [generation(99.0, warmup=True), *(generation(1 + 0.01 * i) for i in range(10))]
        )
        for _ in range(3)
    ]
    return RunRecord(1, "run", "bundle", "PASS", **{"latency": samples, **fields})  # type: ignore[arg-type]


def test_warmups_do_not_count_and_units_are_converted_once() -> None:
    result = measured(record())
    tokens = np.array([1, 2, 3, 10])
    every = np.concatenate([tokens * (1 + 0.01 * i) for i in range(10)] * 3)
    assert result["decode_ms_p50"].value == pytest.approx(np.median(every), rel=1e-5)
    assert result["decode_ms_p95"].value == pytest.approx(np.quantile(every, 0.95), rel=1e-5)
    assert result["ttft_ms"].value == pytest.approx(5 * 1.045, rel=1e-5)
    assert result["load_ms"].value == 20.0
    assert result["decode_tokens_per_s"].value == pytest.approx(4 / 0.016 / 1.045, rel=0.01)
    assert result["prefill_tokens_per_s"].value == pytest.approx(50 / 0.005 / 1.045, rel=0.01)
    assert {name: m.unit for name, m in result.items() if name.endswith("per_s")} == {
        "decode_tokens_per_s": "tokens/s",
        "prefill_tokens_per_s": "tokens/s",
    }


def test_intervals_hold_the_value_and_count_generations_not_tokens() -> None:
    result = measured(record())
    for name in ("decode_ms_p50", "decode_ms_p95", "ttft_ms", "decode_tokens_per_s"):
        measurement = result[name]
        assert measurement.n == 30
        assert measurement.ci95 is not None
        assert measurement.value is not None
        assert measurement.ci95[0] <= measurement.value <= measurement.ci95[1]
    assert result["load_ms"].ci95 is None  # three samples allow no distribution-free interval


def test_a_run_without_generations_has_no_times() -> None:
    result = measured(record(latency=[], reason="pass latency: killed"))
    assert result["decode_ms_p50"].value is None
    assert result["decode_ms_p50"].status == "unavailable"
    assert result["decode_ms_p50"].reason == "pass latency: killed"


def test_memory_is_the_sample_or_its_reason() -> None:
    assert measured(record(memory=MemorySample(1024, "VmHWM")))["memory_bytes"].value == 1024.0
    missing = measured(record(memory=MemorySample(None, "VmHWM", "no procfs")))["memory_bytes"]
    assert (missing.value, missing.reason) == (None, "no procfs")


def test_energy_is_gross_and_net_per_token() -> None:
    # 10 s at 5 W, of which 2 W are idle, for 1,000 tokens.
    sample = EnergySample(50_000.0, 2_000.0, 10.0, 1000, "RAPL", "package")
    result = measured(record(energy=sample))
    assert result["energy_mj_per_token"].value == pytest.approx(50.0)
    assert result["energy_net_mj_per_token"].value == pytest.approx(30.0)
    assert "scope: package" in result["energy_mj_per_token"].method


def test_doubtful_energy_is_degraded_with_its_reasons() -> None:
    sample = EnergySample(
        50_000.0, 2_000.0, 10.0, 1000, "RAPL", "package", flags=["idle changed", "few tokens"]
    )
    for name in ("energy_mj_per_token", "energy_net_mj_per_token"):
        measurement = measured(record(energy=sample))[name]
        assert measurement.value is not None
        assert (measurement.status, measurement.reason) == ("degraded", "idle changed; few tokens")


def test_energy_without_a_meter_is_unavailable_and_not_zero() -> None:
    sample = EnergySample(None, None, None, 0, "none", None, "no powercap on this device")
    for name in ("energy_mj_per_token", "energy_net_mj_per_token"):
        measurement = measured(record(energy=sample))[name]
        assert (measurement.value, measurement.reason) == (None, "no powercap on this device")


def test_energy_without_idle_power_has_no_net() -> None:
    result = measured(record(energy=EnergySample(500.0, None, 10.0, 100, "RAPL", "package", "not asked for")))
    assert result["energy_mj_per_token"].value == 5.0
    assert result["energy_net_mj_per_token"].value is None
