"""The pages keep up with the command line, the profiles and the code that they name."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from toggle_edge import __version__
from toggle_edge.cli import app
from toggle_edge.profiles import BUDGET_KEYS, MODES, ProbeCounts, builtin_profiles

ROOT = Path(__file__).parents[1]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in ROOT.glob("*.md")}
PAGES |= {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in ROOT.glob("*/*.md")}
README, COMMANDS, PROFILES = (PAGES[name] for name in ("README.md", "docs/commands.md", "docs/profiles.md"))
EVERYWHERE = {"--json", "--help"}


def leaves(command: object, name: str = "toggle-edge") -> Iterator[tuple[str, object]]:
    """Every command that does something, with its full name."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield name, command
    else:
        for word, each in inner.items():
            yield from leaves(each, f"{name} {word}")


LEAVES = dict(leaves(typer.main.get_command(app)))


def section(name: str) -> str:
    """A command's part of the page, heading included."""
    match = re.search(rf"^## {re.escape(name)}\b.*?(?=^## |\Z)", COMMANDS, re.MULTILINE | re.DOTALL)
    assert match, f"docs/commands.md has no section for {name}"
    return match[0]


def options(command: object) -> set[str]:
    found = [max(p.opts, key=len) for p in getattr(command, "params", []) if p.param_type_name == "option"]
    return set(found) - EVERYWHERE


@pytest.mark.parametrize("name", sorted(LEAVES))
def test_every_option_is_in_the_page_and_every_option_in_the_page_is_there(name: str) -> None:
    text = section(name)
    documented = set(re.findall(r"`(--[a-z-]+)", text)) - EVERYWHERE
    assert documented == options(LEAVES[name])
    assert "--json" in text


@pytest.mark.parametrize("name", sorted(LEAVES))
def test_every_command_and_option_has_help(name: str) -> None:
    command = LEAVES[name]
    assert getattr(command, "help", None)
    for parameter in getattr(command, "params", []):
        assert parameter.name == "help" or getattr(parameter, "help", None), parameter.opts


def test_no_section_is_about_a_command_that_is_not_there() -> None:
    headings = re.findall(r"^## (toggle-edge [a-z ]+?)(?: [A-Z]+)?$", COMMANDS, re.MULTILINE)
    assert sorted(headings) == sorted(LEAVES)


def test_commands_in_the_readme_are_there() -> None:
    groups = {" ".join(name.split()[:2]) for name in LEAVES}
    for name in re.findall(r"^toggle-edge [a-z]+", README, re.MULTILINE):
        assert name in groups
    for name in groups:
        assert name in README


@pytest.mark.parametrize("code", ["0", "1", "2", "3", "130"])
def test_every_exit_code_is_explained(code: str) -> None:
    assert re.search(rf"^\| {code} \|", COMMANDS, re.MULTILINE)
    assert re.search(rf"\b{code}\b", README)


def test_every_profile_key_is_in_the_page_and_no_other() -> None:
    keys = ["default_mode", "search.formats", "search.pruner", "search.quantiser", "search.trials"]
    keys += ["search.bits.least", "search.bits.most", "search.keep", "search.sparsities", "search.structure"]
    keys += [f"probes.{field.name}" for field in dataclasses.fields(ProbeCounts)]
    keys += [f"properties.NAME.{key}" for key in ("formula", "threshold")]
    keys += [f"modes.MODE.{key}" for key in ("avgpp", "coverage", "relax")]
    keys += [f"budget.{key}" for key in BUDGET_KEYS]
    rows = re.findall(r"^\| (`.*?) \|", PROFILES, re.MULTILINE)
    assert sorted(re.findall(r"`([^`]+)`", " ".join(rows))) == sorted(keys)
    assert all(f"`{mode}`" in PROFILES for mode in MODES)


def test_every_builtin_profile_is_in_the_pages() -> None:
    for name in builtin_profiles():
        assert f"profiles/{name}.toml" in README
        assert f"profiles/{name}.toml" in PROFILES


@pytest.mark.parametrize("name", sorted(PAGES))
def test_links_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)", PAGES[name]):
        assert target.startswith("http") or (ROOT / name).parent.joinpath(target).exists(), target


def test_names_of_code_in_contributing_exist() -> None:
    text = PAGES["CONTRIBUTING.md"]
    folders = ("toggle_edge", "runtime", "tests")
    sources = "\n".join(path.read_text("utf-8") for name in folders for path in (ROOT / name).rglob("*.py"))
    for path in re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.(?:py|md|toml))`", text):
        candidates = (ROOT / path, ROOT / "toggle_edge" / path, ROOT / "runtime" / "toggle_runtime" / path)
        assert any(candidate.exists() for candidate in candidates), path
    for name in re.findall(r"`(_?[A-Za-z][A-Za-z_.]+)`", text):
        word = name.split(".")[-1]
        assert re.search(rf"\b{re.escape(word)}\b", sources) or "/" in name or word in ("toml", "md"), name


def test_the_changelog_knows_this_version() -> None:
    assert f"## [{__version__}]" in PAGES["CHANGELOG.md"]
    assert "## [Unreleased]" in PAGES["CHANGELOG.md"]


def test_every_environment_variable_is_in_the_pages() -> None:
    code = "\n".join(path.read_text("utf-8") for path in (ROOT / "toggle_edge").rglob("*.py"))
    named = set(re.findall(r"\bTOGGLE_EDGE_[A-Z_]+\b", code))
    pages = "\n".join(text for name, text in PAGES.items() if name.startswith("docs/"))
    assert {"TOGGLE_EDGE_STREAM", "TOGGLE_EDGE_COMPUTE", "TOGGLE_EDGE_BASELINES_GB"} <= named
    assert named == {name for name in named if f"{name}`" in pages or f"{name}=" in pages}
    evaluation = set(re.findall(r"^\| `(TOGGLE_EDGE_\w+)`", PAGES["docs/evaluation.md"], re.MULTILINE))
    assert evaluation <= named
