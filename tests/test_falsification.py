"""What a refuted candidate is said to be is what all probes would have said; one that is not refuted loses nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toggle_runtime.records import UNSET, VIOLATED, ModeSpecification
from toggle_runtime.signals import Trace, exact_trace
from toggle_runtime.verdicts import judge

from toggle_edge.compress.bank import LayerBank
from toggle_edge.config import FP16, Config, Format
from toggle_edge.evaluate import Evaluator
from toggle_edge.falsification import (
    nothing_seen,
    portions,
    reading_order,
    refutation,
    upper_bounds,
    violated,
    with_traces,
)
from toggle_edge.model.load import LanguageModel
from toggle_edge.probes import Probe

NO_NOISE = {"coherence": 0.0, "context": 0.0}


def modes(*coverages: float) -> dict[str, ModeSpecification]:
    """One mode for each coverage, the second and later ones with a weaker threshold."""
    return {
        f"mode{index}": ModeSpecification(
            {
                "coherence": f"always (jsd <= {0.25 + 0.1 * index})",
                "context": f"always (context >= {0.7 - 0.1 * index})",
            },
            coverage,
            0.0,
        )
        for index, coverage in enumerate(coverages)
    }


def trace(jsd: float, context: float) -> Trace:
    signals = {"jsd": np.array([0.0, jsd, 0.1]), "context": np.array([1.0, 0.9, context])}
    return exact_trace(signals, np.zeros(3, dtype=bool), {})


value = st.one_of(st.floats(0.0, 1.0), st.sampled_from([0.25, 0.35, 0.6, 0.7, float("nan")]))
traces = st.lists(st.builds(trace, value, value), min_size=1, max_size=30)
specifications = st.lists(st.sampled_from([0.3, 0.5, 0.8, 0.9, 0.95, 1.0]), min_size=1, max_size=3).map(
    lambda coverages: modes(*coverages)
)


@given(traces, specifications, st.integers(0, 30))
@settings(max_examples=200, deadline=None)
def test_a_refutation_holds_whatever_the_other_probes_say(
    found: list[Trace], specification: dict[str, ModeSpecification], count: int
) -> None:
    read = found[:count]
    seen = with_traces(nothing_seen(specification, len(found)), read)
    verdicts = refutation(specification, seen, None)
    whole = {each.mode: each for each in judge(specification, found, NO_NOISE)}
    for name, mode in specification.items():
        for key, bound in upper_bounds(seen, mode).items():
            judged = next(each for each in whole[name].verdicts if each.property == key)
            # A probe without a value, among those not read, leaves the property without one.
            assert judged.robustness is None or judged.robustness <= bound
    if verdicts is None:
        return
    for name, verdict in verdicts.items():
        assert whole[name].verdict in (VIOLATED, UNSET)
        assert verdict.verdict in (VIOLATED, UNSET)
        assert whole[name].coverage.satisfied <= verdict.coverage.satisfied
        assert whole[name].coverage.required == verdict.coverage.required
        if verdict.verdict == UNSET:
            assert whole[name].verdict == UNSET
            assert verdict.robustness is None
        elif whole[name].robustness is not None:
            assert verdict.robustness is not None
            assert whole[name].robustness <= verdict.robustness < 0


@given(traces, specifications)
@settings(max_examples=200, deadline=None)
def test_when_all_are_read_it_says_what_the_judgement_says(
    found: list[Trace], specification: dict[str, ModeSpecification]
) -> None:
    seen = with_traces(nothing_seen(specification, len(found)), found)
    whole = {each.mode: each for each in judge(specification, found, NO_NOISE)}
    refuted = refutation(specification, seen, None)
    assert (refuted is None) == any(each.verdict not in (VIOLATED, UNSET) for each in whole.values())
    for name, mode in specification.items():
        assert int((~violated(seen, mode)).sum()) == whole[name].coverage.satisfied
        exact = {
            each.property: each.robustness for each in whole[name].verdicts if each.robustness is not None
        }
        assert upper_bounds(seen, mode) == exact
        if refuted is not None:
            assert refuted[name].robustness == whole[name].robustness


@given(specifications, st.permutations(range(40)))
def test_portions_are_the_order_and_the_first_can_refute(
    specification: dict[str, ModeSpecification], order: list[int]
) -> None:
    parts = portions(specification, order)
    assert [probe for part in parts for probe in part] == order
    bad = [trace(1.0, 0.0)] * len(parts[0])
    seen = with_traces(nothing_seen(specification, len(order)), bad)
    assert refutation(specification, seen, None) is not None


def test_probes_that_refuted_most_are_read_first() -> None:
    assert reading_order([0, 3, 1, 3, 0]) == [1, 3, 2, 0, 4]


class Counting:
    """The probes that an evaluator's candidates read, in order: by their rows in forward passes."""

    def __init__(self, module: object) -> None:
        self.rows = 0
        module.register_forward_pre_hook(self._note, with_kwargs=True)  # type: ignore[attr-defined]

    def _note(self, _module: object, _given: object, keywords: dict[str, Sequence[object]]) -> None:
        self.rows += len(keywords["input_ids"])


