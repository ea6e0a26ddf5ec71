"""Zero feasible trials: which property blocks, by how much, and what would help."""

import pytest

from toggle_edge.config import Config, Format
from toggle_edge.search.diagnosis import blocked
from toggle_edge.search.trial import Observation, Trial


def trial(
    index: int,
    avgpp: float | None,
    values: dict[str, float | None],
    *,
    joint: float | None = None,
    refuted: bool = False,
) -> Trial:
    known = [value for value in values.values() if value is not None]
    least = joint if joint is not None else min(known, default=None)
    ok = least is not None and least >= 0 and avgpp is not None and avgpp >= 95.0 and not refuted
    outcome = Observation(10.0 - index, avgpp, {"m": least}, {"m": ok}, {"m": values}, refuted)
    return Trial(index, Config.of({"a": Format(4, 32)}), "x", outcome)


def test_the_blocking_property_and_the_least_change_are_named() -> None:
    found = blocked(
        [
            trial(0, 97.0, {"coherence": -0.3, "factual": -0.4}),
            trial(1, 96.0, {"coherence": 0.1, "factual": -0.05}),
            trial(2, 95.5, {"coherence": -0.2, "factual": 0.1}),
            trial(3, 60.0, {"coherence": -0.9, "factual": -0.9}, refuted=True),
        ],
        "m",
        95.0,
    )
    assert found is not None
    assert found.nearest == 1
    assert dict(found.missing) == {"factual": 0.05}
    assert [(each.outcome, each.by, each.trial) for each in found.relaxations] == [
        ("factual", 0.05, 1),
        ("coherence", 0.2, 2),
    ]
    assert found.refuted == 1
    assert "factual blocks; trial 1" in found.message
    assert "by 0.05" in found.message


def test_avgpp_may_be_what_blocks() -> None:
    found = blocked([trial(0, 94.5, {"coherence": 0.1})], "m", 95.0)
    assert found is not None
    assert dict(found.missing) == {"avgpp": 0.5}
    assert "AvgPP target lower by 0.5" in found.message


def test_a_mode_may_fail_although_each_property_holds_at_its_coverage() -> None:
    found = blocked([trial(0, 97.0, {"coherence": 0.1, "factual": 0.02}, joint=-0.03)], "m", 95.0)
    assert found is not None
    assert dict(found.missing) == {"factual": 0.03}


def test_nothing_is_blocked_where_a_trial_is_feasible_and_nothing_is_said_of_what_was_not_judged() -> None:
    assert blocked([trial(0, 97.0, {"coherence": 0.1})], "m", 95.0) is None
    unset = blocked([trial(0, None, {"coherence": None})], "m", 95.0)
    assert unset is not None
    assert unset.nearest is None
    assert "1 unset" in unset.message
    two = blocked([trial(0, 90.0, {"coherence": -0.1})], "m", 95.0)
    assert two is not None
    assert "no single change" in two.message
    whole = "the threshold of coherence weaker by 0.1 and the AvgPP target lower by 5 for that trial"
    assert whole in two.message


@pytest.mark.parametrize(
    ("by", "said"), [(0.05, "0.05"), (0.23041, "0.231"), (0.99999, "1"), (7.0001, "7.01")]
)
def test_what_is_advised_suffices(by: float, said: str) -> None:
    found = blocked([trial(0, 97.0, {"coherence": -by})], "m", 95.0)
    assert found is not None
    assert f"the threshold of coherence weaker by {said} would" in found.message
    assert float(said) >= by
