"""Which modules of an architecture are compressible layers, and how large they are. No torch.

A layer is named as transformers names its module, so a config reads like the model's own state dict. Where the
head shares the embedding's weights, the two are one layer: compressed once, stored once, counted once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from toggle_edge.errors import ModelError

EMBEDDING = "model.embed_tokens"
HEAD = "lm_head"


@dataclass(frozen=True, slots=True)
class Layer:
    """One compressible matrix, `rows x columns` (outputs x inputs).

    `role` is its place in a block (`q`, `down`, ...), `embedding` or `head`. `multiplied` is False for an
    embedding that is only looked up: it costs bytes but no FLOPs.
    """

    name: str
    role: str
    rows: int
    columns: int
    multiplied: bool = True

    @property
    def weights(self) -> int:
        return self.rows * self.columns


def layers_of(config: Any) -> tuple[Layer, ...]:
    """The compressible layers of a model, in forward order, from its transformers configuration.

    Raises ModelError for an architecture that is not known here.
    """
    try:
        name_layers = ARCHITECTURES[config.model_type]
    except KeyError:
        raise ModelError(
            f"model architecture: expected one of {sorted(ARCHITECTURES)}, got {config.model_type!r}; "
            "other architectures cannot be compressed yet"
        ) from None
    return name_layers(config)


def _llama(config: Any) -> tuple[Layer, ...]:
    hidden, inner = config.hidden_size, config.intermediate_size
    head_size = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    queries, keys = config.num_attention_heads * head_size, config.num_key_value_heads * head_size
    tied = bool(config.tie_word_embeddings)
    block = (
        ("self_attn.q_proj", "q", queries, hidden),
        ("self_attn.k_proj", "k", keys, hidden),
        ("self_attn.v_proj", "v", keys, hidden),
        ("self_attn.o_proj", "o", hidden, queries),
        ("mlp.gate_proj", "gate", inner, hidden),
        ("mlp.up_proj", "up", inner, hidden),
        ("mlp.down_proj", "down", hidden, inner),
    )
    layers = [Layer(EMBEDDING, "embedding", config.vocab_size, hidden, multiplied=tied)]
    for index in range(config.num_hidden_layers):
        layers += [Layer(f"model.layers.{index}.{name}", role, r, c) for name, role, r, c in block]
    if not tied:
        layers.append(Layer(HEAD, "head", config.vocab_size, hidden))
    return tuple(layers)


def _gpt2(config: Any) -> tuple[Layer, ...]:
    hidden = config.hidden_size
    inner = config.n_inner or 4 * hidden
    block = (
        ("attn.c_attn", "qkv", 3 * hidden, hidden),
        ("attn.c_proj", "o", hidden, hidden),
        ("mlp.c_fc", "up", inner, hidden),
        ("mlp.c_proj", "down", hidden, inner),
    )
    tied = bool(config.tie_word_embeddings)
    layers = [Layer("transformer.wte", "embedding", config.vocab_size, hidden, multiplied=tied)]
    for index in range(config.num_hidden_layers):
        layers += [Layer(f"transformer.h.{index}.{name}", role, r, c) for name, role, r, c in block]
    if not tied:
        layers.append(Layer(HEAD, "head", config.vocab_size, hidden))
    return tuple(layers)


ARCHITECTURES: Mapping[str, Callable[[Any], tuple[Layer, ...]]] = {"gpt2": _gpt2, "llama": _llama}
