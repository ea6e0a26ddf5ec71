"""Profile to specification: each mode's formulas, with its thresholds relaxed, as the device reads them."""

from __future__ import annotations

import dataclasses

from toggle_runtime.records import ModeSpecification
from toggle_runtime.signals import SIGNALS
from toggle_runtime.stl import Formula, FormulaError, horizon, lookback, parse, relaxed, signals_of

from toggle_edge.errors import ProfileError
from toggle_edge.profiles import BLOCKS, Profile
from toggle_edge.strict_tables import nearest

__all__ = ["SIGNALS", "specification_of", "weakened"]

OF_EVERY_BLOCK = frozenset({"attention_min"})
"""Signals that a missing block decides alone: there they are 0 at every step, whatever the others do."""


def specification_of(profile: Profile) -> dict[str, ModeSpecification]:
    """The specification of every mode, formulas as text with their thresholds relaxed for that mode.

    Raises ProfileError when a formula cannot be read, reads an unknown signal, or needs more steps than the
    profile asks of a probe, so that it could never be given a value; and when a block may go that a formula needs.
    """
    formulas = {name: _formula(profile, name, text) for name, text in profile.properties.items()}
    for name, formula in formulas.items():
        if BLOCKS in profile.bounds.structure and (read := signals_of(formula) & OF_EVERY_BLOCK):
            raise ProfileError(
                f"{profile.path}: search.structure: {BLOCKS!r} may go, but properties.{name} reads {min(read)}, 0 "
                f"at every step where a block is missing; leave {BLOCKS!r} out of it, or change the property"
            )
    return {
        mode: ModeSpecification(
            properties={name: str(relaxed(formula, bounds.relax)) for name, formula in formulas.items()},
            coverage=bounds.coverage,
            avgpp=bounds.avgpp,
        )
        for mode, bounds in profile.modes.items()
    }


def weakened(profile: Profile, factor: float) -> Profile:
    """The profile with every threshold weakened by `factor` times its size, as the paper's tool does it.

    Raises ProfileError when a formula cannot be read, or `factor` is not a share from 0 to less than 1.
    """
    if not 0.0 <= factor < 1.0:
        raise ProfileError(f"relax: expected a share from 0 to less than 1 (0.2 is 20 %), got {factor}")
    formulas = {name: _formula(profile, name, text) for name, text in profile.properties.items()}
    properties = {name: str(relaxed(formula, factor)) for name, formula in formulas.items()}
    return dataclasses.replace(profile, properties=properties)


def _formula(profile: Profile, name: str, text: str) -> Formula:
    where = f"{profile.path}: properties.{name}"
    try:
        formula = parse(text)
    except FormulaError as exc:
        raise ProfileError(f"{where}: {exc}") from exc
    for signal in sorted(signals_of(formula).difference(SIGNALS)):
        raise ProfileError(
            f"{where}: expected signals among {', '.join(SIGNALS)}, got {signal!r}{nearest(signal, SIGNALS)}"
        )
    if lookback(formula):
        raise ProfileError(
            f"{where}: the formula looks back {lookback(formula)} steps from the first one, so it never has a value; "
            "write always (...) around what looks back"
        )
    if horizon(formula) >= profile.probes.min_steps:
        raise ProfileError(
            f"{where}: the formula needs {horizon(formula) + 1} steps, probes have "
            f"{profile.probes.min_steps}; shorten its intervals or raise probes.min_steps"
        )
    return formula
