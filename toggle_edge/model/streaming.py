"""Weights that are there only while they are used: each module's are supplied when it runs and let go when it has run.

Between its runs such a parameter lies on torch's meta device: it has a shape, and using it by mistake fails loudly.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch

from toggle_edge.model.layer_inputs import is_slice
from toggle_edge.model.layers import Layer


@dataclass(frozen=True)
class Slot:
    """One parameter and the layers in it: one layer, or an experts x outputs x inputs parameter's experts in order.

    `name` is the parameter's, `owners` the modules that use it (two where head and embedding share it).
    """

    name: str
    owners: tuple[str, ...]
    layers: tuple[Layer, ...]

    @property
    def attribute(self) -> str:
        return self.name.rpartition(".")[2]


Supply = Callable[[Slot], torch.Tensor]
"""A slot's weights as the module keeps them, float32; not written to by the model."""


def slots_of(module: torch.nn.Module, layers: Collection[Layer]) -> tuple[Slot, ...]:
    """The parameters that the layers lie in, in the layers' order."""
    inside: dict[str, list[Layer]] = {}
    for layer in layers:
        name = layer.name.rpartition(".")[0] if is_slice(layer) else f"{layer.name}.weight"
        inside.setdefault(name, []).append(layer)
    users: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        users.setdefault(id(parameter), []).append(name.rpartition(".")[0])
    return tuple(
        Slot(name, tuple(users[id(module.get_parameter(name))]), tuple(own)) for name, own in inside.items()
    )


def stream(module: torch.nn.Module, slots: Collection[Slot], supply: Supply) -> None:
    """From now on, let the module's layers have weights only while they run."""
    for slot in slots:
        owners = [module.get_submodule(path) for path in slot.owners]
        shape = module.get_parameter(slot.name).shape
        empty = torch.nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False)
        for owner in owners:
            owner._parameters[slot.attribute] = empty
            owner.register_forward_pre_hook(_Fill(slot, supply, empty))
            # Called when the module fails too: else a failed pass would leave its weights in memory.
            owner.register_forward_hook(_Drop(slot, supply, empty), always_call=True)


@dataclass(frozen=True)
class _Hook:
    slot: Slot
    supply: Supply
    empty: torch.nn.Parameter

    def __deepcopy__(self, memo: Any) -> _Hook:
        return self


class _Fill(_Hook):
    def __call__(self, owner: torch.nn.Module, *_: object) -> None:
        owner._parameters[self.slot.attribute] = torch.nn.Parameter(
            self.supply(self.slot), requires_grad=False
        )


class _Drop(_Hook):
    def __call__(self, owner: torch.nn.Module, *_: object) -> None:
        owner._parameters[self.slot.attribute] = self.empty


def shared_copy(
    module: torch.nn.Module,
    copied: Callable[[torch.nn.Module, dict[int, Any]], torch.nn.Module] = copy.deepcopy,
) -> torch.nn.Module:
    """A copy of the module that has the very same parameters and buffers, and streams nothing. `copied` makes it from
    the module and a memo of what is shared."""
    memo: dict[int, Any] = {id(each): each for each in (*module.parameters(), *module.buffers())}
    twin = copied(module, memo)
    for each in twin.modules():
        for hooks in (each._forward_pre_hooks, each._forward_hooks):
            for key in [key for key, hook in hooks.items() if isinstance(hook, _Hook)]:
                del hooks[key]
                each._forward_hooks_always_called.pop(key, None)
    return twin
