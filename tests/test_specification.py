"""Profile to specification: thresholds relaxed per mode, and formulas that could never be judged refused."""

from dataclasses import replace

import pytest
from toggle_runtime.records import ModeSpecification
from toggle_runtime.stl import parse

from toggle_edge.errors import ProfileError
from toggle_edge.profiles import Mode, load_profile
from toggle_edge.specification import specification_of

DEFAULT = load_profile("default")


def test_the_default_specification():
    specification = specification_of(DEFAULT)
    assert list(specification) == ["strict", "optimal", "relaxed"]
    assert specification["strict"].properties == specification["optimal"].properties == DEFAULT.properties
    assert specification["relaxed"] == ModeSpecification(
        {
            "coherence": "always (jsd <= 0.3)",
            "long_range_dependency": "always (attention >= 0.56)",
            "contextual_consistency": "always (context >= 0.56)",
            "factual_accuracy": "always (factual >= 0.56)",
        },
        coverage=0.9,
        avgpp=85.0,
    )
    assert specification["optimal"].coverage == 0.95
    assert specification["strict"].avgpp == 99.0


def test_the_papers_specification_is_the_same_in_all_modes():
    modes = specification_of(load_profile("paper")).values()
    assert {tuple(mode.properties.items()) for mode in modes} == {tuple(DEFAULT.properties.items())}
    assert {mode.coverage for mode in modes} == {1.0}


def test_an_implication_relaxes_both_ways():
    recovery = "always ((jsd > 0.3) implies eventually[0,4] (jsd <= 0.1))"
    profile = replace(DEFAULT, properties={"recovery": recovery}, modes={"relaxed": Mode(85.0, 0.9, 0.5)})
    text = specification_of(profile)["relaxed"].properties["recovery"]
    assert parse(text) == parse("always ((jsd > 0.45) implies eventually[0,4] (jsd <= 0.15))")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("always (contxt >= 0.7)", r"properties\.x: .*got 'contxt'; did you mean 'context'\?"),
        ("always (perplexity <= 9)", r"properties\.x: expected signals among jsd, .*got 'perplexity'$"),
        ("always (jsd = 0.7)", r"properties\.x: formula, column 13"),
        ("always[0,32] (jsd <= 0.7)", r"properties\.x: the formula needs 33 steps, probes have 32"),
        ("historically[0,2] (jsd <= 0.7)", r"properties\.x: the formula looks back 2 steps.*write always"),
    ],
)
def test_a_formula_that_could_never_be_judged_is_refused(text, message):
    with pytest.raises(ProfileError, match=r"profiles/default\.toml: " + message):
        specification_of(replace(DEFAULT, properties={"x": text}))


def test_the_longest_formula_that_fits_is_accepted():
    profile = replace(DEFAULT, properties={"x": "always[0,31] (jsd <= 0.7)"})
    assert specification_of(profile)["strict"].properties == {"x": "always[0,31] (jsd <= 0.7)"}
