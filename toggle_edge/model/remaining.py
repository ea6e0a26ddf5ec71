"""What remains of a model's layers once structure is removed: names and sizes. Pure, no torch.

Layers keep the names that they have in the baseline, so that a config says the same before and after a block goes.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

from toggle_edge.errors import ConfigError
from toggle_edge.model.layers import Layer
from toggle_edge.structure import Structure

GROUP_ROWS, GROUP_COLUMNS = ("q", "k", "v", "qkv"), ("o",)
CHANNEL_ROWS, CHANNEL_COLUMNS = ("gate", "up"), ("down",)
"""Roles of which a removed kv group or channel takes rows (outputs) or columns (inputs)."""

PARTS = {"qkv": 3}
"""Roles whose rows are several matrices one after the other; each has all kv groups."""

_BLOCK = re.compile(r"^(.*?\.)(\d+)(?=\.)")


@dataclass(frozen=True, slots=True)
class Unlayered:
    """Parameters that no layer covers: `outside` of blocks; and in each block those that are always there, those of
    each kv group and those of each channel (biases)."""

    outside: int
    blocks: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Anatomy:
    """How a model is built as far as structure can be removed: its layers, kv groups of every block, and what no layer
    covers."""

    layers: tuple[Layer, ...]
    kv_groups: int
    unlayered: Unlayered

    @property
    def blocks(self) -> int:
        return len(self.unlayered.blocks)

    def channels(self, block: int) -> int:
        """Inner channels of a block's MLP."""
        return self._channels[block]

    @cached_property
    def _channels(self) -> dict[int | None, int]:
        # The first of a block's, should it have several MLPs.
        columns = [layer for layer in self.layers if layer.role in CHANNEL_COLUMNS]
        return {block_of(layer.name): layer.columns for layer in reversed(columns)}

    def kept_groups(self, block: int, structure: Structure) -> int:
        return dict(structure.kv_groups).get(block, self.kv_groups)

    def kept_channels(self, block: int, structure: Structure) -> int:
        return dict(structure.channels).get(block, self.channels(block))


def block_of(name: str) -> int | None:
    """The number of the block that a layer or parameter is in, None outside of blocks."""
    match = _BLOCK.match(name)
    return None if match is None else int(match[2])


def blocks_of(layers: Sequence[Layer]) -> tuple[int, ...]:
    return tuple(sorted({number for layer in layers if (number := block_of(layer.name)) is not None}))


def list_of_blocks(layers: Sequence[Layer]) -> str:
    """The name of the module that lists the blocks, such as `model.layers`."""
    return next(match[1][:-1] for layer in layers if (match := _BLOCK.match(layer.name)))


def renumbered(name: str, remaining: Sequence[int]) -> str:
    """A layer's name in the module in which only these blocks remain."""
    block = block_of(name)
    return name if block is None else _BLOCK.sub(rf"\g<1>{remaining.index(block)}", name, count=1)


def require_fits(anatomy: Anatomy, structure: Structure) -> None:
    """Raises ConfigError where a structure names a block that is not there, keeps more than there is, or no block."""
    last = anatomy.blocks - 1
    named = (*structure.removed_blocks, *(block for block, _ in (*structure.kv_groups, *structure.channels)))
    for block in named:
        if block > last:
            raise ConfigError(
                f"structure: block {block}: the model has blocks 0 to {last}; name one of these, or check that the "
                "config is this model's"
            )
    if len(structure.removed_blocks) == anatomy.blocks:
        raise ConfigError(f"structure: all {anatomy.blocks} blocks are removed; keep at least one")
    for what, pairs in (("kv groups", structure.kv_groups), ("channels", structure.channels)):
        for block, count in pairs:
            there = anatomy.kv_groups if what == "kv groups" else anatomy.channels(block)
            if count > there:
                raise ConfigError(
                    f"structure: block {block}: expected to keep 1 to {there} {what}, all that it has, got {count}; "
                    "lower the count, or leave the block out to keep all"
                )


def cut_of(layer: Layer, anatomy: Anatomy, structure: Structure) -> int:
    """How many kv groups, or channels, of its block a layer keeps; 0 where it stays whole."""
    block = block_of(layer.name)
    if block is None or not structure:
        return 0
    if layer.role in (*GROUP_ROWS, *GROUP_COLUMNS):
        kept = anatomy.kept_groups(block, structure)
        return kept if kept < anatomy.kv_groups else 0
    if layer.role in (*CHANNEL_ROWS, *CHANNEL_COLUMNS):
        kept = anatomy.kept_channels(block, structure)
        return kept if kept < anatomy.channels(block) else 0
    return 0


def remaining_layers(anatomy: Anatomy, structure: Structure) -> tuple[Layer, ...]:
    """The layers that remain, in order, at the sizes that they have then. Raises ConfigError as `require_fits` does."""
    require_fits(anatomy, structure)
    removed = set(structure.removed_blocks)
    return tuple(
        _narrowed(layer, anatomy, cut_of(layer, anatomy, structure))
        for layer in anatomy.layers
        if block_of(layer.name) not in removed
    )


def remaining_parameters(anatomy: Anatomy, structure: Structure) -> int:
    """Parameters that remain and that no layer covers."""
    require_fits(anatomy, structure)
    total = anatomy.unlayered.outside
    for block, (always, by_group, by_channel) in enumerate(anatomy.unlayered.blocks):
        if block not in structure.removed_blocks:
            groups = anatomy.kept_groups(block, structure)
            channels = anatomy.kept_channels(block, structure) if by_channel else 0
            total += always + groups * by_group + channels * by_channel
    return total


def positions(kept: Collection[int], total: int, units: int, parts: int = 1) -> list[int]:
    """Of `total` rows (or columns), which belong to the `kept` of `units` units, each unit's lying together.

    `parts` > 1: so many matrices of all units, one after the other.
    """
    size, part = total // (units * parts), total // parts
    return [
        start + unit * size + offset
        for start in range(0, total, part)
        for unit in sorted(kept)
        for offset in range(size)
    ]


def _narrowed(layer: Layer, anatomy: Anatomy, kept: int) -> Layer:
    if not kept:
        return layer
    if layer.role in GROUP_ROWS:
        return dataclasses.replace(layer, rows=layer.rows // anatomy.kv_groups * kept)
    if layer.role in GROUP_COLUMNS:
        return dataclasses.replace(layer, columns=layer.columns // anatomy.kv_groups * kept)
    if layer.role in CHANNEL_ROWS:
        return dataclasses.replace(layer, rows=kept)
    return dataclasses.replace(layer, columns=kept)
