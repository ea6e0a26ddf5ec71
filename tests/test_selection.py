"""Selection on what was measured: fronts, budgets, overlapping intervals, and the sentences."""

import math
from typing import Any

import pytest
from toggle_runtime.records import Measurement, unavailable

from toggle_edge.selection import MeasuredCandidate, measured_front, select, why_changed

BROKEN = "VIOLATED: 51 of 59 probes satisfy optimal, it needs 57"
NO_METER = unavailable("mJ", "rapl", "no meter here")


def candidate(
    name: str,
    ms: float | None,
    *,
    half: float = 0.01,
    size: int = 100,
    avgpp: float | None = 96.0,
    memory: float | None = 50.0,
    energy: float | None = None,
    ok: bool = True,
    flops: float = 1.0,
) -> MeasuredCandidate:
    decode = (
        unavailable("ms", "clock", "the worker died")
        if ms is None
        else Measurement(ms, "ms", "clock", 30, [ms - half, ms + half])
    )
    measured = {
        "decode_ms_p50": decode,
        "memory_bytes": unavailable("bytes", "VmHWM", "no procfs")
        if memory is None
        else Measurement(memory, "bytes", "VmHWM", 3),
        "energy_mj_per_token": NO_METER if energy is None else Measurement(energy, "mJ", "rapl", 3),
    }
    return MeasuredCandidate(name, avgpp, size, measured, {"optimal": None if ok else BROKEN}, flops)


def test_the_front_keeps_what_is_best_in_something() -> None:
    candidates = [
        candidate("fast", 1.0, avgpp=90.0),
        candidate("good", 2.0, avgpp=99.0),
        candidate("small", 3.0, memory=10.0),
        candidate("beaten", 2.5, avgpp=98.0),
    ]
    assert measured_front(candidates) == ["fast", "good", "small"]


def test_energy_counts_only_where_everybody_has_it() -> None:
    fast, frugal = candidate("fast", 1.0, energy=9.0), candidate("frugal", 2.0, energy=1.0)
    assert measured_front([fast, frugal]) == ["fast", "frugal"]
    assert measured_front([fast, frugal, candidate("blind", 3.0)]) == ["fast"]
    # One that is not on the front for want of a decode time does not take the axis away.
    assert measured_front([fast, frugal, candidate("dead", None)]) == ["fast", "frugal"]


@pytest.mark.parametrize("lost", [{"ms": None}, {"ms": 1.0, "avgpp": None}, {"ms": math.nan}])
def test_what_was_not_measured_is_not_on_the_front(lost: dict[str, Any]) -> None:
    assert measured_front([candidate("x", **lost), candidate("y", 5.0)]) == ["y"]
    assert measured_front([candidate("x", **lost)]) == []


def test_the_fastest_that_qualifies_is_selected() -> None:
    candidates = [candidate("slow", 3.0), candidate("fast", 1.0), candidate("bad", 0.5, ok=False)]
    choice = select(candidates, "optimal", {})
    assert choice.id == "fast"
    assert choice.runners_up == ("slow",)
    assert set(choice.rejected) == {"bad"}
    assert "1 ms [0.99, 1.01]" in choice.reason


def test_among_equally_fast_ones_the_smallest_wins() -> None:
    fast = candidate("fast", 1.0, half=0.2, size=300)
    small = candidate("small", 1.3, half=0.2, size=200)
    # Overlaps `small` but not the fastest: equality is with the fastest, so it must not win.
    tiny = candidate("tiny", 1.65, half=0.2, size=100)
    choice = select([tiny, small, fast], "optimal", {})
    assert choice.id == "small"
    assert choice.runners_up == ("fast", "tiny")
    assert "200 bytes" in choice.reason


def test_an_interval_that_only_touches_counts_as_overlap() -> None:
    candidates = [candidate("a", 1.0, half=0.5, size=2), candidate("b", 2.0, half=0.5, size=1)]
    assert select(candidates, "optimal", {}).id == "b"


@pytest.mark.parametrize(
    ("budget", "reason"),
    [
        ({"memory_bytes": 40.0}, "memory_bytes is 60, over the budget of 40"),
        ({"artifact_bytes": 99.0}, "artifact_bytes is 100, over the budget of 99"),
        ({"energy_mj_per_token": 1e9}, "no meter here"),
        ({"ttft_ms": 5.0}, "no such measurement"),
        ({"memory_bytes": math.nan}, "over the budget"),
    ],
)
def test_a_budget_rejects_what_exceeds_it_or_was_not_measured(budget: dict[str, float], reason: str) -> None:
    choice = select([candidate("x", 1.0, memory=60.0)], "optimal", budget)
    assert choice.id is None
    assert reason in choice.rejected["x"]
    assert reason in choice.reason


def test_a_budget_that_is_just_met_is_met() -> None:
    assert select([candidate("x", 1.0, memory=60.0)], "optimal", {"memory_bytes": 60.0}).id == "x"


def test_nothing_unknown_is_selected() -> None:
    assert select([], "optimal", {}).id is None
    assert select([candidate("x", 1.0)], "strict", {}).rejected == {"x": "was not judged under strict"}
    choice = select([candidate("x", None)], "optimal", {})
    assert choice.id is None
    assert "the worker died" in choice.reason


def test_the_selection_does_not_depend_on_the_order() -> None:
    candidates = [candidate(name, 1.0, half=0.5) for name in "abc"]
    assert {select(order, "optimal", {}).id for order in (candidates, candidates[::-1])} == {"a"}


def explain(predicted: str | None, candidates: list[MeasuredCandidate]) -> str:
    sentence = why_changed(predicted, select(candidates, "optimal", {}), candidates)
    assert sentence.endswith(".")
    return sentence


def test_why_it_changed() -> None:
    cheap, quick = candidate("cheap", 3.0, flops=1.0), candidate("quick", 1.0, flops=1.5)
    assert "confirms" in explain("quick", [cheap, quick])
    slower = explain("cheap", [cheap, quick])
    assert "cheap, but it decodes slower" in slower
    assert "3 ms [2.99, 3.01]" in slower
    assert "1.50 times the proxy FLOPs" in slower
    smaller = explain("big", [candidate("big", 1.0, half=0.2, size=300), candidate("small", 1.1, half=0.2)])
    assert "equally fast within their intervals" in smaller
    assert "100 bytes against 300" in smaller


def test_why_the_predicted_one_fell_out() -> None:
    broken, other = candidate("broken", 1.0, ok=False), candidate("other", 2.0)
    assert "broken falls out (VIOLATED: 51 of 59" in explain("broken", [broken, other])
    assert "other takes its place" in explain("broken", [broken, other])
    assert "nothing else qualifies" in explain("broken", [broken])
    assert "was not measured" in explain("gone", [other])
    assert "Nothing was predicted" in explain(None, [other])
