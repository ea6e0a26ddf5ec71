"""Which architectures can be written out as a `Decoder`, and how each one's modules are found.

Runs only in the process that lowers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional

from toggle_edge.compress.quantise import CompressedLayer
from toggle_edge.export.executorch.decoder import Block, Centred, Decoder, RootMeanSquare
from toggle_edge.export.executorch.weights import LookedUp, Multiplied

Part = Callable[[str], Multiplied]
"""A matrix of the narrowed module, by its name there."""


class Separate(torch.nn.Module):
    def __init__(self, query: torch.nn.Module, key: torch.nn.Module, value: torch.nn.Module) -> None:
        super().__init__()
        self.query, self.key, self.value = query, key, value

    def forward(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.query(values), self.key(values), self.value(values)


class Joined(torch.nn.Module):
    def __init__(self, matrix: torch.nn.Module) -> None:
        super().__init__()
        self.matrix = matrix

    def forward(self, values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.matrix(values).chunk(3, dim=-1)  # type: ignore[no-any-return]


class Gated(torch.nn.Module):
    def __init__(self, gate: torch.nn.Module, up: torch.nn.Module, down: torch.nn.Module) -> None:
        super().__init__()
        self.gate, self.up, self.down = gate, up, down

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.down(functional.silu(self.gate(values)) * self.up(values))  # type: ignore[no-any-return]


_SLOPE = math.sqrt(2.0 / math.pi)


class Plain(torch.nn.Module):
    def __init__(self, up: torch.nn.Module, down: torch.nn.Module) -> None:
        super().__init__()
        self.up, self.down = up, down

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        # Written out: XNNPACK takes `gelu` for the exact one, whatever approximation it asks for, and says nothing.
        raised = self.up(values)
        inner = _SLOPE * (raised + 0.044715 * raised * raised * raised)
        return self.down(0.5 * raised * (1.0 + torch.tanh(inner)))  # type: ignore[no-any-return]


def llama(module: Any, part: Part, embedding: LookedUp, head: Multiplied, capacity: int) -> Decoder:
    """Llama and those that differ from it by biases or norms of heads only."""
    config, inner = module.config, module.model
    size = inner.layers[0].self_attn.head_dim
    shared = config.num_attention_heads // config.num_key_value_heads
    blocks = []
    for number, block in enumerate(inner.layers):
        path = f"model.layers.{number}"
        attention = block.self_attn
        norms = None
        if hasattr(attention, "q_norm"):
            norms = (_norm(attention.q_norm), _norm(attention.k_norm))
        blocks.append(
            Block(
                (_norm(block.input_layernorm), _norm(block.post_attention_layernorm)),
                Separate(*(part(f"{path}.self_attn.{each}_proj") for each in "qkv")),
                part(f"{path}.self_attn.o_proj"),
                Gated(*(part(f"{path}.mlp.{each}_proj") for each in ("gate", "up", "down"))),
                groups=attention.k_proj.out_features // size,
                size=size,
                head_norms=norms,
            )
        )
    with torch.no_grad():
        cosine, sine = inner.rotary_emb(torch.zeros(1, 1, 1), torch.arange(capacity)[None])
    rotation = (cosine[0].float(), sine[0].float())
    return Decoder(
        embedding, blocks, _norm(inner.norm), head, capacity=capacity, shared=shared, rotation=rotation
    )


def gpt2(module: Any, part: Part, embedding: LookedUp, head: Multiplied, capacity: int) -> Decoder:
    inner = module.transformer
    size = inner.h[0].attn.head_dim
    blocks = []
    for number, block in enumerate(inner.h):
        path = f"transformer.h.{number}"
        blocks.append(
            Block(
                (_centred(block.ln_1), _centred(block.ln_2)),
                Joined(part(f"{path}.attn.c_attn")),
                part(f"{path}.attn.c_proj"),
                Plain(part(f"{path}.mlp.c_fc"), part(f"{path}.mlp.c_proj")),
                groups=block.attn.c_proj.weight.shape[0] // size,
                size=size,
            )
        )
    norm = _centred(inner.ln_f)
    return Decoder(embedding, blocks, norm, head, capacity=capacity, shared=1, positions=inner.wpe.weight)


def _norm(norm: Any) -> RootMeanSquare:
    return RootMeanSquare(norm.weight, norm.variance_epsilon)


def _centred(norm: Any) -> Centred:
    return Centred(norm.weight, norm.bias, norm.eps)


FAMILIES: Mapping[str, Callable[..., Decoder]] = {
    "gpt2": gpt2,
    "llama": llama,
    "qwen2": llama,
    "qwen3": llama,
}


def decoder_of(
    module: Any, layers: Mapping[str, CompressedLayer], *, embedding: str, tied: bool, capacity: int
) -> tuple[Decoder, dict[str, str]]:
    """The decoder of a module with compressed layers, by their names in this module, in its matrices' place; and which
    layer each of its parameters belongs to, for those that belong to one.

    A head that is tied to the embedding holds the same codes a second time: the two kernels pack them differently.
    """
    made: dict[torch.nn.Module, str] = {}

    def part(name: str) -> Multiplied:
        found = Multiplied(layers[name], module.get_submodule(name).bias)
        made[found] = name
        return found

    looked_up = LookedUp(layers[embedding])
    made[looked_up] = embedding
    name = embedding if tied else "lm_head"
    head = Multiplied(layers[name], None)
    made[head] = name
    build = FAMILIES[module.config.model_type]
    decoder = build(module, part, looked_up, head, capacity).eval()
    owners = {}
    for path, each in decoder.named_modules():
        if each in made:
            for parameter, _ in each.named_parameters():
                if parameter != "bias":
                    owners[f"{path}.{parameter}"] = made[each]
    return decoder, owners
