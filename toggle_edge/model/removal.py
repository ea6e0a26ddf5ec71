"""Structure removed from a module: what is left out is not there any more, and shapes change."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from toggle_edge.errors import ConfigError
from toggle_edge.model.layers import Layer
from toggle_edge.model.remaining import (
    CHANNEL_COLUMNS,
    CHANNEL_ROWS,
    GROUP_COLUMNS,
    GROUP_ROWS,
    PARTS,
    Anatomy,
    Unlayered,
    block_of,
    blocks_of,
    list_of_blocks,
    positions,
    renumbered,
)
from toggle_edge.structure import Kept, KeptBlock

REMOVABLE = ("gemma", "gemma2", "gemma3_text", "gpt2", "llama", "mistral", "qwen2", "qwen3")
"""Architectures whose attention and MLP run at any number of kv groups and channels, block by block."""


def anatomy_of(module: Any, layers: Sequence[Layer], kv_groups: int) -> Anatomy:
    """How a model is built. Raises ConfigError for an architecture of which structure cannot be removed."""
    kind = module.config.get_text_config().model_type
    if kind not in REMOVABLE:
        raise ConfigError(
            f"structure: expected an architecture among {', '.join(REMOVABLE)}, got {kind!r}: how its heads and "
            "channels lie in its matrices is not known here; leave `structure` out of the config"
        )
    numbers = blocks_of(layers)
    roles = {layer.name: layer for layer in layers}
    channels = {block_of(layer.name): layer.columns for layer in layers if layer.role in CHANNEL_COLUMNS}
    outside, blocks = 0, {number: [0, 0, 0] for number in numbers}
    for path, parameter in module.named_parameters():
        owner, _, what = path.rpartition(".")
        if what == "weight" and owner in roles:
            continue
        block, role = block_of(path), roles[owner].role if owner in roles else ""
        if block is None:
            outside += parameter.numel()
        elif role in GROUP_ROWS:
            blocks[block][1] += parameter.numel() // kv_groups
        elif role in CHANNEL_ROWS:
            blocks[block][2] += parameter.numel() // channels[block]
        else:
            blocks[block][0] += parameter.numel()
    counted = tuple((always, groups, inner) for always, groups, inner in blocks.values())
    return Anatomy(tuple(layers), kv_groups, Unlayered(outside, counted))


def cut(weight: torch.Tensor, layer: Layer, anatomy: Anatomy, kept: KeptBlock) -> torch.Tensor:
    """Of a layer's weights (outputs x inputs) what remains; the tensor itself where all of it does."""
    rows, columns = kept_rows(layer, anatomy, kept), kept_columns(layer, anatomy, kept)
    weight = weight if rows is None else weight[rows]
    return weight if columns is None else weight[:, columns]


def kept_rows(layer: Layer, anatomy: Anatomy, kept: KeptBlock) -> list[int] | None:
    """Which outputs of a layer remain, None for all."""
    if layer.role in GROUP_ROWS and len(kept.kv_groups) < anatomy.kv_groups:
        return positions(kept.kv_groups, layer.rows, anatomy.kv_groups, PARTS.get(layer.role, 1))
    if layer.role in CHANNEL_ROWS and len(kept.channels) < layer.rows:
        return list(kept.channels)
    return None


def kept_columns(layer: Layer, anatomy: Anatomy, kept: KeptBlock) -> list[int] | None:
    """Which inputs of a layer remain, None for all."""
    if layer.role in GROUP_COLUMNS and len(kept.kv_groups) < anatomy.kv_groups:
        return positions(kept.kv_groups, layer.columns, anatomy.kv_groups)
    if layer.role in CHANNEL_COLUMNS and len(kept.channels) < layer.columns:
        return list(kept.channels)
    return None


def without(
    module: torch.nn.Module, anatomy: Anatomy, kept: Kept, memo: dict[int, Any] | None = None
) -> torch.nn.Module:
    """A copy of the module in which only what is kept exists. Tensors of what is removed are never copied.

    Given a `memo` as of `copy.deepcopy`, what is in it is shared, and narrowed weights have a shape and no content.
    """
    remaining = {each.block: each for each in kept.remaining}
    path = list_of_blocks(anatomy.layers)
    blocks: Any = module.get_submodule(path)
    # What deepcopy finds in its memo it takes for copied already.
    copied: dict[int, Any] = {} if memo is None else memo
    for layer in anatomy.layers:
        block = block_of(layer.name)
        if block is not None and block in remaining:
            owner = module.get_submodule(layer.name)
            _cut_parameters(owner, layer, anatomy, remaining[block], copied, empty=memo is not None)
    copied[id(blocks)] = torch.nn.ModuleList(copy.deepcopy(blocks[number], copied) for number in kept.numbers)
    found: Any = copy.deepcopy(module, copied)
    _renumber(found, path, kept)
    for layer in anatomy.layers:
        block = block_of(layer.name)
        if block in remaining:
            _resize(found, renumbered(layer.name, kept.numbers))
    return found  # type: ignore[no-any-return]


def _cut_parameters(
    owner: Any, layer: Layer, anatomy: Anatomy, kept: KeptBlock, copied: dict[int, Any], *, empty: bool
) -> None:
    rows = kept_rows(layer, anatomy, kept)
    if rows is None and kept_columns(layer, anatomy, kept) is None:
        return
    turned = isinstance(owner, Conv1D)
    whole = owner.weight.data.to("meta") if empty else owner.weight.data
    weight = cut(whole.T if turned else whole, layer, anatomy, kept)
    weight = (weight.T if turned else weight).contiguous()
    copied[id(owner.weight)] = torch.nn.Parameter(weight, requires_grad=owner.weight.requires_grad)
    if rows is not None and owner.bias is not None:
        bias = owner.bias.data[rows]
        copied[id(owner.bias)] = torch.nn.Parameter(bias, requires_grad=owner.bias.requires_grad)


def _renumber(module: Any, path: str, kept: Kept) -> None:
    """Blocks say by `layer_idx` which part of the key-value cache is theirs, the config how many there are."""
    for index, block in enumerate(module.get_submodule(path)):
        for each in block.modules():
            if isinstance(getattr(each, "layer_idx", None), int):
                each.layer_idx = index
    config = module.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    config.num_hidden_layers = len(kept.remaining)
    if kinds is not None:
        config.layer_types = [kinds[number] for number in kept.numbers]


def _resize(module: Any, name: str) -> None:
    """Set the sizes that a matrix and its attention repeat in attributes to those of its weights."""
    owner = module.get_submodule(name)
    if isinstance(owner, Conv1D):
        owner.nx, owner.nf = owner.weight.shape
        attention = module.get_submodule(name.rpartition(".")[0])
        if name.endswith(".c_attn"):
            attention.split_size = owner.nf // 3
            attention.num_heads = attention.split_size // attention.head_dim
    else:
        owner.out_features, owner.in_features = owner.weight.shape
