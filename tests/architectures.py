"""Every architecture tiny and random: two blocks, the demo tokenizer's vocabulary, weights that make logits differ."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

_DEMO_MODEL = Path(__file__).parents[1] / "demo" / "model"
_COMMON: Mapping[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
_LLAMA = {**_COMMON, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LATENT = {
    **_COMMON,
    **_EXPERTS,
    "intermediate_size": 48,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
}
SLIDING = 8

CASES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "gpt2": ("gpt2", _COMMON),
    "gpt_neox": ("gpt_neox", {**_COMMON, "intermediate_size": 48}),
    "opt": ("opt", {**_COMMON, "ffn_dim": 48, "word_embed_proj_dim": 32, "pad_token_id": 0}),
    "opt_projected": ("opt", {**_COMMON, "ffn_dim": 48, "word_embed_proj_dim": 16, "pad_token_id": 0}),
    "llama": ("llama", _LLAMA),
    "llama_tied": ("llama", {**_LLAMA, "tie_word_embeddings": True}),
    "mistral": ("mistral", {**_LLAMA, "sliding_window": SLIDING}),
    "qwen2": ("qwen2", _LLAMA),
    "qwen3": ("qwen3", {**_LLAMA, "tie_word_embeddings": True}),
    "phi3": ("phi3", _LLAMA),
    "gemma": ("gemma", _LLAMA),
    "gemma2": ("gemma2", {**_LLAMA, "sliding_window": SLIDING}),
    "gemma3": ("gemma3_text", {**_LLAMA, "sliding_window": SLIDING}),
    "mixtral": ("mixtral", {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 1}),
    "qwen2_moe": (
        "qwen2_moe",
        {
            **_LLAMA,
            **_EXPERTS,
            "num_experts": 4,
            "shared_expert_intermediate_size": 24,
            "mlp_only_layers": [0],
        },
    ),
    "qwen3_moe": ("qwen3_moe", {**_LLAMA, **_EXPERTS, "num_experts": 4}),
    "deepseek_v2": ("deepseek_v2", {**_LATENT, "q_lora_rank": None}),
    "deepseek_v2_queries": ("deepseek_v2", {**_LATENT, "q_lora_rank": 16}),
}


def built(kind: str, options: Mapping[str, Any]) -> Any:
    """A random model of the architecture `kind`; its logits differ by position, and its experts are all used."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **options)
    module = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:  # random matrices this small give flat logits otherwise
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return module


def saved(module: Any, folder: Path) -> Path:
    module.save_pretrained(folder)
    AutoTokenizer.from_pretrained(_DEMO_MODEL).save_pretrained(folder)
    return folder
