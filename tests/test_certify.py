"""Certification: an honest claim passes, and no altered number, word or entry does."""

import copy
import math
import time
from dataclasses import asdict

import numpy as np
import pytest
from toggle_runtime.records import ModeSpecification, ModeVerdict, from_data
from toggle_runtime.signals import Trace, exact_trace
from toggle_runtime.verdicts import judge, noise_floor

from toggle_edge.certify import certify
from toggle_edge.errors import CertificationError
from toggle_edge.profiles import load_profile
from toggle_edge.specification import specification_of

SPECIFICATION = specification_of(load_profile("default"))


def run_of(probes=10, steps=12, layers=3, seed=0, noise=0.0, damage=0.25, uneven=0):
    """Traces of one run. The same seed gives the same artifact; `noise` is what another run changes.

    Ranges are such that some probes violate and most satisfy: a claim with both kinds of numbers.
    """
    rng, jitter = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    traces = []
    for probe in range(probes):
        length = steps - probe % 2 * uneven
        attention = 1 - rng.uniform(0, damage, size=(layers, length))
        answer = np.arange(length) >= length - 2
        signals = {
            "jsd": rng.uniform(0, 0.9 * damage, size=length),
            "attention": attention.mean(axis=0),
            "context": 1 - rng.uniform(0, damage, size=length),
            "factual": np.where(answer, rng.uniform(1 - damage, 1 + damage, size=length), 1.0),
        }
        if probe == 7:
            signals["jsd"][5] = 0.6
        signals = {name: row + noise * jitter.uniform(-1, 1, size=length) for name, row in signals.items()}
        traces.append(exact_trace(signals, answer, {"attention": attention}))
    return traces


def claim_of(specification, traces, repeated):
    floors = noise_floor(specification, traces, repeated)
    return judge(specification, traces, floors), floors


TRACES, REPEATED = run_of(), run_of(noise=1e-3)
MODES, FLOORS = claim_of(SPECIFICATION, TRACES, REPEATED)


def certified(
    modes=MODES,
    specification=SPECIFICATION,
    traces=TRACES,
    repeated=REPEATED,
    floors=FLOORS,
    candidates=1,
    stated=None,
):
    return certify(modes, specification, traces, repeated, floors, candidates=candidates, stated=stated)


def leaves(data, path=()):
    if isinstance(data, dict):
        for key, value in data.items():
            yield from leaves(value, (*path, key))
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield from leaves(value, (*path, index))
    else:
        yield path, data


def altered(path, value):
    """The claim with one leaf replaced, as it would come off the wire."""
    data = copy.deepcopy([asdict(mode) for mode in MODES])
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return [from_data(ModeVerdict, mode) for mode in data]


ALL_LEAVES = list(leaves([asdict(mode) for mode in MODES]))
NUMBERS = [(path, value) for path, value in ALL_LEAVES if isinstance(value, int | float)]
OPTIONAL = [
    (path, value)
    for path, value in ALL_LEAVES
    if path[-1] in ("robustness", "robustness_upper", "avgpp", "worst", "layer", "reason")
]
WORDS = [(path, value) for path, value in ALL_LEAVES if isinstance(value, str)]


def test_the_claim_under_test_has_every_kind_of_entry():
    assert {mode.verdict for mode in MODES} == {"SATISFIED", "VIOLATED"}
    assert {path[-1] for path, _ in NUMBERS} == {
        *("robustness", "robustness_upper", "worst", "avgpp"),
        *("probe", "step", "layer", "satisfied", "probes", "required"),
    }
    assert len(NUMBERS) == 3 * (2 + 3 + 4 * 5 + 1)
    assert all(floor > 0 for floor in FLOORS.values())


def test_an_honest_claim_is_certified():
    certificate = certified()
    assert certificate.disagreements == ()
    assert certificate.certified is True


@pytest.mark.parametrize(
    ("path", "value"), NUMBERS, ids=lambda part: str(part) if isinstance(part, tuple) else ""
)
def test_no_number_can_be_altered(path, value):
    for other in (value + 1, value - 1) if isinstance(value, int) else (value + 1e-6, -value):
        certificate = certified(altered(path, other))
        assert certificate.certified is False
        assert any(
            f"{path[-1]}: claimed {other!r}, recomputed " in text for text in certificate.disagreements
        )


@pytest.mark.parametrize(
    ("path", "value"), OPTIONAL, ids=lambda part: str(part) if isinstance(part, tuple) else ""
)
def test_no_entry_can_be_blanked_or_invented(path, value):
    invented = {"layer": 0, "reason": "because"}
    assert certified(altered(path, invented[path[-1]] if value is None else None)).certified is False


@pytest.mark.parametrize(
    ("path", "value"), WORDS, ids=lambda part: str(part) if isinstance(part, tuple) else ""
)
def test_no_word_can_be_swapped(path, value):
    words = {"SATISFIED", "MARGINAL", "VIOLATED", "UNSET"} if path[-1] == "verdict" else {"other"}
    for word in words - {value}:
        certificate = certified(altered(path, word))
        assert certificate.certified is False
        assert any(repr(word) in text for text in certificate.disagreements)


