"""What disturbed a run is said for passes whose numbers it changes, and for no others."""

from __future__ import annotations

from typing import Any

import pytest
from toggle_runtime.records import PassConditions

from toggle_edge.report.conditions import disturbances


def passing(name: str, **fields: Any) -> PassConditions:
    return PassConditions(name, {}, {}, **{"others_share": 0.0, **fields})


@pytest.mark.parametrize("name", ["capacity", "cold", "latency", "sustained", "energy"])
def test_a_disturbed_pass_is_named_with_the_reason(name: str) -> None:
    assert disturbances([passing(name, contended="others took half")]) == [
        f"{name} was contended: others took half"
    ]
    assert disturbances([passing(name, throttled="too hot")]) == [f"{name} was throttled: too hot"]


@pytest.mark.parametrize("name", ["parity", "verify", "memory"])
def test_what_is_not_timed_is_not_disturbed(name: str) -> None:
    assert disturbances([passing(name, contended="x", throttled="y", others_share=None)], strict=True) == []


def test_what_could_not_be_looked_at_counts_for_the_strict() -> None:
    blind = passing("latency", others_share=None, unknown=["emulated: it is not ours"])
    assert disturbances([blind]) == []
    assert disturbances([blind], strict=True) == ["latency: emulated: it is not ours"]
    silent = passing("latency", others_share=None)
    assert disturbances([silent], strict=True) == ["latency: other processes could not be looked at"]
    short = passing("energy", others_share=None)  # without a meter it is over at once
    assert disturbances([short], strict=True) == []


def test_nothing_seen_is_nothing() -> None:
    assert disturbances([], strict=True) == []
    assert disturbances([passing("latency"), passing("energy")], strict=True) == []
