"""Which matrices an architecture has and what their roles are. Pure data, no torch.

A key is a matrix's name in the model with `*` for each number in it (blocks, experts). What one entry lists need not
all be there: a tied head is not, and of a latent attention's queries either `q` or `q_a` and `q_b` are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SAME_INPUT = {
    **dict.fromkeys(("q", "k", "v", "qkv", "q_a", "kv_a"), "attention_input"),
    **dict.fromkeys(("gate", "up", "gate_up"), "mlp_input"),
    **dict.fromkeys(("shared_gate", "shared_up"), "mlp_input"),
}
"""Roles whose layers read the same input where they lie in the same module, and the name of that input."""


@dataclass(frozen=True)
class Architecture:
    """`roles` of the layers, and the matrices that are `kept` as they are: positions and what routes to experts."""

    roles: Mapping[str, str]
    kept: frozenset[str] = frozenset()


ATTENTION = {
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.o_proj": "o",
}
MLP = {"mlp.gate_proj": "gate", "mlp.up_proj": "up", "mlp.down_proj": "down"}
EXPERTS = {"mlp.experts.gate_up_proj": "gate_up", "mlp.experts.down_proj": "down"}


def _decoder(
    *parts: Mapping[str, str],
    blocks: str = "model.layers",
    embedding: str = "model.embed_tokens",
    outside: Mapping[str, str] | None = None,
    kept: tuple[str, ...] = (),
) -> Architecture:
    roles = {embedding: "embedding", **(outside or {}), "lm_head": "head"}
    for part in parts:
        roles |= {f"{blocks}.*.{name}": role for name, role in part.items()}
    return Architecture(roles, frozenset(kept))


def _shared(module: str) -> dict[str, str]:
    """The experts that every token passes through, one MLP beside the routed ones."""
    return {f"mlp.{module}.{role}_proj": f"shared_{role}" for role in ("gate", "up", "down")}


_LLAMA = _decoder(ATTENTION, MLP)
_ROUTER = "model.layers.*.mlp.gate"

ARCHITECTURES: Mapping[str, Architecture] = {
    "deepseek_v2": _decoder(
        {
            "self_attn.q_proj": "q",
            "self_attn.q_a_proj": "q_a",
            "self_attn.q_b_proj": "q_b",
            "self_attn.kv_a_proj_with_mqa": "kv_a",
            "self_attn.kv_b_proj": "kv_b",
            "self_attn.o_proj": "o",
        },
        MLP,  # of the first blocks, which have no experts
        EXPERTS,
        _shared("shared_experts"),
        kept=(_ROUTER,),
    ),
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    "gpt2": _decoder(
        {"attn.c_attn": "qkv", "attn.c_proj": "o", "mlp.c_fc": "up", "mlp.c_proj": "down"},
        blocks="transformer.h",
        embedding="transformer.wte",
        kept=("transformer.wpe",),
    ),
    "gpt_neox": _decoder(
        {
            "attention.query_key_value": "qkv",
            "attention.dense": "o",
            "mlp.dense_h_to_4h": "up",
            "mlp.dense_4h_to_h": "down",
        },
        blocks="gpt_neox.layers",
        embedding="gpt_neox.embed_in",
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": _decoder(ATTENTION, EXPERTS, kept=(_ROUTER,)),
    "opt": _decoder(
        {
            "self_attn.q_proj": "q",
            "self_attn.k_proj": "k",
            "self_attn.v_proj": "v",
            "self_attn.out_proj": "o",
            "fc1": "up",
            "fc2": "down",
        },
        blocks="model.decoder.layers",
        embedding="model.decoder.embed_tokens",
        outside={"model.decoder.project_in": "project_in", "model.decoder.project_out": "project_out"},
        kept=("model.decoder.embed_positions",),
    ),
    "phi3": _decoder(
        {
            "self_attn.qkv_proj": "qkv",
            "self_attn.o_proj": "o",
            "mlp.gate_up_proj": "gate_up",
            "mlp.down_proj": "down",
        }
    ),
    "qwen2": _LLAMA,
    "qwen2_moe": _decoder(
        ATTENTION,
        MLP,
        EXPERTS,
        _shared("shared_expert"),
        kept=(_ROUTER, "model.layers.*.mlp.shared_expert_gate"),
    ),
    "qwen3": _LLAMA,
    "qwen3_moe": _decoder(ATTENTION, MLP, EXPERTS, kept=(_ROUTER,)),
}
