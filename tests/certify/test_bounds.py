"""What is divided among what, and that the statement says so."""

from __future__ import annotations

import pytest
from toggle_runtime.records import Coverage, ModeSpecification

from toggle_edge.certify import ALONE, coverage_bound, of_selected, of_tried
from toggle_edge.profiles import load_profile
from toggle_edge.specification import specification_of

DEFAULT = specification_of(load_profile("default"))
PAPER = specification_of(load_profile("paper"))


def test_one_candidate_under_one_mode_has_all_of_the_error() -> None:
    bound = coverage_bound("strict", Coverage(59, 59, 59))
    assert bound.lower_bound == pytest.approx(0.05 ** (1 / 59))
    assert bound.statements == 1
    for words in (
        "With 95 % confidence, at least 95.0 % of prompts satisfy every property of mode strict at once",
        "59 of 59 probes",
        "Clopper and Pearson",
        "drawn independently from those prompts",
        "the search did not see them",
        "served to choose nothing else",
    ):
        assert words in bound.statement
    assert "divided" not in bound.statement


def test_every_candidate_that_was_tried_counts_under_every_different_specification() -> None:
    division = of_tried(5, DEFAULT)
    assert division.statements == 10
    assert division.among == "5 candidates under 2 specifications (strict and optimal; relaxed)"
    bound = coverage_bound("relaxed", Coverage(59, 59, 54), division)
    assert bound.lower_bound == pytest.approx(0.005 ** (1 / 59))
    assert "in all 10 statements on these probes together, at least 91.4 %" in bound.statement
    assert "The other 5 % are divided equally among the 10: 5 candidates under 2 specif" in bound.statement


def test_modes_that_differ_in_coverage_alone_are_one_specification() -> None:
    assert of_tried(1, PAPER).among == "1 candidate under 1 specification (strict and optimal and relaxed)"
    assert of_tried(1, PAPER).statements == 1
    only = {"strict": DEFAULT["strict"]}
    assert of_tried(1, only).statements == 1


@pytest.mark.parametrize(
    ("selected", "statements", "among"),
    [
        (
            {"strict": "trial 1", "optimal": "trial 2", "relaxed": "trial 3"},
            3,
            "trial 1 under strict, trial 2",
        ),
        (
            {"strict": "trial 1", "optimal": "trial 1", "relaxed": "trial 1"},
            2,
            "trial 1 under strict and optimal",
        ),
        ({"strict": "trial 1", "optimal": "trial 2", "relaxed": "trial 2"}, 3, "trial 2 under relaxed"),
        ({"optimal": "trial 4"}, 1, "trial 4 under optimal"),
    ],
)
def test_what_was_selected_without_the_probes_counts_once_for_each_mode(
    selected: dict[str, str], statements: int, among: str
) -> None:
    division = of_selected(selected, DEFAULT)
    assert division.statements == statements
    assert among in division.among


def test_properties_of_another_name_or_formula_are_another_specification() -> None:
    first = ModeSpecification({"a": "always (jsd <= 0.2)"}, 1.0, 99.0)
    for other in ({"b": "always (jsd <= 0.2)"}, {"a": "always (jsd <= 0.3)"}):
        assert of_tried(1, {"x": first, "y": ModeSpecification(other, 1.0, 99.0)}).statements == 2


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 0 to 5 probes, got 6"):
        coverage_bound("strict", Coverage(6, 5, 5), ALONE)
    with pytest.raises(ValueError, match="statements: expected at least 1, got 0"):
        coverage_bound("strict", Coverage(5, 5, 5), of_tried(0, DEFAULT))
