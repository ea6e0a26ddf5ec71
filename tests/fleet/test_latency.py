"""Times of a record: units, what counts, where an interval needs more, and what a drift comes to."""

from __future__ import annotations

import numpy as np
import pytest
from toggle_runtime.plan import CONTEXT_RESTARTS, Plan
from toggle_runtime.records import (
    ColdLoad,
    Generation,
    LatencySample,
    Measurement,
    RunRecord,
    SustainedSample,
    from_json,
    to_json,
)

from toggle_edge.fleet.latency import latencies
from toggle_edge.statistics import MIN_CLUSTERS, MIN_TAIL_CLUSTERS

TOKENS = (1.0, 2.0, 3.0, 10.0)


def generation(scale: float, *, warmup: bool = False, tokens: tuple[float, ...] = TOKENS) -> Generation:
    return Generation(int(5e6 * scale), [int(1e6 * scale * each) for each in tokens], 50, warmup)


def restarts(
    count: int = 24, generations: int = 2, tokens: tuple[float, ...] = TOKENS
) -> list[LatencySample]:
    return [
        LatencySample(
            20_000_000 + restart,
            [
                generation(99.0, warmup=True),
                *(generation(1 + 0.01 * i, tokens=tokens) for i in range(generations)),
            ],
        )
        for restart in range(count)
    ]


def record(**fields: object) -> RunRecord:
    return RunRecord(3, "run", "bundle", "PASS", **{"latency": restarts(), **fields})  # type: ignore[arg-type]


def test_warmups_do_not_count_and_units_are_converted_once() -> None:
    result = latencies(record())
    every = np.concatenate([np.array(TOKENS) * (1 + 0.01 * i) for i in range(2)] * 24)
    assert result["decode_ms_p50"].value == pytest.approx(np.median(every), rel=1e-5)
    assert result["decode_ms_p95"].value == pytest.approx(np.quantile(every, 0.95), rel=1e-5)
    assert result["ttft_ms"].value == pytest.approx(5 * 1.005, rel=1e-5)
    assert result["load_ms"].value == pytest.approx(20.0, rel=1e-5)
    assert result["decode_tokens_per_s"].value == pytest.approx(1e3 / every.mean(), rel=1e-5)
    assert result["prefill_tokens_per_s"].value == pytest.approx((10_000 + 50 / 0.00505) / 2, rel=1e-5)
    assert {name: each.unit for name, each in result.items() if name.endswith("per_s")} == {
        "decode_tokens_per_s": "tokens/s",
        "prefill_tokens_per_s": "tokens/s",
    }


def test_intervals_hold_the_value_and_count_generations_not_tokens() -> None:
    result = latencies(record())
    for name in ("decode_ms_p50", "decode_ms_p95", "ttft_ms", "decode_tokens_per_s", "prefill_tokens_per_s"):
        measurement = result[name]
        assert measurement.n == 48, name
        assert measurement.ci95 is not None, name
        assert measurement.value is not None, name
        assert measurement.ci95[0] <= measurement.value <= measurement.ci95[1], name
        assert measurement.reason is None, name
    assert (result["load_ms"].n, result["load_ms"].ci95 is not None) == (24, True)


def test_few_restarts_give_a_value_and_say_what_an_interval_takes() -> None:
    result = latencies(record(latency=restarts(3, 10)))
    for name in ("decode_ms_p50", "ttft_ms", "decode_tokens_per_s"):
        assert result[name].value is not None
        assert result[name].ci95 is None
        assert result[name].reason == "no interval: needs at least 8 restarts, has 3", name
    assert result["load_ms"].reason == "no interval: needs n >= 6, has 3"


def test_ten_restarts_have_an_interval_of_the_median_but_not_of_the_tail() -> None:
    result = latencies(record(latency=restarts(10, 3)))
    assert result["decode_ms_p50"].ci95 is not None
    tail = result["decode_ms_p95"]
    assert (tail.value, tail.ci95) == (pytest.approx(10.2), None)
    assert tail.reason == "no interval: needs at least 24 restarts, has 10"


def test_a_run_has_as_many_restarts_as_its_intervals_take() -> None:
    assert Plan(["latency"]).restarts >= MIN_TAIL_CLUSTERS
    assert CONTEXT_RESTARTS >= MIN_CLUSTERS


def test_a_tail_of_too_few_tokens_is_no_value() -> None:
    result = latencies(record())
    assert (result["decode_ms_p99"].value, result["decode_ms_p99"].reason) == (
        None,
        "needs n >= 368, has 192",
    )
    enough = latencies(record(latency=restarts(tokens=TOKENS * 4)))
    assert enough["decode_ms_p99"].value == pytest.approx(10.1)
    single = latencies(record(latency=restarts(tokens=())))
    for name in ("decode_ms_p50", "decode_tokens_per_s"):
        assert "more than one token" in str(single[name].reason)
    assert single["ttft_ms"].value is not None


