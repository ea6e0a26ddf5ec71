"""Profiles: what ships, and that a wrong file is refused with its place and a remedy."""

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest

from toggle_edge import profiles
from toggle_edge.errors import InputError, ProfileError
from toggle_edge.profiles import Mode, ProbeCounts, SearchBounds, builtin_profiles, load_profile
from toggle_edge.specification import specification_of

DEFAULT = builtin_profiles()["default"].read_text()


def written(folder, old, new):
    """A copy of the default profile with one text replaced, once; the text must be there."""
    assert old in DEFAULT
    path = folder / "mine.toml"
    path.write_text(DEFAULT.replace(old, new, 1))
    return path


def test_default_profile():
    profile = load_profile("default")
    assert profile.name == "default"
    assert profile.properties == {
        "coherence": "always (jsd <= 0.25)",
        "long_range_dependency": "always (attention >= 0.7)",
        "contextual_consistency": "always (context >= 0.7)",
        "factual_accuracy": "always (factual >= 0.7)",
    }
    assert profile.modes == {
        "strict": Mode(99.0, 1.0, 0.0),
        "optimal": Mode(95.0, 0.95, 0.0),
        "relaxed": Mode(85.0, 0.9, 0.2),
    }
    assert profile.default_mode == "optimal"
    assert profile.formats == ("int2-g64", "int4-g32", "int8-g64", "fp16")
    assert profile.probes == ProbeCounts(59, 59, 32, selection=118)
    assert profile.budget == {}


def test_paper_profile_differs_from_default_only_in_coverage_and_relaxation():
    paper, default = load_profile("paper"), load_profile("default")
    assert paper.properties == default.properties
    assert [mode.avgpp for mode in paper.modes.values()] == [99.0, 95.0, 85.0]
    assert {(mode.coverage, mode.relax) for mode in paper.modes.values()} == {(1.0, 0.0)}


def test_a_path_is_read_from_where_it_is(tmp_path, monkeypatch):
    path = written(tmp_path, "threshold = 0.25", "threshold = 0.1")
    for reference in (path, str(path)):
        assert load_profile(reference).properties["coherence"] == "always (jsd <= 0.1)"
    monkeypatch.chdir(tmp_path)
    assert load_profile("mine.toml").name == "mine"


def test_an_installed_package_reads_its_own_copy(tmp_path, monkeypatch):
    folder = tmp_path / "toggle_edge" / "_data" / "profiles"
    folder.mkdir(parents=True)
    (folder / "packed.toml").write_text(DEFAULT)
    monkeypatch.setattr(profiles, "__file__", str(tmp_path / "toggle_edge" / "profiles.py"))
    assert builtin_profiles() == {"packed": folder / "packed.toml"}
    assert load_profile("packed").name == "packed"


def test_a_formula_may_hold_its_numbers_itself(tmp_path):
    path = written(
        tmp_path, 'formula = "always (jsd <= threshold)"\nthreshold = 0.25', 'formula = "jsd <= 0.5"'
    )
    assert load_profile(path).properties["coherence"] == "jsd <= 0.5"


def test_a_budget_limits_known_measurements(tmp_path):
    path = written(tmp_path, "[budget]", "[budget]\nmemory_bytes = 1_000_000\ndecode_ms_p50 = 2.5")
    assert load_profile(path).budget == {"memory_bytes": 1e6, "decode_ms_p50": 2.5}


