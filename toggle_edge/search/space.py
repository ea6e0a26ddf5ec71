"""The space of configs: every layer gets one format of an ordered menu. Pure numpy.

A config is also a vector of levels (one menu index per layer, 0 the fewest bits) and, for the surrogate, a
vector in [0, 1] whose distances follow the quantisation step.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toggle_edge.config import SCALE_BITS, Config, Format
from toggle_edge.errors import SearchError

Levels = tuple[int, ...]


def storage_bits(fmt: Format) -> float:
    """Bits per weight with the group's scale and zero-point spread over the group, before padding.

    A row's scale and zero-point count as nothing.
    """
    zero_point = fmt.bits if fmt.asymmetric else 0
    return fmt.bits + ((SCALE_BITS + zero_point) / fmt.group if fmt.group > 0 else 0.0)


@dataclass(frozen=True)
class Space:
    """Layers, the menu by ascending storage bits, and the known cost of any config (any unit, minimised).

    Raises SearchError on no layers, an empty menu, duplicates or a menu out of order.
    """

    layers: tuple[str, ...]
    menu: tuple[Format, ...]
    proxy_flops: Callable[[Config], float]

    def __post_init__(self) -> None:
        if not self.layers or len(set(self.layers)) != len(self.layers):
            raise SearchError(f"space: expected one or more distinct layers, got {self.layers!r}")
        bits = [storage_bits(fmt) for fmt in self.menu]
        if not bits or any(after <= before for before, after in itertools.pairwise(bits)):
            raise SearchError(
                "space: expected a menu of distinct formats by ascending storage bits, "
                f"got {[str(fmt) for fmt in self.menu]}; sort it by storage_bits"
            )

    @property
    def size(self) -> int:
        """How many configs there are."""
        count: int = len(self.menu) ** len(self.layers)
        return count

    @property
    def coordinates(self) -> NDArray[np.float64]:
        """Where each menu level lies in [0, 1]: `1 - 2**-storage_bits`, scaled to the menu's range.

        A bit halves the quantisation step, so equal distances are roughly equal changes of the weights: from
        2 to 4 bits far, from 8 to 16 near. That suits models to which 8 bits do next to nothing; where harm
        is linear in bits, bits themselves would serve the surrogate better.
        """
        step = 2.0 ** -np.array([storage_bits(fmt) for fmt in self.menu])
        scaled: NDArray[np.float64] = (step[0] - step) / ((step[0] - step[-1]) or 1.0)
        return scaled

    def decode(self, levels: Sequence[int]) -> Config:
        """The config with these menu indices, one per layer in order; SearchError if they do not fit."""
        if len(levels) != len(self.layers) or not all(0 <= level < len(self.menu) for level in levels):
            raise SearchError(
                f"space: expected {len(self.layers)} levels in 0..{len(self.menu) - 1}, got {tuple(levels)!r}"
            )
        return Config(
            tuple((layer, self.menu[level]) for layer, level in zip(self.layers, levels, strict=True))
        )

    def levels(self, config: Config) -> Levels:
        """Menu indices of a config. Raises SearchError if it has other layers or a format off the menu."""
        formats = dict(config)
        if set(formats) != set(self.layers):
            odd = sorted(set(formats) ^ set(self.layers))
            raise SearchError(f"space: the config's layers are not the space's; they differ in {odd[:5]}")
        try:
            return tuple(self.menu.index(formats[layer]) for layer in self.layers)
        except ValueError as exc:
            raise SearchError(f"space: {config.summary()}: a format is not on the menu {self.menu}") from exc

    def encode(self, configs: Sequence[Config]) -> NDArray[np.float64]:
        """Vectors in [0, 1], one row per config, one column per layer."""
        rows = np.array([self.levels(config) for config in configs], dtype=np.int64)
        return self.coordinates[rows.reshape(len(configs), len(self.layers))]

    def nearest(self, vector: NDArray[np.float64]) -> Config:
        """The config whose encoding lies closest: the inverse of `encode` on its image."""
        return self.decode([int(np.abs(self.coordinates - value).argmin()) for value in vector])

    def uniforms(self) -> Iterator[Config]:
        """The same format everywhere, by ascending storage bits."""
        return (Config.uniform(self.layers, fmt) for fmt in self.menu)

    def neighbours(self, config: Config) -> Iterator[Config]:
        """All configs in which one layer lies one level lower or higher."""
        levels = self.levels(config)
        for position, level in enumerate(levels):
            for moved in (level - 1, level + 1):
                if 0 <= moved < len(self.menu):
                    yield self.decode((*levels[:position], moved, *levels[position + 1 :]))

    def random(self, generator: np.random.Generator) -> Config:
        """A random config whose mix of formats is itself random.

        Independent uniform levels would give many-layered models nearly one cost; a flat Dirichlet over the
        mix spreads the costs over their whole range.
        """
        mix = generator.dirichlet(np.ones(len(self.menu)))
        return self.decode(
            [int(level) for level in generator.choice(len(self.menu), len(self.layers), p=mix)]
        )

    def enumerate(self) -> Iterator[Config]:
        """Every config once, lazily, in lexicographic order of levels."""
        return (
            self.decode(levels)
            for levels in itertools.product(range(len(self.menu)), repeat=len(self.layers))
        )