def test_the_same_record_gives_the_same_measurements() -> None:
    every = record()
    assert latencies(every) == latencies(from_json(RunRecord, to_json(every)))


def test_cold_loads_are_apart_from_warm_ones_and_may_be_missing() -> None:
    cold = [ColdLoad(80_000_000 + each, 9_000_000, None) for each in range(6)]
    result = latencies(record(cold=[*cold, ColdLoad(None, None, "20 % stayed")]))
    assert result["load_cold_ms"].value == pytest.approx(80.0, rel=1e-5)
    assert (result["load_cold_ms"].n, result["load_cold_ms"].ci95 is not None) == (6, True)
    assert "cold" in result["load_cold_ms"].method
    assert "warm" in result["load_ms"].method
    assert result["ttft_cold_ms"].value == 9.0
    missing = latencies(record(cold=[ColdLoad(None, None, "20 % stayed")]))["load_cold_ms"]
    assert (missing.value, missing.reason) == (None, "20 % stayed")
    assert latencies(record())["load_cold_ms"].reason == "the run has no cold pass"


def test_a_verdict_is_no_reason_for_what_was_not_asked_for() -> None:
    violated = RunRecord(3, "run", "bundle", "FAIL", "mode optimal is violated", latency=restarts())
    assert latencies(violated)["load_cold_ms"].reason == "the run has no cold pass"
    assert latencies(violated)["decode_drift_ratio"].reason == "a sustained run was not asked for"
    broken = RunRecord(3, "run", "bundle", "TIMEOUT", "pass cold: no result within 3 s")
    assert latencies(broken)["load_cold_ms"].reason == "pass cold: no result within 3 s"


def test_each_context_length_has_speeds_of_its_own() -> None:
    samples = [
        LatencySample(
            1,
            [generation(1.0)],
            [
                Generation(10**9, [10**8], 128, warmup=True),
                Generation(128 * 10**6, [2 * 10**6] * 2, 128),
                Generation(512 * 10**6, [4 * 10**6] * 2, 256),
            ],
        )
        for _ in range(9)
    ]
    result = latencies(record(latency=samples))
    assert result["prefill_tokens_per_s_at_128"].value == pytest.approx(1000.0)
    assert result["decode_tokens_per_s_at_128"].value == pytest.approx(500.0)
    assert result["prefill_tokens_per_s_at_256"].value == pytest.approx(500.0)
    assert result["decode_tokens_per_s_at_256"].value == pytest.approx(250.0)
    assert result["prefill_tokens_per_s_at_256"].ci95 is not None


def sustained(seconds: float, slope: float, *, noise: float = 0.01) -> SustainedSample:
    """Generations of 20 tokens of 5 ms that get slower by the share `slope` until the end."""
    random, now, starts, made = np.random.default_rng(1), 0.0, [], []
    while now < seconds * 1e9:
        tokens = 5e6 * (1 + slope * now / (seconds * 1e9)) * random.lognormal(0, noise, 20)
        starts.append(int(now))
        made.append(Generation(int(tokens[0]), [int(t) for t in tokens[1:]], 8))
        now += tokens.sum()
    return SustainedSample(starts, made)


def drift(sample: SustainedSample | None) -> Measurement:
    return latencies(record(sustained=sample))["decode_drift_ratio"]


@pytest.mark.parametrize(("seconds", "window"), [(180.0, "60 s"), (30.0, "tenth of 30 s")])
@pytest.mark.parametrize("slope", [0.0, 0.3])
def test_drift_is_the_last_window_over_the_first(seconds: float, window: str, slope: float) -> None:
    found = drift(sustained(seconds, slope))
    share = 60.0 / seconds if seconds >= 120 else 0.1
    expected = (1 + slope * (1 - share / 2)) / (1 + slope * share / 2)
    assert found.value == pytest.approx(expected, rel=0.01)
    assert found.ci95 is not None
    assert found.ci95[0] <= expected <= found.ci95[1]
    assert (found.ci95[0] > 1.0) == (slope > 0)
    assert window in found.method


def test_drift_of_too_short_a_run_or_none_is_unavailable() -> None:
    assert "longer run" in str(drift(sustained(0.05, 0.0)).reason)
    assert drift(None).reason == "a sustained run was not asked for"
    few = drift(sustained(1.0, 0.0))
    assert few.value is not None
    assert few.ci95 is None
    assert "no interval" in str(few.reason)
