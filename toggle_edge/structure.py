"""What of a model's structure a config removes: whole blocks, attention heads by kv group, channels of MLPs.

Pure data. What is removed is physically gone, so it saves time on every kernel; weights that are only zero do not.
"""

from __future__ import annotations

from dataclasses import dataclass

from toggle_edge.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Structure:
    """What of a model's structure is removed; empty keeps all of it.

    `removed_blocks` are left out whole. `kv_groups` and `channels` say of a block how many of its own it keeps: a kv
    group is one key and value head with the query heads that read it, channels are the inner ones of the MLP. Which
    ones stay is decided by importance (`compress.structure`), so that keeping fewer keeps a part of what more would.
    Raises ConfigError on blocks that are not distinct and ascending, or counts below 1.
    """

    removed_blocks: tuple[int, ...] = ()
    kv_groups: tuple[tuple[int, int], ...] = ()
    channels: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        for name in ("removed_blocks", "kv_groups", "channels"):
            pairs = getattr(self, name)
            blocks = list(pairs) if name == "removed_blocks" else [block for block, _ in pairs]
            if blocks != sorted(set(blocks)) or any(block < 0 for block in blocks):
                raise ConfigError(
                    f"structure: {name}: expected distinct blocks in ascending order, got {blocks}"
                )
            if name != "removed_blocks":
                if any(count < 1 for _, count in pairs):
                    raise ConfigError(
                        f"structure: {name}: expected to keep 1 or more in each block, got {dict(pairs)}; "
                        "remove the block instead"
                    )
                if both := sorted(set(blocks) & set(self.removed_blocks)):
                    raise ConfigError(f"structure: {name}: block {both[0]} is removed, and cannot keep any")

    def __bool__(self) -> bool:
        return bool(self.removed_blocks or self.kv_groups or self.channels)

    @classmethod
    def from_json(cls, data: object) -> Structure:
        """Read `{"removed_blocks": [block], "kv_groups": {block: kept}, "channels": {block: kept}}`; any may be absent.

        Raises ConfigError on anything else.
        """
        if not isinstance(data, dict):
            raise ConfigError(f"structure: expected an object, got {str(data)[:60]!r}")
        if odd := sorted(set(data) - {"removed_blocks", "kv_groups", "channels"}):
            raise ConfigError(f"structure: expected removed_blocks, kv_groups and channels, got {odd[0]!r}")
        blocks = data.get("removed_blocks", [])
        if not isinstance(blocks, list) or not all(type(block) is int for block in blocks):
            raise ConfigError(
                f"structure: removed_blocks: expected a list of numbers, got {str(blocks)[:60]!r}"
            )
        return cls(tuple(blocks), _counts(data, "kv_groups"), _counts(data, "channels"))

    def to_json(self) -> dict[str, object]:
        found: dict[str, object] = {}
        if self.removed_blocks:
            found["removed_blocks"] = list(self.removed_blocks)
        for name, pairs in (("kv_groups", self.kv_groups), ("channels", self.channels)):
            if pairs:
                found[name] = {str(block): count for block, count in pairs}
        return found

    def summary(self) -> str:
        """In words: `without blocks 3, 5; 2 blocks with fewer heads; 4 blocks with a narrower MLP`; "" when whole."""
        parts = []
        if self.removed_blocks:
            plural = "s" if len(self.removed_blocks) > 1 else ""
            parts.append(f"without block{plural} {', '.join(map(str, self.removed_blocks))}")
        for pairs, what in ((self.kv_groups, "with fewer heads"), (self.channels, "with a narrower MLP")):
            if pairs:
                parts.append(f"{len(pairs)} block{'s' if len(pairs) > 1 else ''} {what}")
        return "; ".join(parts)


WHOLE = Structure()


def _counts(data: dict[str, object], name: str) -> tuple[tuple[int, int], ...]:
    found = data.get(name, {})
    if not isinstance(found, dict) or not all(
        str(block).isdecimal() and type(count) is int for block, count in found.items()
    ):
        raise ConfigError(
            f"structure: {name}: expected {{block: how many it keeps}}, got {str(found)[:60]!r}"
        )
    return tuple(sorted((int(block), count) for block, count in found.items()))


@dataclass(frozen=True, slots=True)
class KeptBlock:
    """A block that remains: its number in the baseline, and which of its kv groups and channels it keeps, ascending."""

    block: int
    kv_groups: tuple[int, ...]
    channels: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Kept:
    """A structure resolved: the blocks that remain, in the model's order, of a baseline with `blocks` blocks."""

    blocks: int
    remaining: tuple[KeptBlock, ...]

    @property
    def numbers(self) -> tuple[int, ...]:
        """The remaining blocks' numbers in the baseline."""
        return tuple(each.block for each in self.remaining)
