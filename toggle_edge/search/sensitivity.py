"""What one choice alone does: the evidence that a search starts with, cheaply measured.

One dimension at a time goes to one choice while all else stays untouched, on few probes. Where that is more than the
contract could bear in any mode, the law between shortfall and harm has long bent, and the next choice up is measured
too. The rest follows from the quantisation step: a bit less is four times the error's power.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toggle_edge.config import Config, Format
from toggle_edge.errors import SearchError
from toggle_edge.search.dimensions import FORMAT, Dimension, storage_bits
from toggle_edge.search.outcomes import AVGPP, Scale, scales, values_of
from toggle_edge.search.space import Space
from toggle_edge.search.trial import Observation

OWN_WEIGHT = 0.75
"""How far an outcome's own measurement is believed beside AvgPP's, which is of all steps and far less noisy."""

NO_HARM = -14.0
"""Log harm of a choice that takes nothing away."""

SEPARATOR = "|"

Sample = Callable[[Config], Observation]


@dataclass(frozen=True)
class Sensitivities:
    """Outcomes of the untouched model, and with one dimension at one choice: `single[dimension name][choice text]`."""

    untouched: Mapping[str, float]
    single: Mapping[str, Mapping[str, Mapping[str, float]]]

    def to_flat(self) -> dict[str, float]:
        """One number per key, as a store keeps them."""
        flat = {f"{SEPARATOR}{SEPARATOR}{key}": value for key, value in self.untouched.items()}
        for name, choices in self.single.items():
            for choice, outcomes in choices.items():
                flat |= {SEPARATOR.join((name, choice, key)): value for key, value in outcomes.items()}
        return flat

    @classmethod
    def from_flat(cls, flat: Mapping[str, float]) -> Sensitivities:
        """The inverse of `to_flat`. Raises SearchError on a key or number that it would not write."""
        untouched: dict[str, float] = {}
        single: dict[str, dict[str, dict[str, float]]] = {}
        for text, value in flat.items():
            parts = text.split(SEPARATOR, 2)
            if len(parts) != 3 or not math.isfinite(value):
                raise SearchError(
                    f"sensitivities: expected dimension|choice|outcome and a finite number, got {text!r}: {value!r}; "
                    "start a new study"
                )
            name, choice, key = parts
            if name:
                single.setdefault(name, {}).setdefault(choice, {})[key] = value
            else:
                untouched[key] = value
        return cls(untouched, single)


def measure(
    space: Space, sample: Sample, untouched: Config, on_sample: Callable[[int, int], None] | None = None
) -> Sensitivities:
    """Measure every dimension. `sample` evaluates a config on few probes, the same ones each time.

    `untouched` is the baseline's config, or another that harms nothing. `on_sample` hears how many dimensions are done,
    of how many. What could not be judged is left out, and then its dimension's harm is guessed by its choices alone.
    """
    ceiling = sample(untouched)
    formats, single = dict(untouched.formats), {}
    for index, each in enumerate(space.dimensions):
        measured: dict[str, dict[str, float]] = {}
        for level in range(min(2, len(each) - 1)):
            found = sample(_with_choice(space, untouched, formats, index, level))
            measured[str(each.choices[level])] = _known(found)
            if not _broken(found):
                break
        single[each.name] = measured
        if on_sample is not None:
            on_sample(index + 1, len(space.dimensions))
    return Sensitivities(_known(ceiling), single)


def _with_choice(
    space: Space, untouched: Config, formats: Mapping[str, Format], index: int, level: int
) -> Config:
    """The untouched config with one dimension at one level; the baseline's formats may lie off the menu."""
    each, safest = space.dimensions[index], list(space.safest)
    if each.kind == FORMAT:
        choice = each.choices[level]
        own = {layer: choice for layer in each.layers if isinstance(choice, Format)}
        return Config.of({**formats, **own}, dict(untouched.sparsities), untouched.structure)
    safest[index] = level
    moved = space.decode(safest)
    return Config.of(
        {layer: formats[layer] for layer in moved.layers}, dict(moved.sparsities), moved.structure
    )


def _known(observation: Observation) -> dict[str, float]:
    return {key: value for key, value in values_of(observation).items() if value is not None}


def _broken(observation: Observation) -> bool:
    return all(value is None or value < 0 for value in observation.robustness.values())


def expected_harm(space: Space, sensitivities: Sensitivities | None) -> dict[str, NDArray[np.float64]]:
    """By outcome, the log harm of each choice: dimensions x choices; "" holds what is expected of any other outcome.

    Choices that a dimension does not have count as harmless.
    """
    guess = _guessed(space)
    if sensitivities is None:
        return {"": guess}
    limits = scales([], sensitivities.untouched)
    rows = {key: _row(space, sensitivities, key, scale, guess) for key, scale in limits.items()}
    shared = rows[AVGPP]
    harms = {"": _tabled(space, shared, guess), AVGPP: _tabled(space, shared, guess)}
    for key, row in rows.items():
        if key == AVGPP:
            continue
        # Both say which dimensions are delicate, on scales of their own: the offset between them is the outcome's.
        both = ~np.isnan(row) & ~np.isnan(shared)
        gap = float(np.mean(row[both] - shared[both])) if both.any() else 0.0
        mixed = OWN_WEIGHT * row + (1.0 - OWN_WEIGHT) * (shared + gap)
        harms[key] = _tabled(space, np.where(np.isnan(mixed), shared + gap, mixed), guess)
    return harms


def _row(
    space: Space, sensitivities: Sensitivities, key: str, scale: Scale, guess: NDArray[np.float64]
) -> NDArray[np.float64]:
    """By dimension, the log shortfall where it was measured, less what the choices alone would let expect."""
    row = np.full(len(space.dimensions), np.nan)
    for index, each in enumerate(space.dimensions):
        texts = [str(choice) for choice in each.choices]
        for choice, outcomes in sensitivities.single.get(each.name, {}).items():
            if key in outcomes and choice in texts:
                # The last one measured is the mildest: the others were beyond where harms add up.
                row[index] = scale.log_shortfall(outcomes[key]) - guess[index, texts.index(choice)]
    return row


def _tabled(space: Space, row: NDArray[np.float64], guess: NDArray[np.float64]) -> NDArray[np.float64]:
    known = row[~np.isnan(row)]
    # What could not be judged is taken to be as delicate as the most delicate one: it is lowered last.
    filled = np.where(np.isnan(row), known.max() if len(known) else 0.0, row)
    return np.maximum(guess + filled[:, np.newaxis], NO_HARM)


def _guessed(space: Space) -> NDArray[np.float64]:
    table = np.full((len(space.dimensions), max(space.sizes)), NO_HARM)
    for index, each in enumerate(space.dimensions):
        table[index, : len(each)] = [_log_power(each, level) for level in range(len(each))]
    return table


def _log_power(each: Dimension, level: int) -> float:
    """Log of the error's power, relative to the dimension's cheapest choice."""
    choice, first = each.choices[level], each.choices[0]
    if isinstance(choice, Format) and isinstance(first, Format):
        return math.log(4.0) * (storage_bits(first) - storage_bits(choice))
    lost = _taken(each, level)
    return NO_HARM if lost[0] <= 0.0 else 2.0 * math.log(lost[0] / lost[1])


def _taken(each: Dimension, level: int) -> tuple[float, float]:
    """What a choice takes away, and what the cheapest one does."""
    most = each.order(each.choices[-1])
    return most - each.order(each.choices[level]), most - each.order(each.choices[0])
