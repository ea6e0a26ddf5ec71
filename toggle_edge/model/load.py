"""Load a causal language model from a local folder: weights, tokenizer, shape and digest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from toggle_runtime.records import ModelShape
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from toggle_edge.errors import ModelError
from toggle_edge.model.discovery import layers_of
from toggle_edge.model.layers import Layer
from toggle_edge.model.remaining import Anatomy
from toggle_edge.model.removal import anatomy_of

_NEEDED = ("config.json", "tokenizer.json")


@dataclass(frozen=True)
class LanguageModel:
    """The baseline: a model in evaluation mode and float32, and what the other stages need to know of it.

    `digest` is the SHA-256 of the folder's files, so that a study cannot silently go on with another model.
    """

    folder: Path
    digest: str
    module: torch.nn.Module
    tokenizer: Any
    layers: tuple[Layer, ...]
    shape: ModelShape

    @property
    def kept_parameters(self) -> int:
        """Parameters that no layer covers (norms, biases, routers, positions): they stay in float32."""
        total = sum(parameter.numel() for parameter in self.module.parameters())
        return total - sum(layer.weights for layer in self.layers)

    @cached_property
    def anatomy(self) -> Anatomy:
        """How it is built, as far as structure can be removed. Raises ConfigError where none can."""
        return anatomy_of(self.module, self.layers, self.shape.kv_heads)


def load_model(folder: Path) -> LanguageModel:
    """Load the model in `folder`, without ever reaching for a hub.

    Raises ModelError when the folder lacks a file, cannot be read, or holds an unknown architecture.
    """
    missing = [name for name in _NEEDED if not (folder / name).is_file()]
    if missing or not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"model folder {folder}: expected config.json, tokenizer.json and *.safetensors, "
            f"{'missing ' + ', '.join(missing) if missing else 'found no *.safetensors'}; "
            "save it with model.save_pretrained and tokenizer.save_pretrained"
        )
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        # Eager attention: the attention rows are a signal, and the fused kernels do not return them.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="eager",
            local_files_only=True,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as exc:  # transformers and tokenizers raise their own and, for an odd file, any
        raise ModelError(
            f"model folder {folder}: cannot be loaded: {type(exc).__name__}: {_first_line(exc)}; is it complete, "
            "and saved by transformers?"
        ) from exc
    module, loading = loaded
    # First what the model is: an architecture of another kind names its weights otherwise too.
    layers = layers_of(module.requires_grad_(False).eval())
    _require_all(folder, loading)
    return LanguageModel(folder, _folder_digest(folder), module, tokenizer, layers, _shape_of(module))


def _require_all(folder: Path, loading: Mapping[str, Any]) -> None:
    """Raises ModelError when a weight is not in the files: transformers only warns, and draws it at random."""
    absent = sorted(loading["missing_keys"])
    if absent:
        raise ModelError(
            f"model folder {folder}: expected every weight of the architecture in config.json, missing "
            f"{', '.join(absent[:3])}{f' and {len(absent) - 3} more' if len(absent) > 3 else ''}; "
            "config.json and *.safetensors are not of one model, save it anew"
        )


def _shape_of(module: Any) -> ModelShape:
    """What exporters tell a backend. `head_size` is that of queries and keys; a latent attention's values differ.

    Raises ModelError when the model's config does not say.
    """
    config = module.config.get_text_config()
    try:
        heads = config.num_attention_heads
        if getattr(config, "qk_nope_head_dim", None) is not None:
            # DeepSeek's config calls the rotated part alone `head_dim`.
            head_size = config.qk_nope_head_dim + config.qk_rope_head_dim
        else:
            head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
        return ModelShape(
            layers=config.num_hidden_layers,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_size=head_size,
            vocabulary=config.vocab_size,
            context_tokens=config.max_position_embeddings,
            end_token=config.eos_token_id if isinstance(config.eos_token_id, int) else None,
        )
    except AttributeError as exc:
        raise ModelError(
            f"model architecture {config.model_type}: expected heads, sizes and context in config.json, {exc}"
        ) from exc


def damaged_weights(model: LanguageModel) -> tuple[str, ...]:
    """Names of the parameters with a NaN or an infinity among them."""
    return tuple(
        name for name, values in model.module.named_parameters() if not bool(torch.isfinite(values).all())
    )


def require_whole(model: LanguageModel) -> None:
    """Raises ModelError when a weight is not finite: such a model's signals are NaN, and every verdict UNSET."""
    damaged = damaged_weights(model)
    if damaged:
        raise ModelError(
            f"model folder {model.folder}: expected finite weights, got a NaN or an infinity in "
            f"{', '.join(damaged[:3])}{f' and {len(damaged) - 3} more' if len(damaged) > 3 else ''}; "
            "the file is damaged, save it anew"
        )


def _first_line(exc: Exception) -> str:
    return next((line for line in str(exc).splitlines() if line.strip()), "no message")


def _folder_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        with path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{path.name}\0{content}\n".encode())
    return digest.hexdigest()