@pytest.mark.parametrize(
    ("old", "new", "expectations"),
    [
        ("[modes.optimal]", "[modes.optimum]", ["modes.optimum: unknown key", "did you mean 'optimal'"]),
        ("[modes.optimal]\navgpp = 95.0\ncoverage = 0.95\nrelax = 0.0\n", "", ["modes.optimal: missing"]),
        ("[search]", "[serach]", ["serach: unknown key", "did you mean 'search'"]),
        (
            "coverage = 0.95",
            "covrage = 0.95",
            ["modes.optimal.covrage: unknown key", "did you mean 'coverage'"],
        ),
        ("coverage = 0.95", "coverage = 95", ["modes.optimal.coverage", "from 0 to 1, got 95"]),
        ("coverage = 0.95", "coverage = 0.0", ["modes.optimal.coverage", "above 0"]),
        ("coverage = 0.95", "coverage = nan", ["modes.optimal.coverage", "finite number, got nan"]),
        ("coverage = 0.95", "coverage = true", ["modes.optimal.coverage", "finite number, got True"]),
        ("coverage = 0.95", "", ["modes.optimal.coverage: missing"]),
        ("relax = 0.2", "relax = 1.2", ["modes.relaxed.relax", "from 0 to 1"]),
        ("relax = 0.2", "relax = 1.0", ["modes.relaxed.relax", "expected less than 1"]),
        ("avgpp = 95.0", "avgpp = 101", ["modes.optimal.avgpp", "from 0 to 100"]),
        (
            "threshold = 0.25",
            'threshold = "low"',
            ["properties.coherence.threshold", "finite number, got 'low'"],
        ),
        ("threshold = 0.25", "threshold = inf", ["properties.coherence.threshold", "finite number, got inf"]),
        ("threshold = 0.25", "", ["properties.coherence.threshold", "the formula names it"]),
        ("jsd <= threshold", "jsd <= 0.2", ["properties.coherence.formula", "name `threshold`"]),
        (
            'formula = "always (jsd <= threshold)"',
            "formula = 3",
            ["properties.coherence.formula", "text, got 3"],
        ),
        ('"int4-g32"', '"int3-g32"', ["search.formats", "no target has a kernel", "is int4-g32"]),
        ('"int4-g32"', '"int4-axis"', ["search.formats", "nearest format with one is int4-g32"]),
        ('"int4-g32"', '"int4-g7"', ["search.formats", "int2 to int16", "got 'int4-g7'"]),
        ('"int4-g32"', "4", ["search.formats", "got '4'"]),
        ('"int4-g32"', '"fp16"', ["search.formats", "each format once"]),
        ('["int2-g64", "int4-g32", "int8-g64", "fp16"]', "[]", ["search.formats", "expected a list"]),
        ("certificate = 59", "certificate = 0", ["probes.certificate", ">= 1, got 0"]),
        ("certificate = 59", "certificate = 59.0", ["probes.certificate", "whole number"]),
        ("certificate = 59", "certificates = 59", ["probes.certificates", "did you mean 'certificate'"]),
        ("[budget]", "[budget]\nmemory_byte = 1", ["budget.memory_byte", "did you mean 'memory_bytes'"]),
        ("[budget]", "[budget]\nmemory_bytes = -1", ["budget.memory_bytes", "from 0 to inf"]),
        ("[budget]", "budget = 3\n[x]", ["x: unknown key"]),
        ('default_mode = "optimal"', 'default_mode = "strickt"', ["default_mode", "did you mean 'strict'"]),
        ("[probes]", "[probes", ["expected TOML"]),
    ],
)
def test_a_wrong_file_is_refused_with_its_place(tmp_path, old, new, expectations):
    path = written(tmp_path, old, new)
    with pytest.raises(ProfileError) as caught:
        load_profile(path)
    for expectation in [str(path), *expectations]:
        assert expectation in str(caught.value)


PROBES = "[probes]\n"
SEARCH = "[search]\n"
"""Where keys of their sections may be put in."""


