"""The search on problems whose answer is known: its purity, resume, batches, and what guides it."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from search_problems import MENU, MODES, SENSITIVITY, SPACE, UNITS, Memory, bits_of, evaluate

from toggle_edge.config import FP16, Config
from toggle_edge.errors import SearchError
from toggle_edge.pareto import hypervolume
from toggle_edge.search import study as study_module
from toggle_edge.search.acquisition import CHEAPEST, FIRST, FRONT, log_merits, reached_points
from toggle_edge.search.belief import Belief, Forecast, believe, design_of
from toggle_edge.search.dimensions import block_dimensions, unit_dimensions
from toggle_edge.search.executors import InProcess, LocalProcesses
from toggle_edge.search.pool import POOL_SIZE, candidate_pool, incumbents, refined, switched, trust_radius
from toggle_edge.search.seeds import initial_design
from toggle_edge.search.sensitivity import expected_harm, measure
from toggle_edge.search.space import Space
from toggle_edge.search.study import LEARNING_TRIALS, Study
from toggle_edge.search.surrogate import isolated
from toggle_edge.search.trial import Observation, Trial
from toggle_edge.store import StudyIdentity, open_store

SENSITIVITIES = measure(SPACE, lambda config: evaluate(config)[0], SPACE.decode(SPACE.safest))
HARMS = expected_harm(SPACE, SENSITIVITIES)


def study(
    ledger: Memory, seed: int = 0, max_trials: int = 24, space: Space = SPACE, batch: int = 1, **changes: Any
) -> Study:
    return Study(
        space,
        ledger,
        seed=seed,
        max_trials=max_trials,
        modes=MODES,
        initial=initial_design(space),
        batch=batch,
        **({"sensitivities": SENSITIVITIES} if space is SPACE else {}),
        **changes,
    )


@pytest.fixture(scope="module")
def history() -> tuple[Trial, ...]:
    return study(Memory()).run(evaluate)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_search_beats_the_cheapest_feasible_uniform_config(history: tuple[Trial, ...], seed: int) -> None:
    trials = history if seed == 0 else study(Memory(), seed).run(evaluate)
    for mode in MODES:
        feasible = [trial for trial in trials if trial.observation.feasible[mode]]
        uniform = min(t.observation.proxy_flops for t in feasible if t.origin.startswith("uniform"))
        assert min(t.observation.proxy_flops for t in feasible) <= 0.85 * uniform, mode


def test_the_true_front_of_an_enumerable_problem_is_found() -> None:
    """The oracle is enumeration: 6 units of 4 formats, 4,096 configs, of which 60 are tried."""
    units = dict(itertools.islice(UNITS.items(), 6))
    space = Space.of_units(units, MENU, bits_of)
    everything = [evaluate(config)[0] for config in space.enumerate()]
    assert len(everything) == 4**6
    trials = study(Memory(), max_trials=60, space=space).run(evaluate)

    def volume(outcomes: Sequence[Observation], mode: str) -> float:
        points = [[o.proxy_flops, -(o.avgpp or 0.0)] for o in outcomes if o.feasible[mode]]
        return hypervolume(points, (16.0 * 6, -MODES[mode]))

    for mode in MODES:
        assert volume([t.observation for t in trials], mode) >= 0.95 * volume(everything, mode)


def test_no_config_is_proposed_twice_and_all_modes_and_single_ones_take_turns(
    history: tuple[Trial, ...],
) -> None:
    assert len({trial.config.digest for trial in history}) == len(history) == 24
    assert [trial.index for trial in history] == list(range(24))
    origins = [trial.origin for trial in history[4:12]]
    assert origins[0::2] == ["front"] * 4
    assert origins[1::2] == ["front strict", "front relaxed", "cheapest strict", "cheapest relaxed"]


def test_once_the_choices_are_known_only_single_modes_are_served() -> None:
    learning = LEARNING_TRIALS * len(SPACE.dimensions)
    later = study(Memory(), max_trials=learning + 3).run(evaluate)[learning - 2 :]
    assert [trial.origin for trial in later[:2]].count("front") == 1
    assert all(len(trial.origin.split()) == 2 for trial in later[2:])


def test_a_mode_without_a_feasible_trial_has_turns_of_its_own() -> None:
    def hard(config: Config, /) -> tuple[Observation, Mapping[str, object]]:
        found, payload = evaluate(config)
        robustness = {**found.robustness, "strict": (found.robustness["strict"] or 0.0) - 0.5}
        return replace(found, robustness=robustness, feasible={**found.feasible, "strict": False}), payload

    origins = [trial.origin for trial in study(Memory(), max_trials=12).run(hard)][4:]
    assert origins.count("first strict") == 4
    assert "cheapest strict" not in origins
    assert any("relaxed" in origin for origin in origins)


def test_the_same_seed_gives_the_same_search_and_another_seed_another(history: tuple[Trial, ...]) -> None:
    assert study(Memory(), max_trials=10).run(evaluate) == history[:10]
    assert study(Memory(), seed=5).run(evaluate) != history


@pytest.mark.parametrize("batch", [1, 3])
def test_a_search_killed_at_any_trial_goes_on_as_if_it_had_not_been(batch: int) -> None:
    whole = study(Memory(), max_trials=9, batch=batch).run(evaluate)
    for stop in (1, 5, 7):
        evaluated: list[Config] = []

        def counting(
            config: Config, /, seen: list[Config] = evaluated
        ) -> tuple[Observation, Mapping[str, object]]:
            seen.append(config)
            return evaluate(config)

        assert study(Memory(whole[:stop]), max_trials=9, batch=batch).run(counting) == whole
        assert evaluated == [trial.config for trial in whole[stop:]]


def test_a_batch_does_not_depend_on_who_evaluates_it_or_how_many_at_once() -> None:
    alone = study(Memory(), max_trials=12, batch=4).run(evaluate, executor=InProcess())
    with LocalProcesses(2) as two:
        together = study(Memory(), max_trials=12, batch=4).run(evaluate, executor=two)
    assert alone == together
    with pytest.raises(SearchError, match="1 or more workers"):
        LocalProcesses(0)


def test_before_each_batch_the_trials_before_it_are_told(history: tuple[Trial, ...]) -> None:
    told: list[int] = []
    whole = study(Memory(), max_trials=9, batch=4).run(
        evaluate, on_batch=lambda known: told.append(len(known))
    )
    assert told == [0, 4, 8]
    told.clear()
    study(Memory(whole[:6]), max_trials=9, batch=4).run(
        evaluate, on_batch=lambda known: told.append(len(known))
    )
    assert told == [4, 8]


def test_trials_of_a_batch_differ(history: tuple[Trial, ...]) -> None:
    trials = study(Memory(), max_trials=16, batch=8).run(evaluate)
    assert len({trial.config.digest for trial in trials}) == 16


def test_the_search_resumes_from_the_store(history: tuple[Trial, ...], tmp_path: object) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    identity = StudyIdentity("m", "d", "/m", "p", "/p", "e", "/probes", "f", "t", 0)
    for max_trials in (6, 9):
        with open_store(url) as store:
            ledger = store.ledger(store.open_study("s", identity).id)
            trials = replace(study(Memory(), max_trials=max_trials), ledger=ledger).run(evaluate)
    assert [trial.config for trial in trials] == [trial.config for trial in history[:9]]


def test_laws_that_cannot_be_fitted_do_not_stop_the_search(
    history: tuple[Trial, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise SearchError("singular")

    monkeypatch.setattr(study_module, "believe", fails)
    first, second = (study(Memory()).propose(history[:8]) for _ in range(2))
    assert first == second, "a resumed search must propose the same"
    origin, config = first
    assert origin == "switch"
    assert config.digest not in {trial.config.digest for trial in history[:8]}


def test_proposing_is_pure(history: tuple[Trial, ...]) -> None:
    torch.set_num_threads(2)
    torch.manual_seed(7)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state(legacy=False)
    first = study(Memory()).propose(history[:8])
    assert torch.get_num_threads() == 2
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_equal(np.random.get_state(legacy=False), numpy_state)
    torch.manual_seed(8)
    np.random.seed(8)
    torch.set_num_threads(1)
    assert study(Memory()).propose(history[:8]) == first == (history[8].origin, history[8].config)


def test_new_trials_are_announced_and_old_ones_are_not(history: tuple[Trial, ...]) -> None:
    heard: list[Trial] = []
    study(Memory(history[:5]), max_trials=7).run(evaluate, heard.append)
    assert heard == list(history[5:7])


def test_structure_is_searched_too_and_a_config_has_one_spelling() -> None:
    layers = tuple(layer for names in UNITS.values() for layer in names)
    blocks = {number: layers[4 * number : 4 * number + 4] for number in range(3)}
    dimensions = (
        *unit_dimensions(UNITS, MENU),
        *block_dimensions(blocks, removable=[1, 2], channels={0: [8, 16]}),
    )
    space = Space(layers, dimensions, bits_of)

    def without_blocks(config: Config, /) -> tuple[Observation, Mapping[str, object]]:
        """Leaving out the second block costs little, the third too much for any mode."""
        left_out = config.structure.removed_blocks
        loss = 0.3 * (1 in left_out) + 50.0 * (2 in left_out) + 0.01 * sum(fmt.bits < 8 for _, fmt in config)
        joint = {"strict": 0.2 - loss / 5, "relaxed": 0.5 - loss / 20}
        feasible = {mode: joint[mode] >= 0 and 100 - loss >= target for mode, target in MODES.items()}
        return Observation(bits_of(config), 100 - loss, joint, feasible), {}

    trials = study(Memory(), max_trials=20, space=space).run(without_blocks)
    levels = [space.levels(trial.config) for trial in trials]
    assert len(set(levels)) == len(levels) == 20
    best = min(
        (t for t in trials if t.observation.feasible["strict"]), key=lambda t: t.observation.proxy_flops
    )
    assert best.config.structure.removed_blocks == (1,)


def test_a_small_space_is_searched_to_its_end() -> None:
    small = Space.of_units(dict(itertools.islice(UNITS.items(), 2)), MENU[:3], bits_of)

    def flat(config: Config, /) -> tuple[Observation, Mapping[str, object]]:
        return Observation(bits_of(config), 99.5, dict.fromkeys(MODES, 0.1), dict.fromkeys(MODES, True)), {}

    trials = study(Memory(), max_trials=100, space=small).run(flat)
    assert {trial.config.digest for trial in trials} == {config.digest for config in small.enumerate()}
    with pytest.raises(SearchError, match="nothing left"):
        study(Memory(), max_trials=100, space=small).propose(trials)


def test_a_small_space_with_structure_ends_with_its_last_config_though_it_has_more_spellings() -> None:
    layers = tuple(layer for names in itertools.islice(UNITS.values(), 3) for layer in names)
    dimensions = (
        *unit_dimensions(dict(itertools.islice(UNITS.items(), 3)), MENU[:2]),
        *block_dimensions({number: [layer] for number, layer in enumerate(layers)}, removable=[1, 2]),
    )
    small = Space(layers, dimensions, bits_of)
    digests = {config.digest for config in small.enumerate()}
    assert small.size == len(digests) == 18  # of 32 vectors of levels

    def flat(config: Config, /) -> tuple[Observation, Mapping[str, object]]:
        return Observation(bits_of(config), 99.5, dict.fromkeys(MODES, 0.1), dict.fromkeys(MODES, True)), {}

    trials = study(Memory(), max_trials=100, space=small).run(flat)
    assert {trial.config.digest for trial in trials} == digests


def test_missing_outcomes_do_not_stop_the_search() -> None:
    def unset(config: Config, /) -> tuple[Observation, Mapping[str, object]]:
        return Observation(bits_of(config), None, dict.fromkeys(MODES), dict.fromkeys(MODES, False)), {}

    assert len(study(Memory(), max_trials=7).run(unset)) == 7


def test_refuted_trials_guide_the_search_too() -> None:
    """What fails every mode says no more than that its robustness is at most so much, and no AvgPP."""

    def refuting(config: Config, /) -> tuple[Observation, Mapping[str, object]]:
        found, payload = evaluate(config)
        if any(found.feasible.values()):
            return found, payload
        bounds = {mode: min(value or 0.0, 0.0) / 2 for mode, value in found.robustness.items()}
        own = {mode: {"second": bound} for mode, bound in bounds.items()}
        return Observation(found.proxy_flops, 50.0, bounds, found.feasible, own, refuted=True), payload

    trials = study(Memory(), max_trials=30).run(refuting)
    for mode in MODES:
        feasible = [trial for trial in trials if trial.observation.feasible[mode]]
        uniform = min(t.observation.proxy_flops for t in feasible if t.origin.startswith("uniform"))
        assert min(t.observation.proxy_flops for t in feasible) <= 0.9 * uniform, mode


def test_a_margin_makes_the_search_aim_higher() -> None:
    plain = study(Memory(), max_trials=16).run(evaluate)
    careful = study(Memory(), max_trials=16, margins=dict.fromkeys(MODES, 0.15)).run(evaluate)

    def aimed(trials: Sequence[Trial]) -> float:
        own = [t.observation.robustness["strict"] for t in trials if t.origin == "cheapest strict"]
        return float(np.median([value for value in own if value is not None]))

    assert aimed(careful) > aimed(plain)


def test_another_studys_trials_are_refused(history: tuple[Trial, ...]) -> None:
    swapped = [replace(history[0], config=history[1].config)]
    with pytest.raises(SearchError, match="starts with"):
        study(Memory(swapped)).run(evaluate)
    with pytest.raises(SearchError, match="expected trial 0, got 1"):
        study(Memory(history[1:3])).run(evaluate)
    with pytest.raises(SearchError, match="lacks"):
        study(Memory([replace(history[0], config=Config.uniform(("x",), FP16))])).run(evaluate)


def test_an_observation_without_a_mode_is_refused() -> None:
    def forgetful(config: Config, /) -> tuple[Observation, Mapping[str, object]]:
        return Observation(1.0, 99.0, {"strict": 0.1}, {"strict": True}), {}

    with pytest.raises(SearchError, match="relaxed"):
        study(Memory()).run(forgetful)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": -1},
        {"max_trials": 0},
        {"batch": 0},
        {"modes": {}},
        {"modes": {"strict": 101.0}},
        {"initial": ()},
        {"initial": "twice"},
    ],
)
def test_arguments_without_a_search_are_refused(change: dict[str, Any]) -> None:
    if change.get("initial") == "twice":
        change = {"initial": [("a", Config.uniform(SPACE.layers, FP16))] * 2}
    with pytest.raises(SearchError, match=r"study: .*expected"):
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


def believed(trials: Sequence[Trial], levels: Sequence[tuple[int, ...]]) -> tuple[Belief, Forecast]:
    with isolated(0):
        belief = believe(SPACE, trials, HARMS, SENSITIVITIES.untouched, targets=MODES, margins={})
        return belief, belief.forecast(design_of(SPACE, list(levels)))


def random_trials(count: int) -> list[Trial]:
    generator = np.random.default_rng(50)
    configs = [SPACE.random(generator) for _ in range(count)]
    return [Trial(index, config, "random", evaluate(config)[0]) for index, config in enumerate(configs)]


def test_the_chance_of_feasibility_is_that_of_the_problem() -> None:
    generator = np.random.default_rng(3)
    levels = [SPACE.levels(SPACE.random(generator)) for _ in range(150)]
    _, forecast = believed(random_trials(24), levels)
    for mode in MODES:
        truth = [evaluate(SPACE.decode(each))[0].feasible[mode] for each in levels]
        chances = forecast.log_chances[mode].exp().numpy()
        assert np.mean((chances - truth) ** 2) < 0.2 * np.var(truth), mode
        assert (forecast.log_chances[mode] <= forecast.log_robust[mode] + 1e-12).all()


def test_failing_by_a_hair_pulls_otherwise_than_failing_badly() -> None:
    """With delicate units low a trial fails badly; with the others a little too low, by a hair, and is promising."""
    base = [(trial_config, f"u{i}") for i, (_, trial_config) in enumerate(initial_design(SPACE))]
    trials = [Trial(i, config, name, evaluate(config)[0]) for i, (config, name) in enumerate(base)]
    hair = tuple(2 if SENSITIVITY[n] > 1 else 1 for n in range(12))
    badly = tuple(0 if SENSITIVITY[n] > 1 else 3 for n in range(12))
    assert evaluate(SPACE.decode(badly))[0].robustness["strict"] < -1.0  # type: ignore[operator]
    near, far = believed(trials, [hair, badly])[1].log_chances["strict"].exp().tolist()
    assert near > 1000 * far


def test_what_avgpp_taught_is_expected_of_robustness_too() -> None:
    """Where robustness is always the same it teaches nothing; its law still learns from AvgPP which units matter."""
    wrong = {key: np.roll(table, 1, axis=0) for key, table in HARMS.items()}
    same = dict.fromkeys(MODES, 0.01)
    told = [
        replace(trial, observation=replace(trial.observation, robustness=same)) for trial in random_trials(60)
    ]
    with isolated(0):
        belief = believe(SPACE, told, wrong, SENSITIVITIES.untouched, targets=MODES, margins={})
    learnt, true = belief.laws["strict/"].harm.numpy()[:, 1], np.log(SENSITIVITY)
    assert np.corrcoef(wrong["avgpp"][:, 1], true)[0, 1] < 0.0
    assert np.corrcoef(learnt, true)[0, 1] > 0.3


def test_without_trials_that_say_anything_there_is_no_belief() -> None:
    refuted = Observation(1.0, None, dict.fromkeys(MODES), dict.fromkeys(MODES, False), {}, refuted=True)
    with isolated(0), pytest.raises(SearchError, match="says anything about mode 'strict'"):
        believe(
            SPACE,
            [Trial(0, SPACE.decode(SPACE.safest), "x", refuted)],
            HARMS,
            SENSITIVITIES.untouched,
            targets=MODES,
            margins={},
        )


CHEAP, DEAR = (1, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1), (3, 2, 2, 3, 2, 2, 2, 3, 2, 2, 2, 3)
BOX = (24.0, 192.0)


def merits(forecast: Forecast, reached: Mapping[str, Sequence[tuple[float, float]]], goal: str) -> Any:
    costs = np.array([bits_of(SPACE.decode(each)) for each in (CHEAP, DEAR)])
    targets = {mode: MODES[mode] for mode in reached}
    return log_merits(forecast, costs, reached, goal=goal, targets=targets, box=BOX)


def test_gains_are_cost_saved_and_volume_added(history: tuple[Trial, ...]) -> None:
    _, forecast = believed(history, [CHEAP, DEAR])
    for goal in (FRONT, CHEAPEST):
        cheap, dear = merits(forecast, {"relaxed": [(150.0, 97.0)]}, goal)
        assert cheap > dear, goal
    beaten = merits(forecast, {"relaxed": [(30.0, 99.99)]}, FRONT)
    assert (beaten < math.log(1e-3)).all()
    cheap, dear = merits(forecast, {"relaxed": []}, FIRST)
    assert dear >= cheap


def test_a_trial_is_worth_what_it_gains_in_all_modes_together(history: tuple[Trial, ...]) -> None:
    _, forecast = believed(history, [CHEAP, DEAR])
    reached = {"strict": [(160.0, 99.5)], "relaxed": [(150.0, 97.0)]}
    together = np.exp(merits(forecast, reached, FRONT))
    single = [np.exp(merits(forecast, {mode: points}, FRONT)) for mode, points in reached.items()]
    np.testing.assert_allclose(together, single[0] + single[1])


def test_the_volume_is_what_the_staircase_grows_by() -> None:
    """The oracle is the exact hypervolume, of points whose AvgPP is certain."""
    costs, avgpps, reached = [60.0, 100.0, 130.0], [92.0, 97.0, 95.0], [(90.0, 93.0), (140.0, 98.0)]
    sure = torch.zeros(3, dtype=torch.double)
    nodes = torch.tensor(avgpps).double().unsqueeze(-1).expand(3, 4)
    forecast = Forecast({"m": sure}, {"m": sure}, nodes)
    found = np.exp(
        log_merits(
            forecast, np.array(costs), {"m": reached}, goal=FRONT, targets={"m": 85.0}, box=(24.0, 192.0)
        )
    )
    points = [[cost, -avgpp] for cost, avgpp in reached]
    before = hypervolume(points, (192.0, -85.0))
    for gain, cost, avgpp in zip(found, costs, avgpps, strict=True):
        after = hypervolume([*points, [cost, -avgpp]], (192.0, -85.0))
        assert gain == pytest.approx((after - before) / (168.0 * 15.0), abs=1e-8)


def test_what_a_batch_already_asks_for_counts_where_it_is_likely_feasible(history: tuple[Trial, ...]) -> None:
    pending = [SPACE.decode(SPACE.safest), SPACE.decode([0] * 12)]
    with isolated(0):
        belief = believe(SPACE, history, HARMS, SENSITIVITIES.untouched, targets=MODES, margins={})
        plain = reached_points(SPACE, history, [], belief, MODES)
        more = reached_points(SPACE, history, pending, belief, MODES)
    for mode in MODES:
        assert len(plain[mode]) == sum(trial.observation.feasible[mode] for trial in history)
        (extra,) = more[mode][len(plain[mode]) :]
        assert extra[0] == bits_of(pending[0])
        assert extra[1] > MODES[mode]


def test_the_best_of_the_pool_is_improved_by_trades() -> None:
    """The merit has its one peak far from the pool, so that only climbing finds better."""
    peak = np.array([1, 2] * 6)

    def distance(pool: Sequence[tuple[int, ...]]) -> Any:
        return -np.abs(np.array(pool) - peak).sum(axis=1).astype(float)

    pool = [SPACE.safest, tuple([3] * 11 + [2])]
    tried = [tuple(int(level) for level in peak)]
    first, second = (refined(SPACE, tried, pool, distance, np.random.default_rng(0)) for _ in range(2))
    assert first == second
    assert first not in tried
    assert distance([first])[0] > max(distance(pool)) + 5
    flat = refined(SPACE, tried, pool, lambda rows: np.zeros(len(rows)), np.random.default_rng(0))
    assert flat == pool[0]


def test_the_pool_is_distinct_untried_and_repeatable(history: tuple[Trial, ...]) -> None:
    tried = [SPACE.levels(trial.config) for trial in history]
    saved = study(Memory())._saved
    parents = incumbents(SPACE, history, "strict")

    def pool() -> tuple[tuple[int, ...], ...]:
        generator = np.random.default_rng(1)
        return candidate_pool(SPACE, tried, [(parents, 4)], [np.exp(HARMS["avgpp"])], saved, generator)

    found = pool()
    assert POOL_SIZE / 2 < len(set(found)) == len(found) <= POOL_SIZE
    assert not set(found) & set(tried)
    assert found == pool()


def test_switches_move_dimensions_one_level_and_at_most_as_many_as_trusted() -> None:
    generator, parent = np.random.default_rng(0), (1, 2) * 6
    steps = np.array([np.subtract(switched(SPACE, parent, 4, generator), parent) for _ in range(200)])
    assert (np.abs(steps) <= 1).all()
    assert set(np.abs(steps).sum(axis=1)) == {1, 2, 3, 4}
    assert (steps.sum(axis=1) < 0).any()
    assert (steps.sum(axis=1) > 0).any()
    assert ((steps.min(axis=1) < 0) & (steps.max(axis=1) > 0)).any()


def test_the_trust_region_shrinks_without_success_and_opens_with_it() -> None:
    def one(cost: float, feasible: bool) -> Trial:
        outcome = Observation(cost, 99.5, {"m": 0.1 if feasible else -0.1}, {"m": feasible})
        return Trial(0, SPACE.decode(SPACE.safest), "x", outcome)

    stalled = [one(5.0, True), *[one(9.0, True)] * 24]
    assert trust_radius([], "m", 30) == 10
    assert trust_radius(stalled, "m", 30) == 2
    assert trust_radius([*stalled, one(4.0, False)], "m", 30) == 2
    assert trust_radius([*stalled, one(4.0, True)], "m", 30) == 10


def test_without_a_feasible_trial_the_least_violated_ones_are_started_from() -> None:
    outcomes = [Observation(1.0, 90.0, {"m": -0.5 + 0.1 * n}, {"m": False}) for n in range(4)]
    trials = [Trial(n, SPACE.decode([n] * 12), "x", outcome) for n, outcome in enumerate(outcomes)]
    assert incumbents(SPACE, trials, "m")[0] == (3,) * 12
