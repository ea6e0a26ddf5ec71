"""Judging: coverage, argmin, noise, AvgPP, and everything that must end as UNSET."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toggle_runtime.records import ModeSpecification, RunRecord, from_json, to_json
from toggle_runtime.signals import Trace, exact_trace
from toggle_runtime.verdicts import avgpp, judge, noise_floor, per_probe_robustness

COHERENCE = {"coherence": "always (jsd <= 0.25)"}
PAPER = {
    **COHERENCE,
    "long_range_dependency": "always (attention >= 0.7)",
    "contextual_consistency": "always (context >= 0.7)",
    "factual_accuracy": "always (factual >= 0.7)",
}

FOUR = ("jsd", "attention", "context", "factual")


def mode(properties=None, coverage=1.0):
    return {"optimal": ModeSpecification(dict(properties or COHERENCE), coverage, 95.0)}


def trace_of(jsd=0.1, attention=0.9, context=0.9, factual=0.9, steps=4, layers=None, answer=None):
    """A trace with constant or given rows; a signal of None is missing; the last step is the answer."""
    given_rows = {"jsd": jsd, "attention": attention, "context": context, "factual": factual}
    signals = {
        name: np.broadcast_to(np.asarray(row, dtype=float), steps).copy()
        for name, row in given_rows.items()
        if row is not None
    }
    mask = np.arange(steps) == steps - 1 if answer is None else np.array(answer)
    return exact_trace(signals, mask, {} if layers is None else {"attention": np.array(layers, dtype=float)})


def judged(traces, properties=None, coverage=1.0, floors=None):
    named = dict.fromkeys(properties or COHERENCE, 0.0)
    (verdict,) = judge(mode(properties, coverage), traces, {**named, **(floors or {})})
    return verdict


def test_a_property_names_probe_and_step_of_its_robustness():
    verdict = judged([trace_of(), trace_of(jsd=[0, 0.2, 0.125, 0]), trace_of(jsd=0.2)])
    (coherence,) = verdict.verdicts
    assert (verdict.mode, verdict.verdict, verdict.robustness) == (
        "optimal",
        "SATISFIED",
        coherence.robustness,
    )
    assert coherence.robustness == coherence.worst == 0.25 - 0.2
    assert (coherence.argmin.probe, coherence.argmin.step, coherence.argmin.layer) == (1, 1, None)
    assert (verdict.coverage.satisfied, verdict.coverage.probes, verdict.coverage.required) == (3, 3, 3)


@pytest.mark.parametrize(
    ("coverage", "probes", "required"),
    [
        (1.0, 59, 59),
        (0.95, 59, 57),
        (0.95, 60, 57),
        (0.55, 100, 55),
        (0.9, 10, 9),
        (0.9, 59, 54),
        (0.001, 3, 1),
    ],
)
def test_required_probes(coverage, probes, required):
    assert judged([trace_of()] * probes, coverage=coverage).coverage.required == required


def test_coverage_forgives_the_worst_probes_and_no_more():
    traces = [trace_of(jsd=0.1)] * 8 + [trace_of(jsd=0.2), trace_of(jsd=0.5)]
    forgiving = judged(traces, coverage=0.9)
    assert forgiving.verdict == "SATISFIED"
    assert forgiving.verdicts[0].robustness == forgiving.robustness == 0.25 - 0.2
    assert forgiving.verdicts[0].argmin.probe == 8
    assert forgiving.verdicts[0].worst == -0.25
    assert forgiving.coverage.satisfied == 9
    assert judged(traces, coverage=1.0).verdict == "VIOLATED"
    assert judged([*traces[1:], trace_of(jsd=0.6)], coverage=0.9).verdict == "VIOLATED"


def test_properties_may_hold_while_the_mode_does_not():
    traces = [trace_of()] * 18 + [trace_of(jsd=0.5), trace_of(context=0.1)]
    verdict = judged(traces, PAPER, coverage=0.95)
    assert {entry.verdict for entry in verdict.verdicts} == {"SATISFIED"}
    assert verdict.verdict == "VIOLATED"
    assert (verdict.coverage.satisfied, verdict.coverage.required) == (18, 19)
    assert verdict.robustness == -0.25


def test_zero_is_satisfied_and_just_below_is_not():
    assert judged([trace_of(jsd=0.25)]).verdict == "SATISFIED"
    assert judged([trace_of(jsd=np.nextafter(0.25, 1))]).verdict == "VIOLATED"


@pytest.mark.parametrize(
    ("jsd", "word"), [(0.2, "SATISFIED"), (0.2499, "MARGINAL"), (0.25, "MARGINAL"), (0.2501, "VIOLATED")]
)
def test_less_than_the_noise_floor_is_marginal(jsd, word):
    verdict = judged([trace_of(jsd=jsd)], floors={"coherence": 0.01})
    assert (verdict.verdict, verdict.verdicts[0].verdict) == (word, word)


def test_a_mode_is_marginal_when_noise_could_cost_its_coverage():
    # Each property holds clearly on 19 of 20 probes, both at once clearly on only 18.
    traces = [trace_of()] * 18 + [trace_of(jsd=0.2499), trace_of(context=0.7001)]
    verdict = judged(traces, PAPER, 0.95, {"coherence": 0.01, "contextual_consistency": 0.01})
    assert {entry.verdict for entry in verdict.verdicts} == {"SATISFIED"}
    assert verdict.verdict == "MARGINAL"
    # A floor of one property does not make another marginal.
    assert judged(traces[:19], PAPER, 1.0, {"contextual_consistency": 0.01}).verdict == "SATISFIED"


def test_only_a_formula_over_attention_alone_names_a_layer():
    layers = [[0.9, 0.9, 0.8, 0.9], [0.9, 0.9, 0.7, 0.1], [0.9, 0.9, 0.75, 0.9]]
    traces = [trace_of(), trace_of(attention=[0.9, 0.9, 0.75, 0.8], layers=layers)]
    alone = judged(traces, {"x": "always (attention >= 0.7)"}).verdicts[0].argmin
    assert (alone.probe, alone.step, alone.layer) == (1, 2, 1)
    mixed = judged(traces, {"x": "always (attention >= 0.7 and context >= 0.1)"}).verdicts[0].argmin
    assert (mixed.probe, mixed.step, mixed.layer) == (1, 2, None)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (trace_of(jsd=None), "probe 1: signal 'jsd' is missing"),
        (trace_of(jsd=[0, math.nan, 0, 0]), "probe 1: jsd is not finite at step 1"),
        (trace_of(jsd=[0, 0, -math.inf, 0]), "probe 1: jsd is not finite at step 2"),
        (trace_of(steps=0), "probe 1: signal 'jsd' is empty"),
    ],
)
def test_one_probe_without_a_value_unsets_property_and_mode(broken, reason):
    verdict = judged([trace_of(), broken, trace_of(jsd=0.9)], coverage=0.3)
    (coherence,) = verdict.verdicts
    assert (verdict.verdict, coherence.verdict) == ("UNSET", "UNSET")
    assert reason in coherence.reason
    assert coherence.robustness is coherence.argmin is coherence.worst is verdict.robustness is None
    # What is known is still told: one of the three satisfies.
    assert (verdict.coverage.satisfied, verdict.coverage.probes) == (1, 3)


def test_a_short_trace_and_a_missing_answer_unset():
    short = judged([trace_of(), trace_of(steps=3)], {"x": "always[0,3] (jsd <= 0.25)"})
    assert "probe 1: the trace has 3 steps, the formula needs 4" in short.verdicts[0].reason
    # `factual` is 1 off the answer: a probe without an answer step would pass for nothing.
    unanswered = judged([trace_of(factual=1.0, answer=[False] * 4)] * 3, {"x": "always (factual >= 0.7)"})
    assert unanswered.verdicts[0].reason == "probe 0: signal 'factual' has no answer step (and 2 more probes)"


def test_nothing_to_judge_is_unset():
    assert judged([]).verdict == judged([]).verdicts[0].verdict == "UNSET"
    assert judged([]).coverage.probes == 0
    (bare,) = judge({"optimal": ModeSpecification({}, 1.0, 95.0)}, [trace_of()], {})
    assert bare.verdict == "UNSET"


@pytest.mark.parametrize("floor", [math.nan, math.inf, -0.1])
def test_a_noise_floor_that_is_no_amount_is_refused(floor):
    with pytest.raises(ValueError, match="noise floor of 'coherence'"):
        judged([trace_of()], floors={"coherence": floor})


@pytest.mark.parametrize("coverage", [0.0, -0.5, 1.01, math.nan])
def test_a_coverage_that_is_no_share_is_refused(coverage):
    with pytest.raises(ValueError, match="coverage"):
        judged([trace_of()], coverage=coverage)


def test_avgpp_of_an_equal_candidate_is_100():
    assert avgpp([trace_of(0.0, 1.0, 1.0, 1.0), trace_of(0.0, 1.0, 1.0, 3.0, steps=9)], FOUR) == 100.0


def test_avgpp_pools_steps_and_takes_factual_on_answers_only():
    first = trace_of(
        jsd=0.2, attention=1, context=1, factual=[1, 1, 0.4, 2.0], answer=[False, False, True, True]
    )
    second = trace_of(jsd=0.5, attention=1, context=1, factual=1, steps=2)
    coherence, factual = 1 - (4 * 0.2 + 2 * 0.5) / 6, (0.4 + 1 + 1) / 3
    assert avgpp([first, second], FOUR) == pytest.approx(25 * (coherence + 1 + 1 + factual))


@pytest.mark.parametrize(
    "broken",
    [trace_of(jsd=None), trace_of(factual=None), trace_of(context=math.nan), trace_of(answer=[False] * 4)],
)
def test_avgpp_is_unknown_when_a_part_is(broken):
    assert avgpp([trace_of(), broken], FOUR) is None
    assert avgpp([], FOUR) is None


def test_per_probe_robustness_keeps_unset_probes_as_nan():
    values = per_probe_robustness(
        COHERENCE["coherence"], [trace_of(jsd=0.2), trace_of(jsd=None), trace_of(jsd=1)]
    )
    np.testing.assert_array_equal(values, [0.25 - 0.2, np.nan, -0.75])


def test_the_noise_floor_is_the_largest_change_over_modes_and_probes():
    specification = {
        "strict": ModeSpecification({"coherence": "always (jsd <= 0.25)"}, 1.0, 99.0),
        "relaxed": ModeSpecification({"coherence": "always[0,1] (jsd <= 0.25)", "x": "jsd <= 1"}, 0.9, 85.0),
    }
    before = [trace_of(jsd=[0.1, 0.1, 0.1, 0.1]), trace_of(jsd=0.1)]
    after = [trace_of(jsd=[0.1, 0.1, 0.1, 0.15]), trace_of(jsd=[0.1, 0.12, 0.1, 0.1])]
    floors = noise_floor(specification, before, after)
    assert floors == pytest.approx({"coherence": 0.05, "x": 0.0})
    assert noise_floor(specification, before, before) == {"coherence": 0.0, "x": 0.0}


def test_an_unknown_noise_floor_is_absent_and_makes_the_property_marginal():
    floors = noise_floor(mode(PAPER), [trace_of()], [trace_of(jsd=math.nan)])
    assert floors.keys() == PAPER.keys() - {"coherence"}
    (verdict,) = judge(mode(PAPER), [trace_of()], floors)
    words = {entry.property: entry.verdict for entry in verdict.verdicts}
    assert words["coherence"] == verdict.verdict == "MARGINAL"
    assert words["contextual_consistency"] == "SATISFIED"
    with pytest.raises(ValueError, match="got 2 and 1"):
        noise_floor(mode(), [trace_of()] * 2, [trace_of()])
    with pytest.raises(ValueError, match="got 0 and 0"):
        noise_floor(mode(), [], [])


def interval(lower, upper, **rest):
    """A trace whose `jsd` is an interval, constant or by step."""
    low, high = trace_of(jsd=lower, **rest), trace_of(jsd=upper, **rest)
    return Trace(low.lower, high.lower, low.answer, low.layers)


@pytest.mark.parametrize(
    ("lower", "upper", "word", "robustness"),
    [
        (0.1, 0.2, "SATISFIED", 0.25 - 0.2),
        (0.1, 0.25, "SATISFIED", 0.0),
        (0.2, 0.3, "UNSET", None),
        (0.25, 0.3, "UNSET", None),
        (0.26, 0.3, "VIOLATED", 0.25 - 0.3),
    ],
)
def test_the_lower_end_satisfies_and_what_is_between_is_undecided(lower, upper, word, robustness):
    verdict = judged([interval(lower, upper)])
    (coherence,) = verdict.verdicts
    assert verdict.verdict == coherence.verdict == word
    assert verdict.robustness == coherence.robustness == robustness
    assert verdict.coverage.satisfied == (word == "SATISFIED")
    if word == "UNSET":
        for reason in (verdict.reason, coherence.reason):
            assert "lies between -0.05 and" in reason
            assert "raise k" in reason
    else:
        assert coherence.robustness_upper == 0.25 - lower


def test_coverage_counts_what_is_certain_and_a_certain_failure_decides():
    clear, open_, failed = interval(0.0, 0.1), interval(0.2, 0.3), interval(0.5, 0.6)
    assert judged([clear] * 9 + [open_], coverage=0.9).verdict == "SATISFIED"
    assert judged([clear] * 8 + [open_] * 2, coverage=0.9).verdict == "UNSET"
    assert judged([clear] * 8 + [failed] * 2, coverage=0.9).verdict == "VIOLATED"
    assert judged([clear] * 8 + [failed] * 2 + [open_], coverage=0.9).verdict == "VIOLATED"
    # One property fails for certain: the mode does, whatever the other one is.
    both = judged([interval(0.2, 0.3, context=0.1)], PAPER)
    assert {entry.property: entry.verdict for entry in both.verdicts}["coherence"] == "UNSET"
    assert both.verdict == "VIOLATED"


def test_a_mode_may_be_undecided_though_each_property_holds():
    traces = [trace_of()] * 18 + [trace_of(context=0.1), interval(0.2, 0.3)]
    verdict = judged(traces, PAPER, coverage=0.95)
    assert {entry.verdict for entry in verdict.verdicts} == {"SATISFIED"}
    assert verdict.verdict == "UNSET"
    assert "raise k" in verdict.reason


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 0.5), st.floats(0, 0.1), st.floats(0, 1)), min_size=1, max_size=9),
    st.integers(1, 100),
)
def test_intervals_are_never_more_favourable_than_any_trace_inside(entries, percent):
    outside = judged([interval(low, low + width) for low, width, _ in entries], coverage=percent / 100)
    inside = judged(
        [trace_of(jsd=low + width * share) for low, width, share in entries], coverage=percent / 100
    )
    assert outside.verdict in (inside.verdict, "UNSET")
    assert outside.coverage.satisfied <= inside.coverage.satisfied
    assert outside.avgpp <= inside.avgpp + 1e-9
    if outside.robustness is not None:
        assert outside.robustness <= inside.robustness + 1e-12


def test_avgpp_is_of_what_the_specification_reads():
    trace = trace_of(jsd=0.2, attention=None, context=0.6, factual=None)
    assert judged([trace], {"x": "always (jsd <= 1)", "y": "always (context >= 0)"}).avgpp == pytest.approx(
        70
    )
    assert judged([trace], {"x": "always (context >= 0)"}).avgpp == pytest.approx(60)
    left = trace_of(steps=8)
    left.lower["departure"] = np.full(8, 6.0)
    assert judged([left], {"x": "always (departure >= 4)"}).avgpp == pytest.approx(75)


def test_verdicts_survive_the_wire():
    layers = np.linspace(0.1, 0.9, 12).reshape(3, 4)
    modes = judge(mode(PAPER), [trace_of(layers=layers), trace_of(jsd=None, layers=layers)], {})
    record = RunRecord(1, "run", "0" * 64, "PASS", modes=modes)
    assert from_json(RunRecord, to_json(record)).modes == modes


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 16).map(lambda n: n / 32), min_size=1, max_size=12), st.integers(1, 100))
def test_a_property_is_satisfied_exactly_when_enough_probes_are(divergences, percent):
    verdict = judged([trace_of(jsd=jsd) for jsd in divergences], coverage=percent / 100)
    enough = 100 * sum(jsd <= 0.25 for jsd in divergences) >= percent * len(divergences)
    assert (verdict.verdict == "SATISFIED") == (verdict.verdicts[0].verdict == "SATISFIED") == enough
    (coherence,) = verdict.verdicts
    assert coherence.argmin.probe == divergences.index(0.25 - coherence.robustness)
    assert coherence.worst == 0.25 - max(divergences)
