"""Early falsification: a candidate is refuted as soon as no mode can be satisfied, whatever its other probes say.

The least robustness over probes can only fall while more of them are read, and a mode tolerates a known number of
probes that violate it. So probes that refuted most candidates are read first, and a bad candidate costs a few of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from toggle_runtime.records import UNSET, VIOLATED, Coverage, ModeSpecification, ModeVerdict, Verdict
from toggle_runtime.signals import Trace
from toggle_runtime.verdicts import per_probe_robustness, required_probes

FIRST_PROBES = 8
"""Probes that are read before the first look, more where every mode tolerates as many. A candidate that is far off
violates nearly all of them."""


@dataclass(frozen=True)
class Seen:
    """Robustness of every formula on the probes read so far, by the formula's text, in the order of reading; NaN is
    unset. `probes` is how many there are in all."""

    probes: int
    rows: Mapping[str, NDArray[np.float64]]

    @property
    def read(self) -> int:
        return len(next(iter(self.rows.values()), ()))


def nothing_seen(specification: Mapping[str, ModeSpecification], probes: int) -> Seen:
    texts = {text for mode in specification.values() for text in mode.properties.values()}
    return Seen(probes, {text: np.empty(0) for text in sorted(texts)})


def with_traces(seen: Seen, traces: Sequence[Trace]) -> Seen:
    """What is known after these were read as well. Raises FormulaError when a formula cannot be read."""
    return Seen(
        seen.probes,
        {text: np.concatenate([row, per_probe_robustness(text, traces)]) for text, row in seen.rows.items()},
    )


def reading_order(violations: Sequence[int]) -> list[int]:
    """Probes by how many candidates violated a mode on them, most first; equal ones in their own order."""
    return sorted(range(len(violations)), key=lambda probe: (-violations[probe], probe))


def portions(specification: Mapping[str, ModeSpecification], order: Sequence[int]) -> list[Sequence[int]]:
    """The order cut where a look is worth it: a first look that can refute every mode, then twice as many each time."""
    tolerated = [_tolerated(mode, len(order)) for mode in specification.values()]
    size = max(FIRST_PROBES, max(tolerated, default=0) + 1)
    cut, start = [], 0
    while start < len(order):
        cut.append(order[start : start + size])
        start += size
        size = max(size, start)
    return cut


def violated(seen: Seen, mode: ModeSpecification) -> NDArray[np.bool_]:
    """For each probe read, whether it violates the mode; what is unset does."""
    joint = np.min([seen.rows[text] for text in mode.properties.values()], axis=0)
    found: NDArray[np.bool_] = ~(joint >= 0)
    return found


def upper_bounds(seen: Seen, mode: ModeSpecification) -> dict[str, float]:
    """By property, the most that its robustness at the mode's coverage can be; one that is still open is left out."""
    tolerated = _tolerated(mode, seen.probes)
    rows = {name: np.sort(seen.rows[text]) for name, text in mode.properties.items()}
    return {
        name: float(row[tolerated])
        for name, row in rows.items()
        if len(row) > tolerated and not np.isnan(row).any()
    }


def refutation(
    specification: Mapping[str, ModeSpecification], seen: Seen, avgpp: float | None
) -> dict[str, ModeVerdict] | None:
    """The verdicts of all modes where none can be satisfied any more, else None.

    A robustness in them is an upper bound of what all probes would give, a coverage's `satisfied` the most that could
    be. A property that is still open is UNSET, and so is a mode whose robustness is NaN somewhere.
    """
    verdicts = {}
    for name, mode in specification.items():
        verdict = _refuted(name, mode, seen, avgpp)
        if verdict is None:
            return None
        verdicts[name] = verdict
    return verdicts


def _refuted(name: str, mode: ModeSpecification, seen: Seen, avgpp: float | None) -> ModeVerdict | None:
    rows = np.stack([seen.rows[text] for text in mode.properties.values()])
    tolerated = _tolerated(mode, seen.probes)
    fails = int(violated(seen, mode).sum())
    coverage = Coverage(seen.probes - fails, seen.probes, seen.probes - tolerated)
    stopped = f"stopped after {seen.read} of {seen.probes} probes"
    if np.isnan(rows).any():
        unset = [key for key, row in zip(mode.properties, rows, strict=True) if np.isnan(row).any()]
        reason = f"{unset[0]} has no value on one of the probes read; {stopped}"
        verdicts = [
            Verdict(key, UNSET, reason=reason if key in unset else stopped) for key in mode.properties
        ]
        return ModeVerdict(name, UNSET, None, coverage, avgpp, verdicts, reason)
    if fails <= tolerated:
        return None
    bounds = upper_bounds(seen, mode)
    verdicts = [
        Verdict(key, VIOLATED, bounds[key]) if bounds[key] < 0 else Verdict(key, UNSET, reason=stopped)
        for key in mode.properties
    ]
    least = float(np.sort(rows.min(axis=0))[tolerated])
    reason = f"{stopped}: {fails} violate it, {tolerated} may"
    return ModeVerdict(name, VIOLATED, least, coverage, avgpp, verdicts, reason)


def _tolerated(mode: ModeSpecification, probes: int) -> int:
    return probes - required_probes(mode.coverage, probes)
