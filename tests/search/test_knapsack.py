"""The knapsack against enumeration, and what the sensitivities let expect."""

import itertools
import math

import numpy as np
import pytest
from search_problems import HARM, MENU, SENSITIVITY, SPACE, UNITS, bits_of, evaluate

from toggle_edge.config import FP16, Config, Format
from toggle_edge.errors import SearchError
from toggle_edge.search.dimensions import block_dimensions, unit_dimensions
from toggle_edge.search.knapsack import along_cost_axis, least_harm, saved_costs
from toggle_edge.search.outcomes import AVGPP
from toggle_edge.search.seeds import initial_design
from toggle_edge.search.sensitivity import NO_HARM, Sensitivities, expected_harm, measure
from toggle_edge.search.space import Space
from toggle_edge.search.trial import Observation

SMALL = Space.of_units(dict(itertools.islice(UNITS.items(), 5)), MENU, bits_of)


@pytest.mark.parametrize("seed", range(5))
def test_the_knapsack_finds_what_enumeration_finds(seed: int) -> None:
    generator = np.random.default_rng(seed)
    harm, saved = generator.exponential(size=(5, 4)), np.sort(generator.uniform(size=(5, 4)), axis=1)[:, ::-1]
    saved[2, 3] = math.nan  # one dimension has three choices only
    least = 0.6 * np.nanmax(saved, axis=1).sum()
    best = min(
        (levels for levels in itertools.product(range(4), repeat=5) if _sum(saved, levels) >= least),
        key=lambda levels: _sum(harm, levels),
    )
    found = least_harm(harm, saved, least)
    assert _sum(harm, found) == pytest.approx(_sum(harm, best), rel=1e-3)
    assert _sum(saved, found) >= least * (1 - 1e-9)


def _sum(table: np.ndarray, levels: tuple[int, ...]) -> float:
    return float(table[np.arange(len(levels)), list(levels)].sum())


def test_points_along_the_cost_axis_are_additive_optima_of_their_own_cost() -> None:
    generator = np.random.default_rng(1)
    harm, saved = generator.exponential(size=(5, 4)), np.sort(generator.uniform(size=(5, 4)), axis=1)[:, ::-1]
    for levels in along_cost_axis(harm, saved, [0.1, 1.0, 10.0]):
        optimum = least_harm(harm, saved, _sum(saved, levels))
        assert _sum(harm, levels) == pytest.approx(_sum(harm, optimum), rel=1e-3)


def test_savings_beyond_the_cheapest_choices_are_refused() -> None:
    with pytest.raises(SearchError, match="expected to save"):
        least_harm(np.ones((2, 2)), np.ones((2, 2)), 3.0)


def test_saved_costs_add_up_to_the_cost_of_a_config() -> None:
    saved = saved_costs(SPACE)
    config = SPACE.decode([0, 1, 2, 3] * 3)
    dearest = bits_of(SPACE.decode(SPACE.safest))
    assert dearest - _sum(saved, SPACE.levels(config)) == pytest.approx(bits_of(config))


def sample(config: Config) -> Observation:
    return evaluate(config)[0]


def test_sensitivities_name_the_layers_that_matter() -> None:
    found = measure(SPACE, sample, SPACE.decode(SPACE.safest))
    harm = expected_harm(SPACE, found)[AVGPP]
    assert set(np.argsort(harm[:, 0])[-4:]) == {0, 3, 7, 11}
    assert (np.diff(harm, axis=1) < 0).all()
    # What was measured says how harm falls with bits only at the cheapest choice; the rest is the quantisation step.
    assert harm[1, 0] - harm[1, 1] == pytest.approx(math.log(4.0) * 2.5)
    true = np.log(SENSITIVITY)
    assert np.corrcoef(harm[:, 0], true)[0, 1] > 0.95
    assert HARM[2] == 1.0


