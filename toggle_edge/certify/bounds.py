"""What the probes of a run say about all prompts: a bound, and a sentence that says what it takes for granted.

A statement with 95 % confidence may be wrong 5 times in 100. Statements that are made together, or from which
one is picked by the very probes they rest on, share these 5 %: each is stated at its part, so that all of them
hold at once 95 times in 100 (Bonferroni), and then the picked one does, however it was picked.

- Candidates: the cheapest of m that pass on these probes passes by luck up to m times as often as one alone.
- Modes: that the relaxed mode's thresholds are weaker makes its share of prompts larger, and its count of probes
  too. Both bounds can be too high, each on other draws, so that modes with different formulas are different
  statements. Modes with equal formulas (in the built-in default profile strict and optimal, which ask for other
  coverage and AvgPP) say the same of a candidate: one statement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from toggle_runtime.records import Coverage, ModeSpecification

from toggle_edge.statistics import clopper_pearson_lower

__all__ = ["ALONE", "CONFIDENCE", "CoverageBound", "Division", "coverage_bound", "of_selected", "of_tried"]

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Division:
    """Among how many statements on the same probes the 5 % are divided, and what these are, in words."""

    statements: int
    among: str


ALONE = Division(1, "one candidate under one specification")
"""For one candidate and one mode, both named before anything was judged."""


@dataclass(frozen=True, slots=True)
class CoverageBound:
    """What the probes of one mode say about all prompts.

    `lower_bound` is the least share of prompts that satisfy the specification, at 95 % confidence divided
    among `statements`; `statement` says so in words, with what it takes for granted.
    """

    mode: str
    satisfied: int
    probes: int
    statements: int
    lower_bound: float
    statement: str


def of_tried(candidates: int, specification: Mapping[str, ModeSpecification]) -> Division:
    """All `candidates` that were judged on these probes, under all modes of `specification`.

    Holds for any of them, also for one that was selected by these probes.
    """
    names = _equal_modes(specification)
    return Division(
        candidates * len(names),
        f"{_count(candidates, 'candidate')} under {_count(len(names), 'specification')} ({'; '.join(names)})",
    )


def of_selected(selected: Mapping[str, str], specification: Mapping[str, ModeSpecification]) -> Division:
    """One candidate for each mode, selected without these probes: `selected` maps mode to the candidate's id."""
    pairs: dict[tuple[str, frozenset[tuple[str, str]]], list[str]] = {}
    for mode, candidate in selected.items():
        pairs.setdefault((candidate, _properties(specification[mode])), []).append(mode)
    among = [f"{candidate} under {' and '.join(modes)}" for (candidate, _), modes in pairs.items()]
    return Division(len(pairs), ", ".join(among))


def coverage_bound(mode: str, coverage: Coverage, division: Division = ALONE) -> CoverageBound:
    """What a coverage says about all prompts (Clopper and Pearson 1934), at its part of the error.

    A probe that could not be judged counts as one that does not satisfy. Raises ValueError on impossible counts.
    """
    lower = clopper_pearson_lower(coverage.satisfied, coverage.probes, CONFIDENCE, division.statements)
    together, divided = "", ""
    if division.statements > 1:
        together = f" in all {division.statements} statements on these probes together"
        divided = (
            f" The other {100 * (1 - CONFIDENCE):.0f} % are divided equally among the {division.statements}: "
            f"{division.among}."
        )
    statement = (
        f"With {100 * CONFIDENCE:.0f} % confidence{together}, at least {_percent_down(lower)} % of prompts satisfy "
        f"every property of mode {mode} at once, as {coverage.satisfied} of {coverage.probes} probes do "
        f"(Clopper and Pearson's bound).{divided} This takes for granted that the probes were drawn independently "
        f"from those prompts, that the search did not see them, and that they served to choose nothing else."
    )
    return CoverageBound(mode, coverage.satisfied, coverage.probes, division.statements, lower, statement)


def _equal_modes(specification: Mapping[str, ModeSpecification]) -> list[str]:
    """Modes with equal formulas, named together, in the specification's order."""
    groups: dict[frozenset[tuple[str, str]], list[str]] = {}
    for name, mode in specification.items():
        groups.setdefault(_properties(mode), []).append(name)
    return [" and ".join(names) for names in groups.values()]


def _properties(mode: ModeSpecification) -> frozenset[tuple[str, str]]:
    return frozenset(mode.properties.items())


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _percent_down(share: float) -> str:
    """One decimal, rounded down: a bound must not gain by being printed."""
    return f"{int(share * 1000) / 10:.1f}"
