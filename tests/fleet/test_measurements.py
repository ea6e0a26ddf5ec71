"""Raw samples become measurements; what is missing is unavailable with its reason, never a number."""

from __future__ import annotations

import pytest
from toggle_runtime.records import EnergySample, MemorySample, RunRecord

from toggle_edge.fleet.measurements import measured


def record(**fields: object) -> RunRecord:
    return RunRecord(1, "run", "bundle", **{"outcome": "PASS", **fields})  # type: ignore[arg-type]


def test_a_run_that_brought_nothing_has_a_reason_for_everything() -> None:
    result = measured(record(outcome="ERROR", reason="pass latency: killed"))
    assert len(result) >= 14
    for name, measurement in result.items():
        assert (measurement.value, measurement.status) == (None, "unavailable"), name
        assert measurement.reason == "pass latency: killed" or "manifest" in str(measurement.reason), name


def test_memory_is_the_sample_or_its_reason() -> None:
    assert measured(record(memory=MemorySample(1024, "VmHWM")))["memory_bytes"].value == 1024.0
    missing = measured(record(memory=MemorySample(None, "VmHWM", "no procfs")))["memory_bytes"]
    assert (missing.value, missing.reason) == (None, "no procfs")


def test_steady_memory_is_what_was_resident_in_the_end() -> None:
    known = measured(record(memory=MemorySample(2048, "VmHWM", steady_bytes=1024, flags=["swapped"])))
    steady = known["memory_steady_bytes"]
    assert (steady.value, steady.unit, steady.status, steady.reason) == (
        1024.0,
        "bytes",
        "degraded",
        "swapped",
    )
    for sample, reason in (
        (MemorySample(2048, "VmHWM"), "the record does not say"),
        (MemorySample(None, "VmHWM", "no procfs"), "no procfs"),
        (None, "no memory pass"),
    ):
        missing = measured(record(memory=sample))["memory_steady_bytes"]
        assert (missing.value, missing.status, reason in str(missing.reason)) == (None, "unavailable", True)


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
