"""The search on a problem whose answer is known, its purity, resume, and the signs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from toggle_edge.config import FP16, Config, Format
from toggle_edge.errors import SearchError
from toggle_edge.search import study as study_module
from toggle_edge.search.acquisition import CHEAPEST, FRONT, ROBUSTNESS, cost_gain, merits, violation
from toggle_edge.search.seeds import initial_design
from toggle_edge.search.space import Space, storage_bits
from toggle_edge.search.study import Study, parents
from toggle_edge.search.surrogate import fill_missing, fit_outcomes, isolated
from toggle_edge.search.trial import Observation, Trial
from toggle_edge.store import StudyIdentity, open_store

MENU = tuple(Format.parse(text) for text in ("int2-g64", "int4-g32", "int8-g64", "fp16"))
LAYERS = tuple(f"layer{i:02}" for i in range(12))
MODES = {"strict": 99.0, "relaxed": 85.0}
SENSITIVITY = np.array([8.0, 0.1, 0.1, 4.0, 0.1, 0.2, 0.1, 6.0, 0.1, 0.2, 0.1, 3.0])
ALL_GOOD = dict.fromkeys(MODES, 0.1)
HARM = {2: 1.0, 4: 0.25, 8: 0.004, 16: 0.0}


def proxy_flops(config: Config) -> float:
    return sum(storage_bits(fmt) for _, fmt in config)


SPACE = Space(LAYERS, MENU, proxy_flops)


def evaluate(config: Config) -> tuple[Observation, Mapping[str, object]]:
    """Losses that add up, plus an interaction of neighbours; four layers matter, eight hardly do."""
    harm = SENSITIVITY * np.array([HARM[fmt.bits] for _, fmt in config])
    loss = float(harm.sum() + 0.3 * np.sqrt(harm[1:] * harm[:-1]).sum())
    robustness = {"strict": 0.2 - loss / 5, "relaxed": 0.5 - loss / 20}
    feasible = {mode: robustness[mode] >= 0 and 100 - loss >= target for mode, target in MODES.items()}
    return Observation(proxy_flops(config), 100 - loss, robustness, feasible), {"loss": loss}


class Memory:
    def __init__(self, trials: Sequence[Trial] = ()) -> None:
        self.kept = list(trials)

    def trials(self) -> Sequence[Trial]:
        return list(self.kept)

    def record(self, trial: Trial) -> None:
        self.kept.append(trial)


def study(ledger: Memory, seed: int = 0, max_trials: int = 30, space: Space = SPACE) -> Study:
    initial = [(f"uniform {fmt}", config) for fmt, config in zip(space.menu, space.uniforms(), strict=True)]
    return Study(space, ledger, seed=seed, max_trials=max_trials, modes=MODES, initial=initial)


@pytest.fixture(scope="module")
def history() -> tuple[Trial, ...]:
    return study(Memory()).run(evaluate)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_search_beats_the_cheapest_feasible_uniform_config(history: tuple[Trial, ...], seed: int) -> None:
    trials = history if seed == 0 else study(Memory(), seed).run(evaluate)
    for mode in MODES:
        feasible = [trial for trial in trials if trial.observation.feasible[mode]]
        uniform = min(t.observation.proxy_flops for t in feasible if t.origin.startswith("uniform"))
        best = min(t.observation.proxy_flops for t in feasible)
        assert best < uniform, mode


def test_the_known_problem_is_not_solved_by_a_uniform_config() -> None:
    """The oracle: two bits for the layers that hardly matter are feasible and far cheaper."""
    levels = [1 if sensitivity > 1 else 0 for sensitivity in SENSITIVITY]
    mixed, _ = evaluate(SPACE.decode(levels))
    uniform = [evaluate(config)[0] for config in SPACE.uniforms()]
    assert mixed.feasible["relaxed"]
    assert not mixed.feasible["strict"]
    assert mixed.proxy_flops < min(o.proxy_flops for o in uniform if o.feasible["relaxed"])


def test_no_config_is_proposed_twice_and_modes_take_turns(history: tuple[Trial, ...]) -> None:
    assert len({trial.config.digest for trial in history}) == len(history) == 30
    assert [trial.index for trial in history] == list(range(30))
    origins = [trial.origin for trial in history[4:]]
    assert origins == ["bo strict", "bo relaxed"] * 13


def test_the_same_seed_gives_the_same_search_and_another_seed_another(history: tuple[Trial, ...]) -> None:
    assert study(Memory(), max_trials=10).run(evaluate) == history[:10]
    assert study(Memory(), seed=5, max_trials=10).run(evaluate) != history[:10]


@pytest.mark.parametrize("stop", [2, 4, 7])
def test_a_resumed_search_equals_an_uninterrupted_one(history: tuple[Trial, ...], stop: int) -> None:
    evaluated: list[Config] = []

    def counting(config: Config) -> tuple[Observation, Mapping[str, object]]:
        evaluated.append(config)
        return evaluate(config)

    resumed = study(Memory(history[:stop]), max_trials=9).run(counting)
    assert resumed == history[:9]
    assert evaluated == [trial.config for trial in history[stop:9]]


def test_the_search_resumes_from_the_store(history: tuple[Trial, ...], tmp_path: object) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    identity = StudyIdentity("m", "d", "/m", "p", "/p", "e", "/probes", "f", "t", 0)
    for max_trials in (6, 9):
        with open_store(url) as store:
            ledger = store.ledger(store.open_study("s", identity).id)
            trials = replace(study(Memory(), max_trials=max_trials), ledger=ledger).run(evaluate)
    assert trials == history[:9]


def test_a_surrogate_that_cannot_be_fitted_does_not_stop_the_search(
    history: tuple[Trial, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise SearchError("not positive definite")

    monkeypatch.setattr(study_module, "merits", fails)
    first, second = (study(Memory()).propose(history[:8]) for _ in range(2))
    assert first == second, "a resumed search must propose the same"
    origin, config = first
    assert origin.startswith("pool ")
    assert config.digest not in {trial.config.digest for trial in history[:8]}


def test_proposing_is_pure(history: tuple[Trial, ...]) -> None:
    torch.set_num_threads(2)
    torch.manual_seed(7)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state(legacy=False)
    first = study(Memory()).propose(history[:8])
    assert torch.get_num_threads() == 2
    assert torch.equal(torch.get_rng_state(), torch_state)
    after = np.random.get_state(legacy=False)
    np.testing.assert_equal(after, numpy_state)
    torch.manual_seed(8)
    np.random.seed(8)
    torch.set_num_threads(1)
    assert study(Memory()).propose(history[:8]) == first == (history[8].origin, history[8].config)


def test_new_trials_are_announced_and_old_ones_are_not(history: tuple[Trial, ...]) -> None:
    heard: list[Trial] = []
    study(Memory(history[:5]), max_trials=7).run(evaluate, heard.append)
    assert heard == list(history[5:7])


def test_a_small_space_is_searched_to_its_end() -> None:
    small = Space(LAYERS[:2], MENU[:3], proxy_flops)

    def flat(config: Config) -> tuple[Observation, Mapping[str, object]]:
        return Observation(
            proxy_flops(config), 99.5, dict.fromkeys(MODES, 0.1), dict.fromkeys(MODES, True)
        ), {}

    trials = study(Memory(), max_trials=100, space=small).run(flat)
    assert {trial.config.digest for trial in trials} == {config.digest for config in small.enumerate()}
    with pytest.raises(SearchError, match="nothing left"):
        study(Memory(), max_trials=100, space=small).propose(trials)


def test_missing_outcomes_do_not_stop_the_search() -> None:
    def unset(config: Config) -> tuple[Observation, Mapping[str, object]]:
        return Observation(proxy_flops(config), None, dict.fromkeys(MODES), dict.fromkeys(MODES, False)), {}

    assert len(study(Memory(), max_trials=7).run(unset)) == 7


def test_another_studys_trials_are_refused(history: tuple[Trial, ...]) -> None:
    swapped = [replace(history[0], config=history[1].config)]
    with pytest.raises(SearchError, match="starts with"):
        study(Memory(swapped)).run(evaluate)
    with pytest.raises(SearchError, match="expected trial 0, got 1"):
        study(Memory(history[1:3])).run(evaluate)
    with pytest.raises(SearchError, match="layers"):
        study(Memory([replace(history[0], config=Config.uniform(("x",), FP16))])).run(evaluate)


def test_an_observation_without_a_mode_is_refused() -> None:
    def forgetful(config: Config) -> tuple[Observation, Mapping[str, object]]:
        return Observation(1.0, 99.0, {"strict": 0.1}, {"strict": True}), {}

    with pytest.raises(SearchError, match="relaxed"):
        study(Memory()).run(forgetful)


@pytest.mark.parametrize(
    "change", [{"seed": -1}, {"max_trials": 0}, {"modes": {}}, {"initial": ()}, {"initial": "twice"}]
)
def test_arguments_without_a_search_are_refused(change: dict[str, Any]) -> None:
    if change.get("initial") == "twice":
        change = {"initial": [("a", Config.uniform(LAYERS, FP16))] * 2}
    with pytest.raises(SearchError, match="study: expected"):
        replace(study(Memory()), **change)


@pytest.mark.parametrize(
    ("avgpp", "robustness", "feasible"),
    [
        (float("nan"), 0.1, False),
        (99.0, float("inf"), False),
        (99.0, None, True),
        (99.0, -0.1, True),
        (None, 0.1, True),
    ],
)
def test_nothing_unknown_passes_as_feasible(
    avgpp: float | None, robustness: float | None, feasible: bool
) -> None:
    with pytest.raises(SearchError, match="observation"):
        Observation(1.0, avgpp, {"strict": robustness}, {"strict": feasible})
    with pytest.raises(SearchError, match="modes"):
        Observation(1.0, 99.0, {"strict": 0.1}, {})


def observed(config: Config, avgpp: float, robustness: float) -> Trial:
    ok = robustness >= 0 and avgpp >= 85
    return Trial(0, config, "x", Observation(proxy_flops(config), avgpp, {"m": robustness}, {"m": ok}))


def test_the_signs_that_botorch_sees() -> None:
    gains = cost_gain(SPACE, np.array([proxy_flops(config) for config in SPACE.uniforms()]))
    assert gains[0] == 1.0
    assert gains[-1] == 0.0
    assert (np.diff(gains) < 0).all()
    samples = torch.zeros(3, ROBUSTNESS + 1)
    samples[:, ROBUSTNESS] = torch.tensor([0.3, 0.0, -0.3])
    assert (violation(samples) <= 0).tolist() == [True, True, False]


@pytest.mark.parametrize("goal", [FRONT, CHEAPEST])
def test_a_candidate_near_violated_trials_is_worth_less(goal: str) -> None:
    """Layer 0 decides robustness. Both candidates cost the same, but only one keeps layer 0's bits."""
    space = Space(LAYERS[:3], MENU, proxy_flops)
    trials = [
        observed(space.decode(levels), 90.0, 0.2 if levels[0] >= 2 else -0.3)
        for levels in [(0, 3, 3), (1, 3, 3), (2, 3, 3), (3, 3, 3), (0, 2, 2), (3, 2, 2), (3, 1, 2), (1, 1, 3)]
    ]
    pool = [space.decode((3, 1, 1)), space.decode((1, 1, 3))]
    assert proxy_flops(pool[0]) == proxy_flops(pool[1])
    safe, violating = merits(space, trials, pool, mode="m", avgpp_target=85.0, goal=goal, seed=0)
    assert safe > violating


