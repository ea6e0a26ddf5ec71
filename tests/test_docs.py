"""The README keeps up with the command line and the profiles."""

from __future__ import annotations

from pathlib import Path

import typer.main

from toggle_edge.cli import app
from toggle_edge.profiles import BUDGET_KEYS, MODES, builtin_profiles

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_command_and_option_is_in_the_readme_and_has_help() -> None:
    group = typer.main.get_command(app)
    commands = getattr(group, "commands", {})
    assert commands
    for name, command in commands.items():
        assert f"toggle-edge {name}" in README
        for parameter in command.params:
            if parameter.name != "help":
                assert f"`{parameter.opts[0]}" in README, parameter.opts
                assert getattr(parameter, "help", None), parameter.opts


def test_every_profile_key_is_in_the_readme() -> None:
    keys = ["default_mode", "search.formats", "probes.search", "probes.certificate", "probes.min_steps"]
    keys += [f"properties.NAME.{key}" for key in ("formula", "threshold")]
    keys += [f"modes.MODE.{key}" for key in ("avgpp", "coverage", "relax")]
    keys += [f"budget.{key}" for key in BUDGET_KEYS]
    for key in keys:
        assert f"`{key}`" in README, key
    assert all(f"`{mode}`" in README for mode in MODES)


def test_every_builtin_profile_is_in_the_readme() -> None:
    for name in builtin_profiles():
        assert f"profiles/{name}.toml" in README


def test_links_lead_somewhere() -> None:
    for part in README.split("](")[1:]:
        target = part.split(")")[0]
        assert target.startswith("http") or (ROOT / target).exists(), target
