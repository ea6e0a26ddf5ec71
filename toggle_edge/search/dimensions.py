"""What a search may vary: one ordered choice each, from the cheapest to the safest. Pure data.

A unit is layers that read the same input and so move together. Its format is one dimension, its sparsity another; what
is kept of a block's structure is a third kind.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from toggle_edge.config import SCALE_BITS, Format
from toggle_edge.errors import ConfigError, SearchError

FORMAT, SPARSITY = "format", "sparsity"
KEPT, KV_GROUPS, CHANNELS = "kept", "kv_groups", "channels"
KINDS = (FORMAT, SPARSITY, KEPT, KV_GROUPS, CHANNELS)
STRUCTURAL = (KEPT, KV_GROUPS, CHANNELS)

Choice = Format | float | int


def storage_bits(fmt: Format) -> float:
    """Bits per weight with the group's scale and zero-point spread over the group, before padding.

    A row's scale and zero-point count as nothing.
    """
    zero_point = fmt.bits if fmt.asymmetric else 0
    return fmt.bits + ((SCALE_BITS + zero_point) / fmt.group if fmt.group > 0 else 0.0)


@dataclass(frozen=True, slots=True)
class Dimension:
    """One ordered choice. `choices` go from the cheapest to the safest; the last one takes nothing away.

    - FORMAT: the format of `layers`, by ascending storage bits;
    - SPARSITY: the share of zeros in `layers`, from the largest down to 0.0;
    - KEPT: whether `block` is left out (0) or kept (1), `layers` being all of its;
    - KV_GROUPS, CHANNELS: how many of its own `block` keeps, up to all of them.

    Raises SearchError on an empty menu, choices out of order, or a last choice that takes something away.
    """

    name: str
    kind: str
    choices: tuple[Choice, ...]
    layers: tuple[str, ...] = ()
    block: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise SearchError(
                f"space: {self.name}: expected a kind among {', '.join(KINDS)}, got {self.kind!r}"
            )
        if not self.choices:
            raise SearchError(
                f"space: {self.name}: its menu is empty; the target's formats and the profile's bounds have nothing "
                "in common: widen search.formats"
            )
        order = [self.order(choice) for choice in self.choices]
        if any(after <= before for before, after in itertools.pairwise(order)):
            raise SearchError(
                f"space: {self.name}: expected distinct choices from the cheapest to the safest (a menu by ascending "
                f"storage bits), got {[str(choice) for choice in self.choices]}"
            )
        if self.kind == SPARSITY and order[-1] != 0.0:
            raise SearchError(
                f"space: {self.name}: expected 0.0 as the least sparsity, got {self.choices[-1]}"
            )
        if self.kind == KEPT and self.choices != (0, 1):
            raise SearchError(f"space: {self.name}: expected the choices 0 and 1, got {self.choices}")
        if self.kind in STRUCTURAL and self.block is None:
            raise SearchError(f"space: {self.name}: a {self.kind} dimension needs its block")
        if self.kind in (FORMAT, SPARSITY) and not self.layers:
            raise SearchError(f"space: {self.name}: a {self.kind} dimension needs its layers")

    def __len__(self) -> int:
        return len(self.choices)

    def order(self, choice: Choice) -> float:
        """A number that grows from the cheapest choice to the safest."""
        if isinstance(choice, Format):
            return storage_bits(choice)
        return -float(choice) if self.kind == SPARSITY else float(choice)

    @property
    def coordinates(self) -> tuple[float, ...]:
        """Where each choice lies in [0, 1].

        Formats: `1 - 2**-storage_bits`, scaled to the menu's range. A bit halves the quantisation step, so equal
        distances are roughly equal changes of the weights: from 2 to 4 bits far, from 8 to 16 near. The others are
        linear in what is kept.
        """
        order = [self.order(choice) for choice in self.choices]
        place = [1.0 - 2.0**-each for each in order] if self.kind == FORMAT else order
        span = (place[-1] - place[0]) or 1.0
        return tuple((each - place[0]) / span for each in place)


def within(menu: Sequence[Format], *, least_bits: float = 0.0, most_bits: float = 64.0) -> tuple[Format, ...]:
    """The formats of a menu whose bits lie within bounds, by ascending storage bits.

    Raises ConfigError on bounds that contradict each other, or that leave nothing of the menu.
    """
    if least_bits > most_bits:
        raise ConfigError(
            f"space: expected bounds in order, got at least {least_bits:g} and at most {most_bits:g} bits"
        )
    kept = [fmt for fmt in menu if least_bits <= fmt.bits <= most_bits]
    if not kept:
        offered = ", ".join(map(str, menu)) or "nothing"
        raise ConfigError(
            f"space: no format has {least_bits:g} to {most_bits:g} bits; the target's menu has {offered}: widen the "
            "bounds, add formats, or choose another target"
        )
    return tuple(sorted(kept, key=storage_bits))


def unit_dimensions(
    units: Mapping[str, Sequence[str]],
    menu: Sequence[Format],
    *,
    sparsities: Sequence[float] = (),
    menus: Mapping[str, Sequence[Format]] | None = None,
) -> tuple[Dimension, ...]:
    """A FORMAT dimension per unit and, where `sparsities` are given, a SPARSITY one beside it.

    `units` maps a name to the layers that move together, `menus` a unit to another menu than `menu`. Raises
    SearchError for an empty menu, naming the unit, and for a sparsity outside 0 to 1.
    """
    if odd := [share for share in sparsities if not 0.0 <= share < 1.0]:
        raise SearchError(f"space: expected sparsities of at least 0 and below 1, got {odd[0]}")
    shares = tuple(sorted({0.0, *map(float, sparsities)}, reverse=True))
    found = []
    for unit, layers in units.items():
        own = tuple(sorted((menus or {}).get(unit, menu), key=storage_bits))
        found.append(Dimension(unit, FORMAT, own, tuple(layers)))
        if len(shares) > 1:
            found.append(Dimension(f"{unit} sparsity", SPARSITY, shares, tuple(layers)))
    return tuple(found)


def block_dimensions(
    blocks: Mapping[int, Sequence[str]],
    *,
    removable: Iterable[int] = (),
    kv_groups: Mapping[int, Sequence[int]] | None = None,
    channels: Mapping[int, Sequence[int]] | None = None,
) -> tuple[Dimension, ...]:
    """Structural dimensions. `blocks` maps a block to all its layers; the others say which blocks may go, and how many
    kv groups or channels a block may keep, the largest number being all that it has.

    Raises SearchError where all blocks could be left out at once: what remained would be no model.
    """
    gone = sorted(removable)
    if blocks and set(blocks) <= set(gone):
        raise SearchError(f"space: expected a block that always stays, all of {gone} could be left out")
    found = [Dimension(f"block {b}", KEPT, (0, 1), tuple(blocks[b]), b) for b in gone]
    for kind, counts in ((KV_GROUPS, kv_groups or {}), (CHANNELS, channels or {})):
        for block, kept in sorted(counts.items()):
            name = f"block {block} {kind.replace('_', ' ')}"
            found.append(Dimension(name, kind, tuple(sorted(kept)), tuple(blocks[block]), block))
    return tuple(found)
