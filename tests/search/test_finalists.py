"""Which trials are exported: every mode's choice, a spread of the front, and never too few."""

from __future__ import annotations

from toggle_edge.config import Config, Format
from toggle_edge.search.finalists import finalists, predicted_front, predicted_selection
from toggle_edge.search.trial import Observation, Trial

MODES = ("strict", "relaxed")


def trial(index: int, flops: float, avgpp: float, *, strict: bool, relaxed: bool) -> Trial:
    robustness = {"strict": 0.1 if strict else -0.1 * flops, "relaxed": 0.1 if relaxed else -0.1}
    observation = Observation(flops, avgpp, robustness, {"strict": strict, "relaxed": relaxed})
    return Trial(index, Config.of({"a": Format(4, 32)}), "test", observation)


def test_a_mode_selects_its_cheapest_feasible_trial() -> None:
    trials = [
        trial(0, 1.0, 80.0, strict=False, relaxed=False),
        trial(1, 2.0, 90.0, strict=False, relaxed=True),
        trial(2, 4.0, 99.5, strict=True, relaxed=True),
        trial(3, 3.0, 99.0, strict=True, relaxed=True),
        trial(4, 3.0, 99.9, strict=True, relaxed=True),
    ]
    assert getattr(predicted_selection(trials, "strict"), "index", None) == 3  # the earliest at a tie
    assert getattr(predicted_selection(trials, "relaxed"), "index", None) == 1
    assert predicted_selection(trials[:1], "strict") is None
    assert [t.index for t in predicted_front(trials)] == [1, 4]


def selected(trials: list[Trial]) -> dict[str, Trial | None]:
    return {mode: predicted_selection(trials, mode) for mode in MODES}


def test_finalists_hold_every_modes_choice_cheapest_first() -> None:
    trials = [trial(i, 10.0 - i, 100.0 - i, strict=i < 5, relaxed=True) for i in range(10)]
    chosen = finalists(trials, selected(trials), 4)
    assert len(chosen) == 4
    assert {4, 9} <= {t.index for t in chosen}
    costs = [t.observation.proxy_flops for t in chosen]
    assert costs == sorted(costs)


def test_where_too_few_are_feasible_the_least_violated_fill_up() -> None:
    trials = [trial(i, 1.0 + i, 50.0, strict=False, relaxed=False) for i in range(6)]
    assert [t.index for t in finalists(trials, selected(trials), 3)] == [0, 1, 2]


def test_fewer_trials_than_asked_for_are_all_finalists() -> None:
    trials = [trial(i, 1.0 + i, 90.0 + i, strict=True, relaxed=True) for i in range(2)]
    assert len(finalists(trials, selected(trials), 5)) == 2