@pytest.mark.parametrize(
    ("old", "new", "expectations"),
    [
        ("[properties.coherence]", "colour = 3\n[properties.coherence]", ["colour: unknown key"]),
        (
            "threshold = 0.25",
            "treshold = 0.25",
            ["properties.coherence.treshold", "did you mean 'threshold'"],
        ),
        (
            "threshold = 0.25",
            "threshold = true",
            ["properties.coherence.threshold", "finite number, got True"],
        ),
        (
            "threshold = 0.25",
            "threshold = -nan",
            ["properties.coherence.threshold", "finite number, got nan"],
        ),
        ("threshold = 0.25", f"threshold = {'9' * 400}", ["properties.coherence.threshold", "finite number"]),
        ("threshold = 0.25", f"threshold = {'9' * 5000}", ["expected TOML"]),
        ("threshold = 0.25", "threshold = [0.25]", ["properties.coherence.threshold", "got [0.25]"]),
        ("threshold = 0.25", "threshold = 0.25\nthreshold = 0.3", ["expected TOML", "overwrite", "line 7"]),
        ("[modes.strict]", "[modes.strict]\n[modes.strict]", ["expected TOML", "twice"]),
        ("relax = 0.2", "relax = -0.1", ["modes.relaxed.relax", "from 0 to 1, got -0.1"]),
        ("coverage = 0.90", "coverage = -0.5", ["modes.relaxed.coverage", "from 0 to 1, got -0.5"]),
        ("avgpp = 99.0", 'avgpp = "99"', ["modes.strict.avgpp", "finite number, got '99'"]),
        ("[search]", "[search]\ntrials = 0", ["search.trials", "whole number >= 1, got 0"]),
        ("[search]", "[search]\ntrials = true", ["search.trials", "got True"]),
        ("[search]", "[search]\ntrails = 3", ["search.trails", "did you mean 'trials'"]),
        (SEARCH, SEARCH + "bits = 4\n", ["search.bits: expected a table", "got 4"]),
        (SEARCH, SEARCH + "bits = {lest = 4}\n", ["search.bits.lest", "did you mean 'least'"]),
        (SEARCH, SEARCH + "bits = {least = 4.5}\n", ["search.bits.least", "whole number"]),
        (
            SEARCH,
            SEARCH + "bits = {least = 8, most = 4}\n",
            ["search.bits.least", "at most search.bits.most"],
        ),
        (SEARCH, SEARCH + 'structure = "blocks"\n', ["search.structure", "expected a list", "got 'blocks'"]),
        (
            SEARCH,
            SEARCH + 'structure = ["heads"]\n',
            ["search.structure", "one of blocks, kv_groups", "'heads'"],
        ),
        (SEARCH, SEARCH + 'structure = ["block"]\n', ["search.structure", "did you mean 'blocks'"]),
        (SEARCH, SEARCH + 'structure = ["blocks", "blocks"]\n', ["search.structure", "each part once"]),
        (SEARCH, SEARCH + "structure = [[]]\n", ["search.structure", "got []"]),
        (SEARCH, SEARCH + 'structure = ["blocks"]\nkeep = [0.5]\n', ["search.keep", "has neither"]),
        (SEARCH, SEARCH + 'structure = ["channels"]\nkeep = 0.5\n', ["search.keep", "a list of shares"]),
        (SEARCH, SEARCH + 'structure = ["channels"]\nkeep = [1.0]\n', ["search.keep", "below 1", "got 1.0"]),
        (SEARCH, SEARCH + 'structure = ["channels"]\nkeep = [0]\n', ["search.keep", "above 0", "got 0"]),
        (SEARCH, SEARCH + 'structure = ["channels"]\nkeep = [nan]\n', ["search.keep", "got nan"]),
        (SEARCH, SEARCH + 'structure = ["channels"]\nkeep = [0.5, 0.5]\n', ["search.keep", "share once"]),
        (SEARCH, SEARCH + "sparsities = [0.6]\n", ["search.sparsities", "up to 0.5", "got 0.6"]),
        (SEARCH, SEARCH + "sparsities = [true]\n", ["search.sparsities", "got True"]),
        (PROBES, PROBES + "max_token = 3\n", ["probes.max_token", "did you mean 'max_tokens'"]),
        (PROBES, PROBES + "max_tokens = 33\n", ["probes.max_tokens", "min_steps + 2 = 34", "got 33"]),
        (PROBES, PROBES + "max_tokens = 64.0\n", ["probes.max_tokens", "whole number"]),
        (PROBES, PROBES + "probe_bytes = -1\n", ["probes.probe_bytes", ">= 1, got -1"]),
        (PROBES, PROBES + 'data = "a.jsonl"\n', ["probes.data", "expected a list", "got 'a.jsonl'"]),
        (PROBES, PROBES + "data = [3]\n", ["probes.data", "expected a list", "got [3]"]),
        (
            PROBES,
            PROBES + 'data = ["lambda:a"]\n',
            ["probes.data", "kind 'lambda'", "did you mean 'lambada'"],
        ),
        (PROBES, PROBES + 'data = ["hub:"]\n', ["probes.data", "expected a path after it"]),
        (PROBES, PROBES + 'data = ["a.txt", "a.txt"]\n', ["probes.data", "each data set once"]),
        ("[budget]", "[budget]\nttft_ms = inf", ["budget.ttft_ms", "finite number, got inf"]),
        ("[budget]", "[[budget]]", ["budget: expected a table [budget]"]),
        ("[budget]", f"[budget]\nx = {'[' * 10_000}", ["expected TOML"]),
    ],
)
def test_what_no_profile_says_is_refused_with_its_place(tmp_path, old, new, expectations):
    path = written(tmp_path, old, new)
    with pytest.raises(ProfileError) as caught:
        load_profile(path)
    for expectation in [str(path), *expectations]:
        assert expectation in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("content", [b"\x7fELF\0\0", b'x = "\0"', "x = 1".encode("utf-16"), b"\xff"])