@pytest.fixture
def counted(tiny: LanguageModel, probes: tuple[Probe, ...]) -> tuple[Evaluator, Counting, tuple[str, ...]]:
    bank = LayerBank(tiny)
    layers = tuple(layer.name for layer in tiny.layers)
    counting = Counting(bank.assemble(Config.uniform(layers, FP16)))
    # More of them than one look reads.
    many = [dataclasses.replace(probe) for probe in probes[:-1] * 8][:24]
    specification = {
        "optimal": ModeSpecification({"coherence": "always (jsd <= 0.02)"}, 0.95, 95.0),
        "relaxed": ModeSpecification({"coherence": "always (jsd <= 0.03)"}, 0.90, 85.0),
    }
    return Evaluator(tiny, bank, many, specification), counting, layers


def test_a_bad_candidate_costs_a_few_probes(
    counted: tuple[Evaluator, Counting, tuple[str, ...]],
) -> None:
    evaluator, counting, layers = counted
    config = Config.uniform(layers, Format(2, 64))
    whole = evaluator.evaluate(config)
    assert counting.rows == 24
    order = list(reversed(range(24)))
    early = evaluator.evaluate(config, order)
    assert early.refuted
    assert counting.rows == 24 + early.read == 24 + 8
    assert not early.holds("relaxed", evaluator._specification)
    for mode in ("optimal", "relaxed"):
        assert set(early.violated[mode]) <= set(whole.violated[mode]) & set(order[:8])
        ours, theirs = early.modes[mode].robustness, whole.modes[mode].robustness
        assert ours is not None
        assert theirs is not None
        assert theirs <= ours + 1e-5  # other batches, other rounding
        assert ours < 0
        assert early.modes[mode].reason == "stopped after 8 of 24 probes: 8 violate it, " + (
            "1 may" if mode == "optimal" else "2 may"
        )


def test_a_good_candidate_is_judged_as_it_was(
    counted: tuple[Evaluator, Counting, tuple[str, ...]],
) -> None:
    evaluator, counting, layers = counted
    config = Config.uniform(layers, Format(8, 64))
    whole, early = evaluator.evaluate(config), evaluator.evaluate(config, list(reversed(range(24))))
    assert counting.rows == 48
    assert not early.refuted
    assert early.avgpp == pytest.approx(whole.avgpp, abs=1e-4)
    for mode, judged in whole.modes.items():
        assert early.modes[mode].verdict == judged.verdict
        assert early.modes[mode].robustness == pytest.approx(judged.robustness, abs=1e-5)
        assert early.modes[mode].coverage == judged.coverage
    assert (early.read, early.violated) == (24, whole.violated)
