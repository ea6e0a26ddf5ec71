"""What a search varies: the space of a model under a profile's bounds, and what a target or a model does not allow.

What a profile asks for and could never be exported, or never pay, is refused before the search, not found out after it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from toggle_edge.compress.structure import structure_menu
from toggle_edge.config import Format
from toggle_edge.errors import ConfigError
from toggle_edge.export import EXPORTERS, WHOLE_ONLY, exporter_for, narrows
from toggle_edge.export.executorch import EXECUTORCH
from toggle_edge.model.load import LanguageModel
from toggle_edge.model.remaining import Anatomy, block_of
from toggle_edge.pipeline.preparing import Prepared
from toggle_edge.profiles import BLOCKS, CHANNELS, KV_GROUPS, Profile
from toggle_edge.search.dimensions import Dimension, block_dimensions, unit_dimensions, within
from toggle_edge.search.space import Space
from toggle_edge.targets import EMBEDDING, Target, menu_of, target_named


@dataclass(frozen=True)
class Removable:
    """What of its structure a model may lose in a search: the `parts`, and by part why others that the profile names
    are `left_out`."""

    parts: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)


def require_bounds(profile: Profile, target: str) -> None:
    """Refuse what no model could be searched for on the target. Raises ConfigError naming file, key and remedy."""
    there, bounds = target_named(target), profile.bounds
    for role in ("", EMBEDDING):
        formats_of(profile, there, role)
    if bounds.sparsities and len(there.sparsities) == 1:
        raise ConfigError(
            f"{profile.path}: search.sparsities: zeros buy nothing on {target}: its kernels read every weight and no "
            "file is smaller; remove the key, or search on a target where zeros pay, which is paper"
        )
    if bounds.structure and target not in EXPORTERS:
        raise ConfigError(
            f"{profile.path}: search.structure: nothing that loses part of its structure can be exported for {target}; "
            f"remove the key, or search on one of {', '.join(EXPORTERS)}"
        )


def formats_of(profile: Profile, target: Target, role: str = "") -> tuple[Format, ...]:
    """The menu of layers of a role: formats that the profile asks for and the target has, within its bounds of bits.

    By ascending storage bits. Raises ConfigError where nothing is left.
    """
    bounds = profile.bounds
    menu = menu_of(target, [Format.parse(text) for text in profile.formats], role)
    named = {"least_bits": bounds.least_bits, "most_bits": bounds.most_bits}
    try:
        return within(menu, **{key: bits for key, bits in named.items() if bits is not None})
    except ConfigError as exc:
        raise ConfigError(f"{profile.path}: search.bits: {exc}") from exc


def removable(model: LanguageModel, profile: Profile, target: str) -> Removable:
    """Of what the profile lets a search remove, what can be removed of this model and exported then.

    Raises ConfigError, with the reasons, where the profile names parts and none of them can.
    """
    asked = profile.bounds.structure
    if not asked:
        return Removable()
    reasons = _obstacles(model, profile, target)
    left_out = {part: reasons[part] for part in asked if part in reasons}
    if len(left_out) == len(asked):
        which = "; ".join(f"{', '.join(parts)}: {why}" for why, parts in _by_reason(left_out).items())
        raise ConfigError(
            f"{profile.path}: search.structure: nothing of it can be removed of {model.folder}: {which}. Remove the "
            "key, or search a model that can lose it"
        )
    return Removable(tuple(part for part in asked if part not in left_out), left_out)


def space_of(prepared: Prepared) -> Space:
    """What the search varies: a format for each unit of layers that read the same input; on a target where zeros pay, a
    sparsity; and what the profile lets it remove of the structure.

    Raises ConfigError where profile, target and model have nothing in common.
    """
    profile, target = prepared.profile, target_named(prepared.target)
    require_bounds(profile, target.name)
    units: dict[str, list[str]] = {}
    roles: dict[str, str] = {}
    for layer in prepared.model.layers:
        units.setdefault(layer.group, []).append(layer.name)
        roles[layer.group] = layer.role
    asked = profile.bounds.sparsities
    dimensions = unit_dimensions(
        units,
        formats_of(profile, target),
        sparsities=target.sparsities if asked is None else asked,
        menus={unit: formats_of(profile, target, role) for unit, role in roles.items()},
    )
    parts = removable(prepared.model, profile, target.name).parts
    if parts:
        dimensions += _structural(prepared.model.anatomy, parts, profile.bounds.keep)
    return Space(prepared.layers, dimensions, lambda config: prepared.cost(config).proxy_flops)


def space_note(prepared: Prepared) -> str:
    """The space in words, and what of the profile's structure it leaves out."""
    kinds = Counter(each.kind.replace("_", " ") for each in space_of(prepared).dimensions)
    text = f"{kinds.total()} dimensions: {', '.join(f'{kind} {count}' for kind, count in kinds.items())}"
    for why, parts in _by_reason(
        removable(prepared.model, prepared.profile, prepared.target).left_out
    ).items():
        text += f"; without {', '.join(parts)}: {why}"
    return text


