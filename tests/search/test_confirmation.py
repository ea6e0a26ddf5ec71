"""Finalists are judged on probes that did not choose them; a lucky winner does not survive that."""

import numpy as np
import pytest

from toggle_edge.config import Config, Format
from toggle_edge.errors import SearchError
from toggle_edge.search.confirmation import (
    Reading,
    confirm,
    finalists_of_mode,
    guarded_required,
    holding_chance,
    likeliest,
)
from toggle_edge.search.trial import Observation, Trial


def trial(index: int, cost: float, robustness: float) -> Trial:
    config = Config.of({"a": Format(4, 32), f"n{index}": Format(4, 32)})
    return Trial(index, config, "x", Observation(cost, 98.0, {"m": robustness}, {"m": robustness >= 0}))


def test_the_chance_of_holding_agrees_with_simulation() -> None:
    generator = np.random.default_rng(0)
    shares = generator.beta(57.5, 3.5, 200_000)
    simulated = np.mean(generator.binomial(60, shares) >= 57)
    assert holding_chance(57, 60, 57, 60) == pytest.approx(simulated, abs=0.005)
    assert holding_chance(60, 60, 57, 60) > holding_chance(58, 60, 57, 60)
    with pytest.raises(SearchError, match="confirmation"):
        holding_chance(61, 60, 57, 60)


def test_what_the_search_must_ask_for_is_more_than_the_contract() -> None:
    assert guarded_required(60, 57, 60) > 57
    assert holding_chance(guarded_required(60, 54, 60), 60, 54, 60) >= 0.8
    assert holding_chance(guarded_required(60, 54, 60) - 1, 60, 54, 60) < 0.8
    assert guarded_required(60, 60, 60) == 60  # no number of 60 is enough


def test_finalists_trade_cost_for_room() -> None:
    trials = [
        trial(0, 5.0, 0.3),
        trial(1, 3.0, 0.1),
        trial(2, 4.0, 0.05),
        trial(3, 2.0, -0.1),
        trial(4, 2.5, 0.0),
    ]
    assert [t.index for t in finalists_of_mode(trials, "m", 16)] == [4, 1, 0]
    assert [t.index for t in finalists_of_mode(trials, "m", 2)] == [4, 0]
    assert finalists_of_mode(trials[3:4], "m", 16) == []


def test_a_lucky_winner_is_passed_over_early_and_the_first_likely_one_is_taken() -> None:
    trials = [trial(n, 1.0 + n, 0.01 * n) for n in range(5)]
    shares = {t.config.digest: share for t, share in zip(trials, (0.5, 0.85, 0.99, 1.0, 1.0), strict=True)}
    asked: list[tuple[str, int]] = []

    def read(config: Config, count: int) -> Reading:
        asked.append((config.digest, count))
        return Reading(round(shares[config.digest] * count), count, 98.0)

    judged = confirm(trials, "m", read, probes=120, required=57, fresh=60, target=95.0)
    assert [(each.trial.index, each.confirmed) for each in judged] == [(0, False), (1, False), (2, True)]
    assert judged[0].reading.probes == 20
    assert judged[2].reading.probes == 120
    assert [count for digest, count in asked if digest == trials[2].config.digest] == [20, 40, 80, 120]
    best = likeliest(judged)
    assert best is not None
    assert best.trial.index == 2


def test_where_none_is_likely_enough_the_likeliest_is_offered_unconfirmed() -> None:
    trials = [trial(0, 1.0, 0.0), trial(1, 2.0, 0.1)]

    def read(config: Config, count: int) -> Reading:
        return Reading(round((0.9 if config == trials[0].config else 0.94) * count), count, 98.0)

    judged = confirm(trials, "m", read, probes=120, required=57, fresh=60, target=95.0)
    best = likeliest(judged)
    assert best is not None
    assert best.trial.index == 1
    assert not any(each.confirmed for each in judged)
    assert likeliest([]) is None


@pytest.mark.parametrize("avgpp", [94.0, None])
def test_avgpp_must_be_reached_there_too(avgpp: float | None) -> None:
    judged = confirm(
        [trial(0, 1.0, 0.1)],
        "m",
        lambda _, n: Reading(n, n, avgpp),
        probes=120,
        required=57,
        fresh=60,
        target=95.0,
    )
    assert not judged[0].confirmed
    assert judged[0].chance == 0.0
