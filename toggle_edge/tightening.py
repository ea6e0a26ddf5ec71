"""The tightest thresholds that a candidate satisfies: what a contract could ask for, read off its own traces."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from toggle_runtime.formula import with_predicates
from toggle_runtime.records import ModeSpecification
from toggle_runtime.signals import Trace
from toggle_runtime.stl import Formula, Predicate, parse
from toggle_runtime.verdicts import per_probe_robustness, required_probes

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")

DIGITS = 4
"""Decimals of a threshold that people are to read; rounded to the weaker side."""


@dataclass(frozen=True, slots=True)
class Tightened:
    """One property with the tightest threshold, as a profile has it: `threshold` in the formula's text stands for
    the number. None where the formula has not exactly one comparison, and `reason` says so."""

    formula: str
    threshold: float | None
    reason: str | None = None


def tightened(
    specification: ModeSpecification, relax: float, traces: Sequence[Trace]
) -> dict[str, Tightened]:
    """By property, the tightest threshold with which `specification` would still hold at its coverage.

    Robustness moves with the threshold of a formula's only comparison, one to one; so the least robustness over
    the probes that count is the room. Those are the best `coverage` share by joint robustness, the same ones for
    every property, so that all thresholds hold together. `relax` is the mode's: what is returned is the
    threshold before it is weakened. Raises ValueError when a probe cannot be judged.
    """
    rows = {name: per_probe_robustness(text, traces) for name, text in specification.properties.items()}
    joint = np.min(np.stack(list(rows.values())), axis=0)
    if not len(joint) or not np.isfinite(joint).all():
        raise ValueError("a probe could not be judged, so no threshold can be read off")
    required = required_probes(specification.coverage, len(joint))
    counted = np.argsort(-joint, kind="stable")[:required]
    return {
        name: _tightened(text, float(rows[name][counted].min()), relax)
        for name, text in specification.properties.items()
    }


def _tightened(text: str, room: float, relax: float) -> Tightened:
    found: list[tuple[Predicate, bool]] = []

    def note(predicate: Predicate, positive: bool) -> Predicate:
        found.append((predicate, positive))
        return predicate

    formula: Formula = with_predicates(parse(text), note)
    if len(found) != 1:
        return Tightened(
            text, None, f"the formula has {len(found)} comparisons, and one room for all of them"
        )
    predicate, positive = found[0]
    from_above = predicate.is_upper == positive
    moved = predicate.threshold - room if from_above else predicate.threshold + room
    # The mode weakens what the profile says by a share of it: undo that.
    unrelaxed = moved / (1.0 + relax if (moved > 0) == from_above else 1.0 - relax)
    step = 10.0**DIGITS
    rounded = math.ceil(unrelaxed * step - 1e-9) if from_above else math.floor(unrelaxed * step + 1e-9)
    shown = str(formula).replace(repr(predicate.threshold), "threshold")
    return Tightened(shown, rounded / step)


def as_profile(properties: Mapping[str, Tightened]) -> str:
    """The properties as a piece of a profile, ready to paste."""
    lines = []
    for name, each in properties.items():
        lines.append(f"[properties.{name if _BARE_KEY.fullmatch(name) else json.dumps(name)}]")
        lines.append(f'formula = "{each.formula}"')
        lines.append(f"# {each.reason}" if each.threshold is None else f"threshold = {each.threshold!r}")
        lines.append("")
    return "\n".join(lines)