def test_a_binary_file_is_refused(tmp_path, content):
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(ProfileError, match=r"mine\.toml: expected TOML in UTF-8"):
        load_profile(path)


def test_a_huge_file_is_refused_unread(tmp_path):
    path = tmp_path / "mine.toml"
    with path.open("wb") as stream:
        stream.truncate(1 << 30)
    with pytest.raises(ProfileError, match=r"mine\.toml: expected a profile of at most 1048576 bytes"):
        load_profile(path)
    with pytest.raises(ProfileError, match="expected a readable profile: Is a directory"):
        load_profile(tmp_path / "..")


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("always (jsd =< 0.2)", "properties.coherence: formula, column 13: expected a signal, a number"),
        ("always (jst <= 0.2)", "expected signals among .*'jst'; did you mean 'jsd'"),
        ("always[0,40] (jsd <= 0.2)", "needs 41 steps, probes have 32"),
        ("always (jsd <= 0.2", "column 19"),
    ],
)
def test_a_bad_formula_is_refused_with_its_column(tmp_path, formula, message):
    old = 'formula = "always (jsd <= threshold)"\nthreshold = 0.25'
    path = written(tmp_path, old, f'formula = "{formula}"')
    with pytest.raises(ProfileError, match=message):
        specification_of(load_profile(path))


def test_data_sets_are_kept_as_written(tmp_path):
    path = written(
        tmp_path, PROBES, PROBES + 'data = ["lambada:a/b.jsonl", "hub:a/b#c/d"]\nmax_tokens = 99\n'
    )
    profile = load_profile(path)
    assert profile.probes.data == ("lambada:a/b.jsonl", "hub:a/b#c/d")
    assert profile.probes.max_tokens == 99
    assert load_profile("default").probes.data == ()


def test_how_long_a_search_goes_on_is_no_part_of_the_contract(tmp_path):
    longer = load_profile(written(tmp_path, "[search]", "[search]\ntrials = 7"))
    assert (longer.trials, load_profile("default").trials) == (7, 60)
    assert longer.digest == load_profile("default").digest
    other = load_profile(written(tmp_path, PROBES, PROBES + "max_tokens = 99\n"))
    assert other.digest != longer.digest


def test_bounds_say_what_a_search_may_vary(tmp_path):
    assert load_profile("default").bounds == SearchBounds(None, None, None, (), (0.75, 0.5))
    text = (
        'bits = {least = 3}\nstructure = ["channels", "blocks"]\nkeep = [0.3, 0.9]\nsparsities = [0.1, 0.5]\n'
    )
    bounds = load_profile(written(tmp_path, SEARCH, SEARCH + text)).bounds
    assert bounds == SearchBounds(3, None, (0.5, 0.1), ("blocks", "channels"), (0.9, 0.3))
    assert load_profile(written(tmp_path, SEARCH, SEARCH + "sparsities = []\n")).bounds.sparsities == ()


