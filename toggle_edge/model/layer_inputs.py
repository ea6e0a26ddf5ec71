"""What each layer multiplies, seen while the model reads: the inputs of modules, and of experts inside a module."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from toggle_edge.model.layers import Layer

See = Callable[[str, torch.Tensor], None]
Real = Callable[[], torch.Tensor | None]


@contextmanager
def watching(module: Any, layers: Collection[Layer], see: See, real: Real = lambda: None) -> Iterator[None]:
    """Within it, each forward pass calls `see(layer name, inputs)`, inputs being ... x columns, as each layer is read.

    A tied embedding's inputs are its head's. An embedding that is only looked up multiplies nothing and is never seen,
    nor is an expert to which no token is routed. `real` may give a mask, batch x tokens, false at padding, which is not
    shown to experts in one parameter; others' inputs are shown whole.
    """
    hooks = []
    mixtures: dict[str, list[Layer]] = {}
    for layer in layers:
        if is_slice(layer):
            mixtures.setdefault(layer.name.rsplit(".", 2)[0], []).append(layer)
        elif (owner := multiplying_module(module, layer.name)) is not None:
            hooks.append(
                owner.register_forward_pre_hook(lambda _, given, name=layer.name: see(name, given[0]))
            )
    for path, experts in mixtures.items():
        hooks.append(module.get_submodule(path).register_forward_pre_hook(_experts_hook(experts, see, real)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def is_slice(layer: Layer) -> bool:
    """Whether the layer is one expert of a parameter that holds all of them."""
    return layer.expert is not None and layer.name.endswith(f".{layer.expert}")


def multiplying_module(module: Any, name: str) -> Any:
    """The module in which a layer's weights multiply: for a tied embedding the head, for one only looked up None."""
    owner = module.get_submodule(name)
    if not isinstance(owner, torch.nn.Embedding):
        return owner
    head = module.get_output_embeddings()
    return head if head is not None and head.weight is owner.weight else None


def _experts_hook(layers: Collection[Layer], see: See, real: Real) -> Callable[[Any, Any], None]:
    """Experts in one parameter have no modules to hook: what enters each, and what enters its second matrix, is
    computed once more, as the module itself does."""
    wanted = {(layer.role, layer.expert): layer.name for layer in layers}

    def hook(owner: Any, given: tuple[torch.Tensor, ...]) -> None:
        states, chosen = given[0].flatten(0, -2), given[1].flatten(0, -2)
        mask = real()
        if mask is not None:
            states, chosen = states[mask.flatten()], chosen[mask.flatten()]
        for expert in sorted({number for _, number in wanted if number is not None}):
            routed = states[(chosen == expert).any(-1)]
            if not len(routed):
                continue
            if (name := wanted.get(("gate_up", expert))) is not None:
                see(name, routed)
            if (name := wanted.get(("down", expert))) is not None:
                gate, up = (routed @ owner.gate_up_proj[expert].T).chunk(2, dim=-1)
                see(name, owner.act_fn(gate) * up)

    return hook
