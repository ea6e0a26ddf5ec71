"""The space of configs: one level per dimension, 0 the cheapest choice. Pure numpy.

A config is also a vector of levels and, for a surrogate, a vector in [0, 1] (`Dimension.coordinates`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from toggle_edge.config import Config, Format
from toggle_edge.errors import SearchError
from toggle_edge.search.dimensions import (
    CHANNELS,
    FORMAT,
    KEPT,
    KV_GROUPS,
    SPARSITY,
    STRUCTURAL,
    Choice,
    Dimension,
    storage_bits,
    unit_dimensions,
)
from toggle_edge.structure import Structure

__all__ = ["Levels", "Space", "storage_bits"]

Levels = tuple[int, ...]


COUNTED = 1 << 14
"""Up to so many vectors of levels, spellings of one config are told apart to count configs."""


@dataclass(frozen=True)
class Space:
    """The dimensions, and the known cost of any config (any unit, minimised).

    `layers` is the order in which a config lists its layers; each belongs to one FORMAT dimension. Raises SearchError
    where that is not so, and on two dimensions of one name.
    """

    layers: tuple[str, ...]
    dimensions: tuple[Dimension, ...]
    proxy_flops: Callable[[Config], float]

    def __post_init__(self) -> None:
        covered = [layer for each in self.dimensions if each.kind == FORMAT for layer in each.layers]
        if not self.layers or len(set(self.layers)) != len(self.layers):
            raise SearchError(f"space: expected one or more distinct layers, got {self.layers!r}")
        if sorted(covered) != sorted(self.layers):
            odd = sorted(set(covered) ^ set(self.layers)) or sorted(
                layer for layer in set(covered) if covered.count(layer) > 1
            )
            raise SearchError(f"space: expected every layer in one format dimension, not so for {odd[:3]}")
        names = [each.name for each in self.dimensions]
        if len(set(names)) != len(names):
            raise SearchError(f"space: expected distinct dimensions, got {names}")
        for each in self.dimensions:
            if odd := sorted(set(each.layers) - set(self.layers)):
                raise SearchError(f"space: {each.name}: there is no layer {odd[0]!r}")

    @classmethod
    def of_units(
        cls,
        units: Mapping[str, Sequence[str]],
        menu: Sequence[Format],
        proxy_flops: Callable[[Config], float],
    ) -> Space:
        """Formats only: every unit of layers gets one format of the menu. Raises as the class does."""
        layers = tuple(layer for names in units.values() for layer in names)
        return cls(layers, unit_dimensions(units, menu), proxy_flops)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        return tuple(len(each) for each in self.dimensions)

    @cached_property
    def size(self) -> int:
        """How many configs there are. Of a larger space with structure it counts vectors of levels, which are more:
        no search comes to the end of those."""
        vectors = math.prod(self.sizes)
        if self._formats_only or vectors > COUNTED:
            return vectors
        return len({self.canonical(levels) for levels in itertools.product(*map(range, self.sizes))})

    @property
    def safest(self) -> Levels:
        """Every dimension at its last choice: the dearest config."""
        return tuple(size - 1 for size in self.sizes)

    def decode(self, levels: Sequence[int]) -> Config:
        """The config with these levels, one per dimension; SearchError if they do not fit.

        What is chosen for a block that is left out has no effect.
        """
        if len(levels) != len(self.dimensions) or not all(
            0 <= level < size for level, size in zip(levels, self.sizes, strict=True)
        ):
            raise SearchError(f"space: expected a level for each of {self.sizes}, got {tuple(levels)!r}")
        if self._formats_only:
            # Nothing interacts, and a search decodes thousands of these.
            return Config(
                tuple(
                    (layer, menu[levels[owner]])
                    for layer, (owner, menu) in zip(self.layers, self._menus, strict=True)
                )
            )
        chosen = [
            (each, each.choices[int(level)]) for each, level in zip(self.dimensions, levels, strict=True)
        ]
        left_out = [each for each, choice in chosen if each.kind == KEPT and choice == 0]
        gone = {layer for each in left_out for layer in each.layers}
        blocks = {each.block for each in left_out}
        formats: dict[str, Format] = {}
        sparsities: dict[str, float] = {}
        kept: dict[str, list[tuple[int, int]]] = {KV_GROUPS: [], CHANNELS: []}
        for each, choice in chosen:
            if isinstance(choice, Format):
                formats |= dict.fromkeys(each.layers, choice)
            elif each.kind == SPARSITY:
                sparsities |= dict.fromkeys(each.layers, float(choice))
            elif each.kind in kept and each.block not in blocks and choice != each.choices[-1]:
                kept[each.kind].append((each.block or 0, int(choice)))
        layers = [layer for layer in self.layers if layer not in gone]
        return Config.of(
            {layer: formats[layer] for layer in layers},
            {layer: sparsities[layer] for layer in layers if layer in sparsities},
            Structure(
                tuple(sorted(block for block in blocks if block is not None)),
                tuple(sorted(kept[KV_GROUPS])),
                tuple(sorted(kept[CHANNELS])),
            ),
        )

    def levels(self, config: Config) -> Levels:
        """Levels of a config; those of a block that is left out are the safest. SearchError if it lies outside."""
        formats, sparsities = dict(config.formats), dict(config.sparsities)
        structure = config.structure
        gone = set(self.layers) - set(formats) if structure.removed_blocks else set[str]()
        counts = {KV_GROUPS: dict(structure.kv_groups), CHANNELS: dict(structure.channels)}

        def chosen(each: Dimension) -> Choice:
            if each.kind == KEPT:
                return int(each.block not in structure.removed_blocks)
            if each.kind in STRUCTURAL:
                return counts[each.kind].get(each.block or 0, each.choices[-1])
            if gone and gone.issuperset(each.layers):
                return each.choices[-1]
            layer = next((layer for layer in each.layers if layer in formats), None)
            if layer is None:
                raise SearchError(
                    f"space: the config's layers are not the space's; it lacks {each.layers[0]!r}"
                )
            return formats[layer] if each.kind == FORMAT else sparsities.get(layer, 0.0)

        found = tuple(_level(each, chosen(each)) for each in self.dimensions)
        if self.decode(found) != config and self.decode(found).digest != config.digest:
            raise SearchError(
                f"space: {config.summary()}: not a config of this space; its layers, sparsities or structure differ"
            )
        return found

    def canonical(self, levels: Levels) -> Levels:
        """The levels that the config of these has: what is chosen for a block that is left out becomes the safest."""
        if self._formats_only:
            return levels
        return tuple(
            size - 1 if removals and all(levels[index] == 0 for index in removals) else level
            for level, size, removals in zip(levels, self.sizes, self._removals, strict=True)
        )

    @cached_property
    def _removals(self) -> tuple[tuple[int, ...], ...]:
        """By dimension the KEPT ones that together leave out all that it is about; empty where none could."""
        of_layer, of_block = dict[str, int](), dict[int | None, int]()
        for index, each in enumerate(self.dimensions):
            if each.kind == KEPT:
                of_layer |= dict.fromkeys(each.layers, index)
                of_block[each.block] = index
        found: list[tuple[int, ...]] = []
        for each in self.dimensions:
            if each.kind in (KV_GROUPS, CHANNELS):
                found.append((of_block[each.block],) if each.block in of_block else ())
            elif each.kind != KEPT and all(layer in of_layer for layer in each.layers):
                found.append(tuple({of_layer[layer] for layer in each.layers}))
            else:
                found.append(())
        return tuple(found)

    @cached_property
    def _formats_only(self) -> bool:
        return all(each.kind == FORMAT for each in self.dimensions)

    @cached_property
    def _menus(self) -> tuple[tuple[int, tuple[Format, ...]], ...]:
        """By layer the dimension that it belongs to, and that one's formats."""
        owners = {
            layer: (index, tuple(choice for choice in each.choices if isinstance(choice, Format)))
            for index, each in enumerate(self.dimensions)
            if each.kind == FORMAT
            for layer in each.layers
        }
        return tuple(owners[layer] for layer in self.layers)

    @cached_property
    def _coordinates(self) -> tuple[NDArray[np.float64], ...]:
        return tuple(np.array(each.coordinates) for each in self.dimensions)

    def encode(self, rows: Sequence[Levels]) -> NDArray[np.float64]:
        """Vectors in [0, 1], one row per vector of levels, one column per dimension."""
        columns = np.array(rows, dtype=np.int64).reshape(len(rows), len(self.dimensions)).T
        return np.stack([places[c] for places, c in zip(self._coordinates, columns, strict=True)], axis=1)

    def uniforms(self) -> Iterator[Config]:
        """The same format everywhere and all else whole, by ascending storage bits: formats on every unit's menu."""
        menus = [each.choices for each in self.dimensions if each.kind == FORMAT]
        for choice in menus[0]:
            if all(choice in menu for menu in menus):
                yield self.decode(
                    [
                        each.choices.index(choice) if each.kind == FORMAT else len(each) - 1
                        for each in self.dimensions
                    ]
                )

    def random(self, generator: np.random.Generator) -> Config:
        """A random config whose mix of levels is itself random.

        Independent uniform levels would give many-layered models nearly one cost; a flat Dirichlet over the
        mix spreads the costs over their whole range.
        """
        mixes = {size: generator.dirichlet(np.ones(size)) for size in sorted(set(self.sizes))}
        return self.decode([int(generator.choice(size, p=mixes[size])) for size in self.sizes])

    def enumerate(self) -> Iterator[Config]:
        """Every vector of levels once, lazily, in lexicographic order."""
        return (self.decode(levels) for levels in itertools.product(*(range(size) for size in self.sizes)))


def _level(each: Dimension, choice: Choice) -> int:
    try:
        return each.choices.index(choice)
    except ValueError as exc:
        menu = ", ".join(map(str, each.choices))
        raise SearchError(f"space: {each.name}: {choice} is not on its menu: {menu}") from exc
