"""What comes home is judged on the probes that were sent, or not at all."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from toggle_runtime.records import Coverage, ModeSpecification, ModeVerdict, RunRecord
from toggle_runtime.signals import Trace, exact_trace

from toggle_edge.certify import Certificate
from toggle_edge.errors import CertificationError
from toggle_edge.pipeline.judging import Judged, implied_outcome, require_same_probes
from toggle_edge.probes import Probe

PROBES = [Probe("a", (1, 2, 3, 4), 1, (2,)), Probe("b", (1, 2, 3, 4), 2, ())]
TRACES = [
    exact_trace({"jsd": np.zeros(3)}, np.array([False, False, True]), {}),
    exact_trace({"jsd": np.zeros(2)}, np.array([False, False]), {}),
]


def test_traces_of_the_same_probes_are_taken() -> None:
    require_same_probes(TRACES, PROBES)


@pytest.mark.parametrize(
    ("traces", "message"),
    [
        (TRACES[:1], "expected traces of 2"),
        ([*TRACES, TRACES[0]], "expected traces of 2"),
        (TRACES[::-1], "probe 0: expected 3 steps"),
        ([dataclasses.replace(TRACES[0], answer=np.array([False, True, False])), TRACES[1]], "answer at"),
        ([dataclasses.replace(TRACES[0], answer=np.zeros(3, dtype=bool)), TRACES[1]], "answer at"),
    ],
)
def test_a_probe_left_out_or_an_answer_moved_is_noticed(traces: list[Trace], message: str) -> None:
    with pytest.raises(CertificationError, match=message):
        require_same_probes(traces, PROBES)


@pytest.mark.parametrize(
    ("verdict", "outcome"),
    [
        ("SATISFIED", "PASS"),
        ("MARGINAL", "PASS"),
        ("VIOLATED", "FAIL"),
        ("UNSET", "ERROR"),
        ("nonsense", "ERROR"),
    ],
)
def test_an_outcome_is_what_the_verdict_stands_for(verdict: str, outcome: str) -> None:
    assert implied_outcome(ModeVerdict("optimal", verdict, None, Coverage(0, 1, 1), None, [])) == outcome


def judged(verdict: str, *, avgpp: float | None = 97.0, certified: bool = True) -> Judged:
    modes = {"optimal": mode_verdict(verdict, avgpp)}
    return Judged(RunRecord(1, "r", "b", "PASS"), {}, modes, Certificate(certified, (), {}, {}), "PASS", None)


def mode_verdict(verdict: str, avgpp: float | None = 97.0) -> ModeVerdict:
    return ModeVerdict("optimal", verdict, -0.1, Coverage(52, 59, 57), avgpp, [])


@pytest.mark.parametrize(
    ("run", "host", "reason"),
    [
        (judged("SATISFIED"), "SATISFIED", None),
        (judged("MARGINAL"), "SATISFIED", None),
        (
            judged("VIOLATED"),
            "VIOLATED",
            "52 of 59 certificate probes satisfy optimal, it needs 57; the host says the same",
        ),
        (judged("VIOLATED"), "SATISFIED", "the host says SATISFIED, so it is this device's kernels"),
        (judged("UNSET", avgpp=None), "SATISFIED", "UNSET"),
        (judged("SATISFIED", avgpp=94.99), "SATISFIED", "AvgPP is 94.99, optimal needs 95"),
        (judged("SATISFIED", avgpp=None), "SATISFIED", "AvgPP is unknown"),
        (judged("SATISFIED", certified=False), "SATISFIED", "was not certified"),
        (dataclasses.replace(judged("SATISFIED"), certificate=None), "SATISFIED", "was not certified"),
        (
            dataclasses.replace(judged("SATISFIED"), modes={}, outcome="TIMEOUT"),
            "SATISFIED",
            "ended with TIMEOUT",
        ),
    ],
)
def test_what_keeps_a_candidate_from_being_selected(run: Judged, host: str, reason: str | None) -> None:
    specification = {"optimal": ModeSpecification({}, 0.95, 95.0)}
    shortfall = run.shortfall("optimal", specification, {"optimal": mode_verdict(host)})
    assert (shortfall is None) == (reason is None)
    assert (reason or "") in (shortfall or "")
