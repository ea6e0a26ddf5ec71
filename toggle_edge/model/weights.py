"""Every matrix of a model, and each layer's weights as a view into it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from toggle_edge.errors import ModelError
from toggle_edge.model.layers import Layer


@dataclass(frozen=True)
class Matrix:
    """A parameter of two dimensions or more. `name` is the module's where it is that module's `weight`.

    `shape` is outputs x inputs, for the matrices of all experts in one experts x outputs x inputs.
    """

    name: str
    owner: torch.nn.Module
    shape: tuple[int, ...]

    @property
    def multiplies(self) -> bool:
        """Whether its module is one that multiplies by it, and nothing else."""
        return isinstance(self.owner, torch.nn.Linear | Conv1D)


def matrices_of(module: torch.nn.Module) -> Iterator[Matrix]:
    """Every matrix of the model in forward order, tied ones once and by the first name."""
    for path, parameter in module.named_parameters():
        if parameter.ndim < 2:
            continue
        owner = module.get_submodule(path.rpartition(".")[0])
        shape = tuple(parameter.shape)
        yield Matrix(path.removesuffix(".weight"), owner, shape[::-1] if isinstance(owner, Conv1D) else shape)


def weight_of(module: torch.nn.Module, layer: Layer) -> torch.Tensor:
    """A layer's weights as outputs x inputs: a view, so that writing to it writes to the model.

    Raises ModelError when the model has no such layer, or one of another shape.
    """
    path, _, number = layer.name.rpartition(".")
    try:
        if layer.expert is not None and number == str(layer.expert):
            weight = module.get_parameter(path).data[layer.expert]
        else:
            owner: Any = module.get_submodule(layer.name)
            # GPT-2's Conv1D multiplies from the other side and keeps inputs x outputs.
            weight = owner.weight.data.T if isinstance(owner, Conv1D) else owner.weight.data
    except (AttributeError, IndexError) as exc:
        raise ModelError(f"model: expected a layer {layer.name}, {type(module).__name__} has none") from exc
    if tuple(weight.shape) != (layer.rows, layer.columns):
        raise ModelError(
            f"model: {layer.name}: expected {layer.rows} x {layer.columns} weights (outputs x inputs), got "
            f"{' x '.join(map(str, weight.shape))}"
        )
    return weight
