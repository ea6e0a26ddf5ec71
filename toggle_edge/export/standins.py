"""What stands in for a model's layers while it is traced: a node with the layer's name, and no weights.

So a graph is traced without any large matrix, whatever the model's size, and every node says which layer it is of;
nothing has to be found again among folded and renamed constants.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from toggle_edge.errors import ExportError
from toggle_edge.model.layers import Layer

DOMAIN, PRODUCT, LOOKUP = "toggle_edge", "Product", "Lookup"
"""Of the nodes that the general skeleton puts weights in place of."""


class Product(torch.nn.Module):
    """What a Linear or Conv1D makes of `... x columns`: `... x rows`."""

    def __init__(self, layer: Layer, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.layer, self.bias = layer, bias

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        found = product(value, self.layer)
        return found if self.bias is None else found + self.bias


class Lookup(torch.nn.Module):
    """Embeddings of token ids, `... x columns`, times what an architecture scales them by."""

    def __init__(self, layer: Layer, scale: torch.Tensor | None) -> None:
        super().__init__()
        self.layer, self.scale = layer, scale

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        found = _node(LOOKUP, ids, self.layer, [*ids.shape, self.layer.columns])
        return found if self.scale is None else found * self.scale


class Experts(torch.nn.Module):
    """All experts of a block. Each multiplies those tokens only that are routed to it, so what is not needed is neither
    read nor computed; none may be."""

    def __init__(self, layers: Sequence[tuple[Layer, Layer]], activation: Any) -> None:
        super().__init__()
        self.layers, self.activation = layers, activation

    def forward(
        self, states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        mixed = torch.zeros_like(states)
        for number, (gate_up, down) in enumerate(self.layers):
            chosen = top_k_index == number
            tokens = chosen.any(-1).nonzero().squeeze(-1)
            shares = (top_k_weights * chosen).sum(-1, keepdim=True)[tokens]
            gate, up = product(states[tokens], gate_up).chunk(2, dim=-1)
            mixed = mixed.index_add(0, tokens, product(self.activation(gate) * up, down) * shares)
        return mixed


def product(value: torch.Tensor, layer: Layer) -> torch.Tensor:
    """A node that multiplies by a layer's weights."""
    return _node(PRODUCT, value, layer, [*value.shape[:-1], layer.rows])


def put_in(module: Any, layers: Sequence[Layer]) -> None:
    """Put stand-ins in place of all the layers of `module`, which then computes nothing any more.

    Raises ExportError for a layer that is neither a Linear, a Conv1D, an embedding nor experts.
    """
    experts: dict[str, dict[int, dict[str, Layer]]] = {}
    for layer in layers:
        owner, _, number = layer.name.rpartition(".")
        if layer.expert is not None and number == str(layer.expert):
            holder, _, matrix = owner.rpartition(".")
            experts.setdefault(holder, {}).setdefault(layer.expert, {})[matrix] = layer
            continue
        own = module.get_submodule(layer.name)
        if type(own) in (torch.nn.Linear, Conv1D):
            module.set_submodule(layer.name, Product(layer, own.bias))
        elif isinstance(own, torch.nn.Embedding):
            module.set_submodule(layer.name, Lookup(layer, getattr(own, "embed_scale", None)))
        else:
            raise ExportError(
                f"export: {layer.name}: expected a Linear, a Conv1D or an Embedding, got {type(own).__name__}"
            )
    for name, numbered in experts.items():
        if any(set(each) != {"gate_up_proj", "down_proj"} for each in numbered.values()):
            raise ExportError(
                f"export: {name}: expected gate_up_proj and down_proj of each expert, got {numbered}"
            )
        pairs = [(each["gate_up_proj"], each["down_proj"]) for _, each in sorted(numbered.items())]
        module.set_submodule(name, Experts(pairs, module.get_submodule(name).act_fn))
    head, embedding = module.get_output_embeddings(), module.get_input_embeddings()
    if not isinstance(head, Product):  # it shares the embedding's weights, and so its layer
        name = next(name for name, each in module.named_modules() if each is head)
        module.set_submodule(name, Product(embedding.layer, head.bias))


def _node(kind: str, value: torch.Tensor, layer: Layer, shape: Sequence[Any]) -> torch.Tensor:
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{kind}", [value], {"layer": layer.name}, dtype=torch.float32, shape=shape, version=1
    )