def test_a_choice_beyond_what_any_mode_bears_has_the_next_one_measured_too() -> None:
    asked: list[str] = []

    def counting(config: Config) -> Observation:
        asked.append(config.summary())
        loss = 50.0 if any(fmt.bits == 2 for _, fmt in config) else 1.0
        return Observation(0.0, 100 - loss, {"m": 0.2 - loss}, {"m": False})

    found = measure(SMALL, counting, SMALL.decode(SMALL.safest))
    assert len(asked) == 1 + 2 * 5
    assert all(list(choices) == ["int2-g64", "int4-g32"] for choices in found.single.values())


def test_structure_and_sparsity_are_measured_alone_with_the_baselines_formats() -> None:
    units = {"q": ("0.q",), "mlp": ("1.mlp",)}
    dimensions = (
        *unit_dimensions(units, SPACE.dimensions[0].choices[:2], sparsities=(0.5,)),  # type: ignore[arg-type]
        *block_dimensions({0: ("0.q",), 1: ("1.mlp",)}, removable=[1]),
    )
    seen: list[Config] = []

    def noting(config: Config) -> Observation:
        seen.append(config)
        return Observation(0.0, 99.0, {"m": 0.1}, {"m": True})

    baseline = Config.uniform(("0.q", "1.mlp"), FP16)
    harm = expected_harm(
        space := Space(("0.q", "1.mlp"), dimensions, bits_of),
        measure(Space(("0.q", "1.mlp"), dimensions, bits_of), noting, baseline),
    )[AVGPP]
    assert seen[0] == baseline
    assert [dict(config.sparsities) for config in seen if config.sparsities] == [{"0.q": 0.5}, {"1.mlp": 0.5}]
    assert [config.layers for config in seen if config.structure] == [("0.q",)]
    assert sum(fmt == Format(2, 64) for config in seen for _, fmt in config) == 2
    assert harm[space.dimensions.index(dimensions[-1]), 1] == pytest.approx(NO_HARM, abs=0.1)


def test_sensitivities_survive_the_store_and_nonsense_in_it_is_refused() -> None:
    found = measure(SPACE, sample, SPACE.decode(SPACE.safest))
    assert Sensitivities.from_flat(found.to_flat()) == found
    for flat in ({"model.layers.0": 0.1}, {"a|b|c": math.nan}):
        with pytest.raises(SearchError, match="start a new study"):
            Sensitivities.from_flat(flat)


def test_what_could_not_be_judged_counts_as_most_delicate() -> None:
    def unset(config: Config) -> Observation:
        found = sample(config)
        dead = config[UNITS["unit05"][0]].bits < 16
        return (
            Observation(0.0, None, dict.fromkeys(found.robustness), dict.fromkeys(found.feasible, False))
            if dead
            else found
        )

    harm = expected_harm(SPACE, measure(SPACE, unset, SPACE.decode(SPACE.safest)))[AVGPP]
    assert np.isfinite(harm).all()
    assert harm[5, 0] == harm[:, 0].max()


def test_the_initial_design_has_every_uniform_config_then_additive_optima() -> None:
    harm = expected_harm(SPACE, measure(SPACE, sample, SPACE.decode(SPACE.safest)))[AVGPP]
    design = initial_design(SPACE, harm)
    assert [origin for origin, _ in design[:4]] == [
        "uniform fp16",
        "uniform int8-g64",
        "uniform int4-g32",
        "uniform int2-g64",
    ]
    assert [origin.split()[0] for origin, _ in design[4:]] == ["knapsack"] * 4
    assert len({config.digest for _, config in design}) == len(design)
    costs = [bits_of(config) for _, config in design[4:]]
    assert costs == sorted(costs, reverse=True)
    delicate, robust = [0, 3, 7, 11], [1, 2, 4, 6]
    for _, config in design[4:6]:
        levels = SPACE.levels(config)
        assert min(levels[n] for n in delicate) >= max(levels[n] for n in robust)
    assert [origin for origin, _ in initial_design(SPACE)] == [origin for origin, _ in design[:4]]
