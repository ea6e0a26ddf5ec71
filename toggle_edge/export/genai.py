"""`genai_config.json`: with it beside the graph, onnxruntime-genai generates from an artifact's folder as it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from toggle_edge.errors import ExportError
from toggle_edge.model.load import LanguageModel

GENAI_FILE = "genai_config.json"

DECODER = "decoder"
"""What genai calls any model with inputs and outputs like our graphs'; by their own names it expects others of some."""

_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")

_SAMPLING: Mapping[str, Any] = {
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
}
"""The model's own of these are kept, in generation_config.json's words, which are genai's too; else greedy."""


def genai_config(model: LanguageModel, kind: str | None = None) -> Mapping[str, Any]:
    """What onnxruntime-genai needs to know to open a graph of ours: names, sizes, special tokens, sampling.

    `kind` is what genai calls the architecture, None for its own name. Special tokens that the model does not name are
    left out; shorter texts of a batch are filled up with the end token then. Raises ExportError when
    generation_config.json cannot be read.
    """
    config: Any = model.module.config
    shape, said = model.shape, _generation_config(model)
    tokens = {name: _token(name, said, config, model) for name in _TOKENS}
    if tokens["pad_token_id"] is None:
        end = tokens["eos_token_id"]
        tokens["pad_token_id"] = end[0] if isinstance(end, list) else end
    return {
        "model": {
            "type": kind or config.model_type,
            "vocab_size": shape.vocabulary,
            "context_length": shape.context_tokens,
            **{name: token for name, token in tokens.items() if token is not None},
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": "model.onnx",
                "hidden_size": config.hidden_size,
                "head_size": shape.head_size,
                "num_attention_heads": config.num_attention_heads,
                "num_key_value_heads": shape.kv_heads,
                "num_hidden_layers": shape.layers,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            **{key: default if said.get(key) is None else said[key] for key, default in _SAMPLING.items()},
            "max_length": shape.context_tokens,
            "past_present_share_buffer": True,
        },
    }


def _generation_config(model: LanguageModel) -> dict[str, Any]:
    path = model.folder / "generation_config.json"
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise ExportError(f"{path}: expected a JSON object: {exc}; save the model anew") from exc
    if not isinstance(found, dict):
        raise ExportError(f"{path}: expected a JSON object, got {str(found)[:60]}; save the model anew")
    return found


def _token(name: str, said: Mapping[str, Any], config: Any, model: LanguageModel) -> Any:
    """A special token's id, or a list of them: as generation_config.json, config.json or the tokenizer says."""
    found = (said.get(name), getattr(config, name, None), getattr(model.tokenizer, name, None))
    return next((each for each in found if each is not None), None)