@pytest.mark.parametrize("name", list(FLOORS))
def test_no_noise_floor_can_be_altered_or_dropped(name):
    for floors in (
        {**FLOORS, name: FLOORS[name] / 2},
        {**FLOORS, name: FLOORS[name] + 1e-6},
        {key: floor for key, floor in FLOORS.items() if key != name},
        {**FLOORS, "invented": 0.0},
    ):
        assert certified(floors=floors).certified is False


def blurred(traces, width, seed=5):
    """The same traces, known only as intervals."""
    rng = np.random.default_rng(seed)
    return [
        Trace(
            {name: row - width * rng.uniform(size=row.shape) for name, row in trace.lower.items()},
            {name: row + width * rng.uniform(size=row.shape) for name, row in trace.upper.items()},
            trace.answer,
            trace.layers,
        )
        for trace in traces
    ]


@pytest.mark.parametrize("width", [1e-3, 0.02, 0.3])
def test_an_honest_claim_of_intervals_is_certified_and_an_altered_one_is_not(width):
    traces, repeated = blurred(TRACES, width), blurred(REPEATED, width)
    modes, floors = claim_of(SPECIFICATION, traces, repeated)
    assert certified(modes, traces=traces, repeated=repeated, floors=floors).disagreements == ()
    words = {verdict.verdict for mode in modes for verdict in mode.verdicts}
    assert ("UNSET" in words) == (width > 0.1)
    # A device that takes the middle, or the favourable end, for the truth is found out.
    for end in (0.5, 1.0):
        points = [
            exact_trace(
                {
                    name: row + (trace.upper[name] - row) * (1 - end if name == "jsd" else end)
                    for name, row in trace.lower.items()
                },
                trace.answer,
                trace.layers,
            )
            for trace in traces
        ]
        claim = judge(SPECIFICATION, points, floors)
        assert certified(claim, traces=traces, repeated=repeated, floors=floors).certified is False


def test_crossed_ends_are_no_traces():
    first = TRACES[0]
    crossed = Trace({**first.lower, "jsd": first.lower["jsd"] + 1}, first.upper, first.answer, first.layers)
    with pytest.raises(CertificationError, match="at most the upper ones"):
        certified(traces=[crossed, *TRACES[1:]])


def test_entries_cannot_be_dropped_repeated_or_exchanged():
    data = [asdict(mode) for mode in MODES]
    fewer = copy.deepcopy(data)
    del fewer[1]["verdicts"][2]
    twice = copy.deepcopy(data)
    twice[1]["verdicts"].append(twice[1]["verdicts"][2])
    exchanged = copy.deepcopy(data)
    exchanged[0]["mode"], exchanged[2]["mode"] = exchanged[2]["mode"], exchanged[0]["mode"]
    for claim in (fewer, twice, exchanged, data[1:], [*data, data[0]], []):
        modes = [from_data(ModeVerdict, mode) for mode in claim]
        assert certified(modes).certified is False


def test_probes_cannot_be_dropped_or_exchanged():
    for index in (0, 7, 9):
        traces, repeated = (run[:index] + run[index + 1 :] for run in (TRACES, REPEATED))
        assert certified(traces=traces).certified is False
        assert certified(repeated=repeated).certified is False
        assert certified(traces=traces, repeated=repeated).certified is False
    assert certified(traces=TRACES[::-1], repeated=REPEATED[::-1]).certified is False
    assert certified(traces=[], repeated=[]).certified is False


@pytest.mark.parametrize("name", ["jsd", "attention", "context", "factual"])
def test_a_trace_cannot_be_altered_where_a_number_comes_from(name):
    traces = copy.deepcopy(TRACES)
    traces[3].signals[name][-1] *= 0.5
    certificate = certified(traces=traces)
    assert certificate.certified is False
    assert any("avgpp" in text for text in certificate.disagreements)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_broken_trace_contradicts_a_claimed_value(poison):
    traces = copy.deepcopy(TRACES)
    traces[3].signals["context"][4] = poison
    certificate = certified(traces=traces)
    assert certificate.certified is False
    assert (
        "relaxed.contextual_consistency.verdict: claimed 'SATISFIED', recomputed 'UNSET'"
        in certificate.disagreements
    )


def test_a_broken_repetition_contradicts_a_claimed_noise_floor():
    repeated = copy.deepcopy(REPEATED)
    del repeated[3].signals["context"]
    (entry,) = (text for text in certified(repeated=repeated).disagreements if "noise_floor" in text)
    assert entry.startswith(
        f"noise_floor.contextual_consistency: claimed {FLOORS['contextual_consistency']!r}, "
    )
    # To leave the floor out of the claim does not help: without one nothing is more than MARGINAL.
    floors = {name: floor for name, floor in FLOORS.items() if name != "contextual_consistency"}
    assert certified(judge(SPECIFICATION, TRACES, floors), repeated=repeated, floors=floors).certified
    trusting = judge(SPECIFICATION, TRACES, {**floors, "contextual_consistency": 0.0})
    certificate = certified(trusting, repeated=repeated, floors=floors)
    assert [entry.split(":")[0] for entry in certificate.disagreements] == [
        "optimal.contextual_consistency.verdict",
        "relaxed.contextual_consistency.verdict",
        "relaxed.verdict",
        "strict.contextual_consistency.verdict",
    ]


