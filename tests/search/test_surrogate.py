"""The law of one outcome: it learns who does harm, says how sure it is, and reads bounds as bounds."""

import math

import numpy as np
import pytest
import torch

from toggle_edge.errors import SearchError
from toggle_edge.search.surrogate import Design, Law, fit_law, isolated

DIMENSIONS, CHOICES = 10, 4
TRUE = np.log(np.linspace(0.05, 3.0, DIMENSIONS))[:, np.newaxis] - math.log(4.0) * np.arange(CHOICES)
FLAT = np.tile(-math.log(4.0) * np.arange(CHOICES), (DIMENSIONS, 1))


def points(count: int, seed: int) -> Design:
    levels = np.random.default_rng(seed).integers(0, CHOICES, (count, DIMENSIONS))
    return Design(torch.from_numpy(levels), torch.from_numpy(levels / (CHOICES - 1)))


def truth(design: Design) -> torch.Tensor:
    own = np.take_along_axis(TRUE, design.levels.numpy().T, axis=1)
    return torch.from_numpy(0.5 + 0.7 * np.log(np.exp(own).sum(axis=0)))


def fitted(count: int, prior: np.ndarray = FLAT, seed: int = 0) -> Law:
    design = points(count, seed)
    shortfalls = truth(design)
    with isolated(0):
        return fit_law(torch.from_numpy(prior), design, shortfalls, torch.zeros(count, dtype=torch.bool))


def error(law: Law) -> float:
    with isolated(0):
        fresh = points(200, 99)
        return float((law.predict(fresh)[0] - truth(fresh)).square().mean().sqrt())


def test_more_observations_make_better_predictions_and_good_priors_make_them_early() -> None:
    few, many = error(fitted(8)), error(fitted(100))
    assert many < 0.1 < few
    assert error(fitted(8, prior=TRUE)) < 0.5 * few


def test_the_most_harmful_choices_are_found() -> None:
    learnt = fitted(150).harm.numpy()
    assert np.corrcoef(learnt[:, 0], TRUE[:, 0])[0, 1] > 0.9
    assert (np.diff(learnt, axis=1) < 0).mean() > 0.9


def test_deviations_cover_the_errors_and_shrink_with_observations() -> None:
    fresh = points(300, 7)
    deviations = []
    for count in (10, 100):
        law = fitted(count)
        with isolated(0):
            mean, deviation = law.predict(fresh)
        z = ((mean - truth(fresh)) / deviation).numpy()
        assert np.mean(np.abs(z) < 2) > 0.9
        deviations.append(float(deviation.mean()))
    assert deviations[1] < deviations[0]


def test_bounds_pull_up_what_is_predicted_below_them_and_leave_the_rest_alone() -> None:
    design, none = points(40, 3), torch.zeros(41, dtype=torch.bool)
    prior, extra = torch.from_numpy(FLAT), points(1, 4)
    both = Design(torch.cat([design.levels, extra.levels]), torch.cat([design.encoded, extra.encoded]))
    with isolated(0):
        plain = fit_law(prior, design, truth(design), none[:40])
        before = float(plain.predict(extra)[0])
        bounded = none.clone()
        bounded[40] = True
        means = {}
        for name, bound in (("below", before - 2.0), ("above", before + 2.0)):
            law = fit_law(prior, both, torch.cat([truth(design), torch.tensor([bound]).double()]), bounded)
            means[name] = float(law.predict(extra)[0])
    assert abs(means["below"] - before) < 0.05
    assert means["above"] > before + 0.2


def test_harm_at_the_bar_inverts_the_law() -> None:
    law = fitted(60)
    assert law.total_at(2.0) > law.total_at(1.0) > law.total_at(0.0)


def test_fits_repeat_and_nothing_global_changes() -> None:
    torch.set_num_threads(2)
    state = torch.get_rng_state()
    first, second = fitted(30), fitted(30)
    assert torch.equal(first.harm, second.harm)
    assert torch.get_num_threads() == 2
    assert torch.equal(torch.get_rng_state(), state)
    torch.set_num_threads(1)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_without_a_fit_are_refused(bad: float) -> None:
    design = points(3, 0)
    values = torch.tensor([0.1, bad, 0.2]).double()
    with isolated(0), pytest.raises(SearchError, match="finite"):
        fit_law(torch.from_numpy(FLAT), design, values, torch.zeros(3, dtype=torch.bool))
    with isolated(0), pytest.raises(SearchError, match="one or more"):
        fit_law(torch.from_numpy(FLAT), points(0, 0), values[:0], torch.zeros(0, dtype=torch.bool))


def test_equal_observations_admit_a_fit() -> None:
    design = points(5, 0)
    with isolated(0):
        law = fit_law(
            torch.from_numpy(FLAT), design, torch.ones(5).double(), torch.zeros(5, dtype=torch.bool)
        )
        assert torch.isfinite(torch.stack(law.predict(design))).all()


def test_what_is_expected_without_an_observation_is_what_a_fit_without_it_predicts() -> None:
    """Linearised at nearly the same parameters, leaving out by formula is leaving out."""
    law, design = fitted(60), points(60, 0)
    shortfalls = truth(design)
    kept = torch.arange(60) != 17
    with isolated(0):
        without = fit_law(
            torch.from_numpy(FLAT),
            Design(design.levels[kept], design.encoded[kept]),
            shortfalls[kept],
            torch.zeros(59, dtype=torch.bool),
        )
        mean, _ = without.predict(Design(design.levels[17:18], design.encoded[17:18]))
    assert float(law.expected[0][17]) == pytest.approx(float(mean), abs=0.1)
    assert torch.allclose(law.expected[0] + law.surprise, shortfalls)


def test_optimism_is_how_much_was_worse_than_expected_near_the_bar() -> None:
    """Trials near the bar that were all a little worse than the rest lets expect make the law ask for more."""
    design = points(80, 0)
    shortfalls = truth(design)
    bar = float(shortfalls.median())
    plain = fitted(80)
    chosen = torch.arange(80) % 4 == 0
    worse = torch.where(chosen & ((shortfalls - bar).abs() < 0.3), shortfalls + 0.5, shortfalls)
    with isolated(0):
        none = torch.zeros(80, dtype=torch.bool)
        hurt = fit_law(torch.from_numpy(FLAT), design, worse, none)
        better = fit_law(torch.from_numpy(FLAT), design, 2 * shortfalls - worse, none)
    assert hurt.optimism(bar) > plain.optimism(bar) + 0.02
    assert better.optimism(bar) == 0.0
    assert plain.optimism(bar) < 0.02
    assert hurt.optimism(bar - 20.0) == pytest.approx(0.0, abs=1e-6)