def _structural(anatomy: Anatomy, parts: tuple[str, ...], keep: tuple[float, ...]) -> tuple[Dimension, ...]:
    layers: dict[int, list[str]] = {}
    for layer in anatomy.layers:
        if (block := block_of(layer.name)) is not None:
            layers.setdefault(block, []).append(layer.name)
    counts = _counts(anatomy, keep)
    return block_dimensions(
        layers,
        # Without the first block the others would read embeddings, which none of them was made for.
        removable=range(1, anatomy.blocks) if BLOCKS in parts else (),
        kv_groups=counts[KV_GROUPS] if KV_GROUPS in parts else None,
        channels=counts[CHANNELS] if CHANNELS in parts else None,
    )


def _counts(anatomy: Anatomy, keep: tuple[float, ...]) -> dict[str, dict[int, list[int]]]:
    """By part and block how many it may keep, all of them included; blocks that could not keep fewer are absent."""
    counts: dict[str, dict[int, list[int]]] = {KV_GROUPS: {}, CHANNELS: {}}
    for block, options in structure_menu(anatomy, keep).items():
        for each in options:
            for part, pairs in ((KV_GROUPS, each.kv_groups), (CHANNELS, each.channels)):
                for _, count in pairs:
                    whole = anatomy.kv_groups if part == KV_GROUPS else anatomy.channels(block)
                    counts[part].setdefault(block, [whole]).append(count)
    return counts


def _obstacles(model: LanguageModel, profile: Profile, target: str) -> dict[str, str]:
    """By part, why it cannot be removed; parts that can are absent."""
    every = dict.fromkeys(profile.bounds.structure)
    module: Any = model.module
    kind = module.config.get_text_config().model_type
    try:
        anatomy = model.anatomy
    except ConfigError:
        return dict.fromkeys(every, f"how heads and channels lie in the matrices of {kind!r} is not known")
    if (why := exporter_for(target).why_not(model)) is not None:
        return dict.fromkeys(every, f"it could not be exported: {why}")
    if target == EXECUTORCH:  # lowered from the narrowed module, biases and all
        return dict(_lacking(anatomy, profile.bounds.keep, (True, True)))
    if kind in WHOLE_ONLY:
        return dict.fromkeys(every, f"it could not be exported: graphs of {kind!r} can lose nothing yet")
    return dict(_lacking(anatomy, profile.bounds.keep, narrows(anatomy)))


def _lacking(
    anatomy: Anatomy, keep: tuple[float, ...], may_narrow: tuple[bool, bool]
) -> Iterator[tuple[str, str]]:
    counts, (groups, channels) = _counts(anatomy, keep), may_narrow
    if anatomy.blocks == 1:
        yield BLOCKS, "it has one block"
    for part, may in ((KV_GROUPS, groups), (CHANNELS, channels)):
        if not counts[part]:
            yield part, "no share of search.keep is less than all of them, rounded"
        elif not may:
            yield part, "it could not be exported: its matrices have biases"


def _by_reason(left_out: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for part, why in left_out.items():
        found.setdefault(why, []).append(part)
    return found