def test_an_honest_unset_is_certified_and_stays_unset():
    specification = {
        "strict": ModeSpecification({"x": "always (jsd <= 1)", "y": "always (factual >= 0)"}, 1.0, 99.0)
    }
    traces = copy.deepcopy(TRACES)
    del traces[2].signals["factual"]
    modes = judge(specification, traces, {"x": 0.0})
    assert modes[0].verdict == "UNSET"
    certificate = certify(modes, specification, traces, traces, {"x": 0.0}, candidates=1)
    assert certificate.certified is True
    assert certificate.bounds["strict"].satisfied == 9


def test_an_argmin_may_name_any_step_that_attains_the_value():
    traces = [exact_trace({"jsd": np.array([0.1, 0.2, 0.2, 0.1])}, np.ones(4, dtype=bool), {})]
    specification = {"strict": ModeSpecification({"x": "always (jsd <= 0.25)"}, 1.0, 99.0)}
    (mode,) = judge(specification, traces, {"x": 0.0})
    for step, holds in ((0, False), (1, True), (2, True), (3, False), (4, False)):
        data = asdict(mode)
        data["verdicts"][0]["argmin"]["step"] = step
        claim = [from_data(ModeVerdict, data)]
        assert certify(claim, specification, traces, traces, {"x": 0.0}, candidates=1).certified is holds


@pytest.mark.parametrize("seed", range(12))
def test_formulas_of_every_kind_are_recomputed(seed):
    specification = {
        "strict": ModeSpecification(
            {"a": "always ((jsd > 0.2) implies eventually[0,4] (jsd <= 0.1))"}, 1.0, 99.0
        ),
        "optimal": ModeSpecification(
            {
                "a": "eventually always[0,2] (jsd <= 0.1) and context >= 0.8",
                "b": "always[2:9] (attention >= 0.7) or not always (factual >= 0.9)",
            },
            0.8,
            95.0,
        ),
        "relaxed": ModeSpecification({"b": "always eventually always[0,3] (attention >= 0.74)"}, 0.3, 85.0),
    }
    traces, repeated = (
        run_of(probes=7, steps=12, seed=seed),
        run_of(probes=7, steps=12, seed=seed, noise=0.02),
    )
    modes, floors = claim_of(specification, traces, repeated)
    assert certified(modes, specification, traces, repeated, floors).disagreements == ()


def test_the_bound_is_stated_with_its_assumptions():
    traces = run_of(probes=59, damage=0.1)
    traces[7].signals["jsd"][5] = 0.0
    modes, floors = claim_of(SPECIFICATION, traces, traces)
    alone = certified(modes, SPECIFICATION, traces, traces, floors, stated=["strict"]).bounds
    assert list(alone) == ["strict"]
    one = alone["strict"]
    assert (one.satisfied, one.probes) == (59, 59)
    assert one.lower_bound == pytest.approx(0.05 ** (1 / 59))
    assert "at least 95.0 % of prompts" in one.statement
    assert "59 of 59 probes" in one.statement
    assert "independently" in one.statement
    assert "did not see them" in one.statement
    bounds = certified(modes, SPECIFICATION, traces, traces, floors, candidates=3).bounds
    # Strict and optimal have equal formulas, so that the three modes are two statements about each candidate.
    assert [bound.lower_bound for bound in bounds.values()] == [pytest.approx((0.05 / 6) ** (1 / 59))] * 3
    assert "at least 92.2 % of prompts" in bounds["strict"].statement  # 0.92204, rounded down
    assert "3 candidates under 2 specifications (strict and optimal; relaxed)" in bounds["strict"].statement


def test_the_bound_counts_what_was_recomputed_and_not_what_was_claimed():
    path = next(path for path, _ in NUMBERS if path[-1] == "satisfied")
    certificate = certified(altered(path, 10))
    assert certificate.bounds["strict"].satisfied == MODES[0].coverage.satisfied < 10


def test_a_specification_that_cannot_be_read_is_an_error():
    specification = {"strict": ModeSpecification({"x": "always jsd"}, 1.0, 99.0)}
    with pytest.raises(CertificationError, match="cannot be read: formula, column 11"):
        certify([], specification, TRACES, REPEATED, {}, candidates=1)
    assert certify([], {}, TRACES, REPEATED, {}, candidates=1).certified is False


def test_a_full_run_is_certified_in_less_than_three_seconds():
    traces, repeated = run_of(probes=59, steps=48), run_of(probes=59, steps=48, noise=1e-3)
    modes, floors = claim_of(SPECIFICATION, traces, repeated)
    start = time.process_time()
    assert certified(modes, SPECIFICATION, traces, repeated, floors).certified is True
    assert time.process_time() - start < 3.0