def test_with_equal_outcomes_the_cheaper_candidate_is_worth_more() -> None:
    space = Space(LAYERS[:3], MENU, proxy_flops)
    trials = [observed(space.decode((3, 3, i)), 95.0, 0.2) for i in range(4)]
    pool = [space.decode((1, 2, 2)), space.decode((3, 2, 2))]
    for goal in (FRONT, CHEAPEST):
        cheap, dear = merits(space, trials, pool, mode="m", avgpp_target=85.0, goal=goal, seed=0)
        assert cheap > dear


def test_with_equal_costs_the_higher_avgpp_is_worth_more_for_the_front() -> None:
    space = Space(LAYERS[:3], MENU, proxy_flops)
    levels = [(0, 3, 3), (1, 3, 3), (2, 3, 3), (3, 3, 3), (3, 0, 3), (3, 3, 0), (3, 2, 2)]
    trials = [observed(space.decode(each), 86.0 + 4 * each[0], 0.2) for each in levels]
    pool = [space.decode((0, 3, 2)), space.decode((3, 0, 2))]
    low, high = merits(space, trials, pool, mode="m", avgpp_target=85.0, goal=FRONT, seed=0)
    assert high > low


def test_without_a_feasible_trial_the_least_violated_region_is_searched() -> None:
    trials = [observed(SPACE.decode([level] * 12), 90.0 + level, -0.5 + 0.1 * level) for level in range(4)]
    assert parents(trials, "m")[0] == trials[3].config
    pool = [SPACE.decode([0] * 11 + [1]), SPACE.decode([3] * 11 + [2])]
    worse, better = merits(SPACE, trials, pool, mode="m", avgpp_target=85.0, goal=FRONT, seed=0)
    assert better > worse


def test_a_missing_outcome_counts_as_worse_than_everything_known_and_than_its_bar() -> None:
    assert fill_missing([0.3, None, 0.2], 0.0).tolist() == pytest.approx([0.3, -0.1, 0.2])
    assert fill_missing([-1.0, None, 1.0], 0.0).tolist() == [-1.0, -3.0, 1.0]
    assert fill_missing([None], 85.0)[0] < 85.0


def test_the_surrogate_interpolates_in_the_unit_of_the_outcomes() -> None:
    design = SPACE.encode([config for _, config in initial_design(SPACE, seed=0)])
    outcomes = np.stack([100 * design.mean(axis=1), -design[:, 0]], axis=-1)
    with isolated(0):
        posterior = fit_outcomes(design, outcomes).posterior(torch.from_numpy(design))
    assert posterior.mean.detach().numpy()[:, 0] == pytest.approx(outcomes[:, 0], abs=5.0)
    assert (posterior.variance > 0).all()
