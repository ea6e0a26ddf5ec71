"""The stated bound is wrong at most 5 times in 100: on pools whose true share is known, drawn from 200 times.

What exceeds `limit` is not chance. The same yardstick must refuse bounds that are too high, else it tests nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from toggle_runtime.records import Coverage, ModeSpecification
from toggle_runtime.verdicts import per_probe_robustness

from toggle_edge.certify import ALONE, Division, coverage_bound, of_tried
from toggle_edge.compress.bank import LayerBank
from toggle_edge.config import Config, Format
from toggle_edge.evaluate import Evaluator
from toggle_edge.model.load import load_model
from toggle_edge.pipeline.inputs import demo_folder
from toggle_edge.probes import load_probes
from toggle_edge.profiles import load_profile
from toggle_edge.specification import specification_of
from toggle_edge.statistics import clopper_pearson_lower

PROBES, SPLITS, POOL = 59, 200, 100_000
Rule = Callable[[int, int], float]


def limit(draws: int) -> int:
    """The most wrong bounds that 5 % give by chance, but once in 10,000."""
    return int(stats.binom.ppf(0.9999, draws, 0.05))


def stated(satisfied: int, probes: int, division: Division = ALONE) -> float:
    return coverage_bound("strict", Coverage(satisfied, probes, probes), division).lower_bound


def table(rule: Rule, probes: int = PROBES) -> NDArray[np.float64]:
    return np.array([rule(satisfied, probes) for satisfied in range(probes + 1)])


# Shares at which the bound is as often wrong as it may be: just below what it says of so many satisfied probes.
HARDEST = [float(np.floor(POOL * stated(satisfied, PROBES)) / POOL) for satisfied in (36, 44, 50, 54, 57, 59)]


def wrong_by_pool(rule: Rule) -> list[int]:
    """For each of the hardest pools, how many of 200 splits give a bound above the pool's share."""
    rng = np.random.default_rng(0)
    bounds = table(rule)
    wrong = []
    for share in HARDEST:
        good = round(POOL * share)
        satisfied = rng.hypergeometric(good, POOL - good, PROBES, size=SPLITS)
        wrong.append(int((bounds[satisfied] > good / POOL).sum()))
    return wrong


def test_the_bound_is_wrong_in_at_most_five_percent_of_splits() -> None:
    wrong = wrong_by_pool(stated)
    assert max(wrong) <= limit(SPLITS)
    assert sum(wrong) <= limit(SPLITS * len(HARDEST))
    # Nor is it needlessly low: these are its hardest pools, at which it spends all of the 5 %.
    assert sum(wrong) >= stats.binom.ppf(0.0001, SPLITS * len(HARDEST), 0.05)


@pytest.mark.parametrize(
    "rule",
    [lambda k, n: k / n, lambda k, n: clopper_pearson_lower(k, n, 0.80), lambda k, n: (k + 1) / (n + 2)],
    ids=["the plain share", "a bound at 80 %", "Laplace's rule"],
)
def test_the_yardstick_refuses_what_is_wrong_too_often(rule: Rule) -> None:
    wrong = wrong_by_pool(rule)
    assert max(wrong) > limit(SPLITS)
    assert sum(wrong) > limit(SPLITS * len(HARDEST))


def selected_wrongly(division: Division, candidates: int, draws: int) -> int:
    """How often the bound of the first candidate that passes on the probes drawn is above its true share.

    All are equally good, on prompts of their own, and not good enough: 57 of 59 must pass.
    """
    rng = np.random.default_rng(1)
    share = HARDEST[4]
    bounds = table(lambda k, n: stated(k, n, division))
    satisfied = rng.binomial(PROBES, share, size=(draws, candidates))
    passes = satisfied >= 57
    chosen = satisfied[np.arange(draws), passes.argmax(axis=1)]
    return int((passes.any(axis=1) & (bounds[chosen] > share)).sum())


MODES = {
    "strict": ModeSpecification({"a": "always (jsd <= 0.25)"}, 1.0, 99.0),
    "optimal": ModeSpecification({"a": "always (jsd <= 0.25)"}, 0.95, 95.0),
    "relaxed": ModeSpecification({"a": "always (jsd <= 0.3)"}, 0.9, 85.0),
}


def test_the_cheapest_that_passes_is_covered_because_the_error_is_divided_among_all_that_were_tried() -> None:
    assert selected_wrongly(ALONE, 12, SPLITS) > limit(SPLITS)
    assert selected_wrongly(of_tried(12, {"strict": MODES["strict"]}), 12, SPLITS) <= limit(SPLITS)


def any_mode_wrong(division: Division, draws: int) -> int:
    """How often one of two bounds is wrong, of a candidate whose prompts satisfy the weaker thresholds more often."""
    rng = np.random.default_rng(2)
    strict, relaxed = HARDEST[2], HARDEST[4]
    uniform = rng.random((draws, PROBES))  # the same prompts: what satisfies strict satisfies relaxed
    bounds = table(lambda k, n: stated(k, n, division))
    wrong = [bounds[(uniform < share).sum(axis=1)] > share for share in (strict, relaxed)]
    return int((wrong[0] | wrong[1]).sum())


def test_modes_that_are_stated_together_are_covered_because_the_error_is_divided_among_them_too() -> None:
    assert any_mode_wrong(ALONE, 10 * SPLITS) > limit(10 * SPLITS)
    assert of_tried(1, MODES).statements == 2
    assert any_mode_wrong(of_tried(1, MODES), 10 * SPLITS) <= limit(10 * SPLITS)


@pytest.fixture(scope="module")
def demo_shares() -> NDArray[np.bool_]:
    """formats x modes x probes: which of 40 probes the demo model satisfies, strict and relaxed."""
    model = load_model(demo_folder() / "model")
    specification = specification_of(load_profile("default"))
    probes = load_probes(demo_folder() / "probes.jsonl", model.tokenizer, steps=32, context_tokens=512)[:40]
    evaluator = Evaluator(model, LayerBank(model), probes, specification)
    layers = tuple(layer.name for layer in model.layers)
    rows = []
    for text in ("int5-axis", "int4-g64"):
        traces = evaluator.traces(Config.uniform(layers, Format.parse(text)))
        for mode in ("strict", "relaxed"):
            formulas = specification[mode].properties.values()
            rows.append(np.min([per_probe_robustness(formula, traces) for formula in formulas], axis=0) >= 0)
    return np.array(rows).reshape(2, 2, len(probes))


def test_a_model_s_own_share_is_bounded_in_at_least_95_percent_of_draws(
    demo_shares: NDArray[np.bool_],
) -> None:
    rng = np.random.default_rng(3)
    shares = demo_shares.mean(axis=-1)
    assert ((shares > 0.5) & (shares < 1.0)).sum() >= 3, shares
    for rule, calibrated in ((stated, True), (lambda k, n: k / n, False)):
        bounds = table(rule, 30)
        # As if from endless prompts, of which the pool has the shares.
        drawn = rng.integers(demo_shares.shape[-1], size=(SPLITS, 30))
        wrong = (bounds[demo_shares[:, :, drawn].sum(axis=-1)] > shares[..., np.newaxis]).sum(axis=-1)
        assert bool(wrong.max() <= limit(SPLITS)) is calibrated
