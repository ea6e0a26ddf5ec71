"""Plans as options change them, and how many steps they take."""

from __future__ import annotations

import pytest
from toggle_runtime.plan import ONLY_IF_ASKED, PASS_NAMES

from toggle_edge.errors import InputError
from toggle_edge.pipeline.validation import PLAN, changed, processes_of, starts_a_process, with_sustained


def test_a_sustained_run_follows_the_latency_pass_once() -> None:
    plan = with_sustained(with_sustained(PLAN, 5.0), 7.0)
    assert plan.sustained_s == 7.0
    assert [name for name in plan.passes if name != "sustained"] == PLAN.passes
    assert plan.passes[plan.passes.index("latency") + 1] == "sustained"
    assert not ONLY_IF_ASKED & set(PLAN.passes)
    assert set(PASS_NAMES) > ONLY_IF_ASKED


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_no_time_at_all_is_refused(seconds: float) -> None:
    with pytest.raises(InputError, match=r"plan\.sustained_s"):
        with_sustained(PLAN, seconds)


def test_no_restart_at_all_is_refused() -> None:
    with pytest.raises(InputError, match=r"plan\.restarts: expected more than 0, got 0"):
        changed(PLAN, restarts=0)


def test_steps_are_counted_as_they_are_told() -> None:
    plan = changed(PLAN, restarts=4, colds=2)
    told = [{"pass": name, "step": "started"} for name in plan.passes]
    told += [{"pass": "latency", "step": "restart"}] * 4 + [{"pass": "cold", "step": "restart"}] * 2
    assert sum(map(starts_a_process, told)) == processes_of(plan) == len(plan.passes) - 2 + 4 + 2