def test_a_study_from_before_there_were_bounds_goes_on_under_a_profile_without(tmp_path):
    profile, bounded = load_profile("default"), written(tmp_path, SEARCH, SEARCH + "bits = {most = 8}\n")
    assert load_profile(bounded).digest != profile.digest
    same = load_profile(written(tmp_path, SEARCH, SEARCH + "bits = {}\nstructure = []\n"))
    assert same.digest == profile.digest
    content = dataclasses.asdict(profile)
    for key in ("name", "path", "trials", "quantiser", "pruner", "bounds"):
        del content[key]
    before = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    assert profile.digest == before


def test_blocks_may_not_go_that_a_property_needs(tmp_path):
    path = written(tmp_path, "always (attention >= threshold)", "always (attention_min >= threshold)")
    path.write_text(path.read_text().replace(SEARCH, SEARCH + 'structure = ["blocks", "channels"]\n'))
    with pytest.raises(ProfileError) as caught:
        specification_of(load_profile(path))
    for part in (
        str(path),
        "search.structure",
        "'blocks'",
        "properties.long_range_dependency",
        "attention_min",
    ):
        assert part in str(caught.value)
    path.write_text(path.read_text().replace('"blocks", ', ""))
    assert specification_of(load_profile(path))


@pytest.mark.parametrize("name", sorted(builtin_profiles()))
def test_every_builtin_profile_is_a_contract_of_its_own(name):
    profile = load_profile(name)
    specification = specification_of(profile)
    assert set(specification) == {"strict", "optimal", "relaxed"}
    assert profile.modes["strict"].avgpp > profile.modes["optimal"].avgpp > profile.modes["relaxed"].avgpp
    assert profile.modes["strict"].coverage == 1.0
    for mode, bounds in profile.modes.items():
        # Enough certificate probes that all of them passing certifies the share that the mode asks for.
        least = bounds.coverage if bounds.coverage < 1.0 else 0.95
        bound = 0.05 ** (1.0 / profile.probes.certificate)
        assert bound >= least - 5e-4, (mode, bound)
    others = [load_profile(other) for other in builtin_profiles() if other != name]
    assert profile.digest not in {other.digest for other in others}


def test_only_the_profiles_for_a_use_name_data_sets():
    named = {name: load_profile(name).probes.data for name in builtin_profiles()}
    assert {name for name, data in named.items() if data} == {"assistant", "field-notes", "regulated"}
    reading = {name for name in named if any("factual" in f for f in load_profile(name).properties.values())}
    assert "field-notes" not in reading, "its texts have no answers"


def test_wrong_types_of_whole_sections_are_refused(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('properties = 3\ndefault_mode = "strict"\n')
    with pytest.raises(ProfileError, match=r"properties: expected a table \[properties\], got 3"):
        load_profile(path)
    path.write_text("")
    with pytest.raises(ProfileError, match="properties: missing"):
        load_profile(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ProfileError, match="UTF-8"):
        load_profile(path)


def test_no_property_is_no_contract(tmp_path):
    start, end = DEFAULT.index("[properties.coherence]"), DEFAULT.index("# avgpp")
    path = tmp_path / "mine.toml"
    path.write_text(DEFAULT[:start] + "[properties]\n" + DEFAULT[end:])
    with pytest.raises(ProfileError, match="at least one property"):
        load_profile(path)


def test_an_unknown_name_or_path_says_what_there_is(tmp_path):
    with pytest.raises(ProfileError, match=r"one of assistant, default, .*did you mean 'default'\?"):
        load_profile("defualt")
    with pytest.raises(ProfileError, match=r"none\.toml: expected a readable profile: No such file"):
        load_profile(tmp_path / "none.toml")
    with pytest.raises(InputError) as caught:
        load_profile(str(Path("folder") / "default"))
    assert caught.value.exit_code == 2
