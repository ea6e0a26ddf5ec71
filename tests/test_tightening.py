"""The tightest thresholds hold, and anything tighter does not."""

from __future__ import annotations

import math
import tempfile
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from toggle_runtime.records import SATISFIED, ModeSpecification
from toggle_runtime.signals import Trace, exact_trace
from toggle_runtime.stl import parse, relaxed
from toggle_runtime.verdicts import judge

from toggle_edge.profiles import load_profile
from toggle_edge.specification import specification_of
from toggle_edge.tightening import DIGITS, as_profile, tightened

DEFAULT = (Path(__file__).parents[1] / "profiles" / "default.toml").read_text()
FORMULAS = {
    "coherence": "always (jsd <= 0.25)",
    "attention": "always (attention >= 0.7)",
    "recovery": "always eventually[0,2] (jsd <= 0.1)",
    "calm": "not eventually (jsd > 0.6)",
}


def traces(seed: int, probes: int, steps: int = 8, size: float = 1.0) -> list[Trace]:
    """Random signals; `size` makes values that no model has, but a threshold may."""
    generator = np.random.default_rng(seed)
    return [
        exact_trace(
            {
                "jsd": size * generator.uniform(0, 1, steps),
                "attention": size * generator.uniform(0.01, 1, steps),
            },
            np.ones(steps, dtype=bool),
            {},
        )
        for _ in range(probes)
    ]


def holds(properties: dict[str, str], coverage: float, rows: list[Trace]) -> bool:
    (verdict,) = judge(
        {"m": ModeSpecification(properties, coverage, 0.0)}, rows, dict.fromkeys(properties, 0.0)
    )
    return verdict.verdict == SATISFIED


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    probes=st.integers(1, 20),
    coverage=st.sampled_from([1.0, 0.9, 0.5]),
    relax=st.sampled_from([0.0, 0.2]),
)
def test_they_hold_together_and_nothing_tighter_does_on_the_same_probes(
    seed: int, probes: int, coverage: float, relax: float
) -> None:
    rows = traces(seed, probes)
    asked = {name: str(relaxed(parse(text), relax)) for name, text in FORMULAS.items()}
    found = tightened(ModeSpecification(asked, coverage, 0.0), relax, rows)
    profile = tomllib.loads(as_profile(found))["properties"]

    def as_asked(changes: dict[str, float]) -> dict[str, str]:
        texts = {
            name: table["formula"].replace("threshold", repr(table["threshold"] + changes.get(name, 0.0)))
            for name, table in profile.items()
        }
        return {name: str(relaxed(parse(text), relax)) for name, text in texts.items()}

    assert holds(as_asked({}), coverage, rows)
    if coverage == 1.0:
        step = 3 * 10.0**-DIGITS
        for name, direction in {"coherence": -1, "attention": 1, "recovery": -1, "calm": -1}.items():
            assert not holds(as_asked({name: direction * step}), coverage, rows), name


MODES = """
[modes.{mode}]
avgpp = 0.0
coverage = {coverage}
relax = {relax}
"""
REST = DEFAULT[DEFAULT.index("[search]") :]


def loaded(properties: str, coverage: float, relax: float) -> ModeSpecification:
    """What a profile with these properties asks for, read from its file as every command does."""
    modes = "".join(
        MODES.format(mode=mode, coverage=coverage, relax=relax) for mode in ("strict", "optimal", "relaxed")
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mined.toml"
        path.write_text(f'default_mode = "optimal"\n{properties}\n{modes}\n{REST}')
        return specification_of(load_profile(path))["optimal"]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    probes=st.integers(1, 30),
    coverage=st.sampled_from([1.0, 0.95, 0.9, 0.5]),
    relax=st.sampled_from([0.0, 0.2, 0.5]),
    size=st.sampled_from([1.0, 3.0, 4000.0]),
)
def test_pasted_into_a_profile_they_hold_at_the_coverage_and_tighter_ones_do_not(
    seed: int, probes: int, coverage: float, relax: float, size: float
) -> None:
    rows = traces(seed, probes, size=size)
    asked = {name: str(relaxed(parse(text), relax)) for name, text in FORMULAS.items()}
    found = tightened(ModeSpecification(asked, coverage, 0.0), relax, rows)
    (verdict,) = judge({"m": loaded(as_profile(found), coverage, relax)}, rows, dict.fromkeys(FORMULAS, 0.0))
    assert verdict.verdict == SATISFIED
    # The rounding of the thresholds may let a probe more than needed pass; then one of them may be spared.
    assume(verdict.coverage.satisfied == verdict.coverage.required)
    for name, each in found.items():
        tighter = each.threshold + (1e-3 if name == "attention" else -1e-3)
        pasted = as_profile({**found, name: replace(each, threshold=tighter)})
        (verdict,) = judge({"m": loaded(pasted, coverage, relax)}, rows, dict.fromkeys(FORMULAS, 0.0))
        assert verdict.coverage.satisfied < verdict.coverage.required, name


def test_a_formula_with_several_comparisons_says_why_it_has_none() -> None:
    text = "always ((jsd > 0.3) implies eventually[0,4] (jsd <= 0.1))"
    found = tightened(ModeSpecification({"recovery": text}, 1.0, 0.0), 0.0, traces(0, 3))["recovery"]
    assert found.threshold is None
    assert found.reason == "the formula has 2 comparisons, and one room for all of them"
    assert "# the formula has 2" in as_profile({"recovery": found})


def test_a_name_that_toml_would_read_otherwise_is_quoted() -> None:
    found = tightened(ModeSpecification({"long. range": FORMULAS["attention"]}, 1.0, 0.0), 0.0, traces(0, 3))
    assert set(tomllib.loads(as_profile(found))["properties"]) == {"long. range"}


def test_what_cannot_be_judged_gives_no_thresholds() -> None:
    rows = traces(0, 2)
    rows[1].signals["jsd"][3] = math.nan
    for given_rows in (rows, []):
        with pytest.raises(ValueError, match="could not be judged"):
            tightened(ModeSpecification({"coherence": FORMULAS["coherence"]}, 1.0, 0.0), 0.0, given_rows)
