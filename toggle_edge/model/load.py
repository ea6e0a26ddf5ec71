"""Load a causal language model from a local folder: weights, tokenizer, shape and digest.

A model that does not fit into memory is streamed: its module is built without weights, which are read from the files
layer by layer, each when it is used.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from toggle_runtime.records import ModelShape
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

from toggle_edge.errors import ConfigError, ModelError
from toggle_edge.model.checkpoint import Checkpoint, stored_weights
from toggle_edge.model.discovery import layers_of, require_signals
from toggle_edge.model.layer_inputs import is_slice
from toggle_edge.model.layers import Layer
from toggle_edge.model.memory import available_bytes, give_large_blocks_back
from toggle_edge.model.placement import device_of, free_bytes
from toggle_edge.model.remaining import Anatomy, remaining_layers, remaining_parameters
from toggle_edge.model.removal import anatomy_of
from toggle_edge.model.streaming import Slot, slots_of, stream
from toggle_edge.model.weights import weight_of
from toggle_edge.structure import Structure

_NEEDED = ("config.json", "tokenizer.json")


@dataclass(frozen=True)
class LanguageModel:
    """The baseline: a model in evaluation mode and float32, and what the other stages need to know of it.

    `digest` is the SHA-256 of the folder's files, so that a study cannot silently go on with another model. With a
    `checkpoint` the module is streamed: its layers have weights only while they run. `placement` says in words where
    the weights are, and why.
    """

    folder: Path
    digest: str
    module: torch.nn.Module
    tokenizer: Any
    layers: tuple[Layer, ...]
    shape: ModelShape
    checkpoint: Checkpoint | None = None
    placement: str = "in memory"

    @property
    def streamed(self) -> bool:
        return self.checkpoint is not None

    def weight(self, layer: Layer) -> torch.Tensor:
        """A layer's weights, outputs x inputs in float32, from the files where the model is streamed.

        Not to be written to. Raises ModelError when the model has no such layer, or one of another shape.
        """
        expected = weight_of(self.module, layer)
        if self.checkpoint is None:
            return expected
        if is_slice(layer):
            found = self.checkpoint.read(layer.name.rpartition(".")[0], layer.expert)
        else:
            found = self.checkpoint.read(f"{layer.name}.weight")
            if isinstance(self.module.get_submodule(layer.name), Conv1D):
                found = found.T
        return _of_shape(found, expected.shape, layer.name).to(device_of(self.module))

    @property
    def kept_parameters(self) -> int:
        """Parameters that no layer covers (norms, biases, routers, positions): they stay in float32."""
        total = sum(parameter.numel() for parameter in self.module.parameters())
        return total - sum(layer.weights for layer in self.layers)

    @cached_property
    def anatomy(self) -> Anatomy:
        """How it is built, as far as structure can be removed. Raises ConfigError where none can."""
        return anatomy_of(self.module, self.layers, self.shape.kv_heads)

    def remaining(self, structure: Structure) -> tuple[Layer, ...]:
        """The layers that a config with this structure gives formats, at their sizes then. Raises ConfigError where it
        does not fit the model."""
        return remaining_layers(self.anatomy, structure) if structure else self.layers

    def remaining_parameters(self, structure: Structure) -> int:
        """Parameters that remain and that no layer covers. Raises as `remaining` does."""
        return remaining_parameters(self.anatomy, structure) if structure else self.kept_parameters


def load_model(
    folder: Path, *, streamed: bool | None = None, device: torch.device | None = None
) -> LanguageModel:
    """Load the model in `folder`, without ever reaching for a hub, onto `device` or else the CPU.

    `streamed` None leaves the choice to `$TOGGLE_EDGE_STREAM` (`always`, `never`) or, without it, to whether model and
    candidate fit into memory in float32. Raises ModelError when the folder lacks a file, cannot be read, or holds an
    unknown architecture.
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
        place = device or torch.device("cpu")
        weights = stored_weights(folder)
        give_large_blocks_back(weights)
        streams, placement = _choice(weights, streamed, place)
        module, absent, checkpoint = _streamed_module(folder) if streams else _module(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (ModelError, ConfigError):
        raise
    except Exception as exc:  # transformers and tokenizers raise their own and, for an odd file, any
        raise ModelError(
            f"model folder {folder}: cannot be loaded: {type(exc).__name__}: {_first_line(exc)}; is it complete, "
            "and saved by transformers?"
        ) from exc
    # First what the model is: an architecture of another kind names its weights otherwise too.
    layers = layers_of(module)
    _require_all(folder, absent)
    if checkpoint is not None:
        _attach(module, checkpoint, slots_of(module, layers), place)
        require_signals(module)
    else:
        module.to(place)
    return LanguageModel(
        folder, _folder_digest(folder), module, tokenizer, layers, _shape_of(module), checkpoint, placement
    )


STREAM = "TOGGLE_EDGE_STREAM"


def _choice(weights: int, streamed: bool | None, device: torch.device) -> tuple[bool, str]:
    """Whether to stream, and why in words. Raises ConfigError when the environment says neither."""
    said = os.environ.get(STREAM) or "auto"
    if said not in ("auto", "always", "never"):
        raise ConfigError(f"{STREAM}: expected auto, always or never, got {said!r}")
    if streamed is None and said != "auto":
        streamed = said == "always"
    needed = 2 * 4 * weights
    free = available_bytes() if device.type == "cpu" else free_bytes(device)
    streams = streamed if streamed is not None else free is not None and needed > free
    room = "not known" if free is None else f"{free / 1e9:.1f} GB"
    sizes = f"model and candidate {needed / 1e9:.1f} GB in float32, available {room} on {device.type}"
    told = "" if streamed is None else ", as told"
    return streams, f"weights {'read from disk layer by layer' if streams else 'in memory'}{told} ({sizes})"


def _module(folder: Path) -> tuple[Any, tuple[str, ...], None]:
    """The module with all its weights, and the names of those that no file has."""
    # Eager attention: the attention rows are a signal, and the fused kernels do not return them.
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",
        local_files_only=True,
        output_loading_info=True,
    )
    module, loading = loaded
    return module.requires_grad_(False).eval(), tuple(sorted(loading["missing_keys"])), None


def _streamed_module(folder: Path) -> tuple[Any, tuple[str, ...], Checkpoint]:
    """The module without weights, and its files."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            f"model folder {folder}: is quantised already, and does not fit into memory as it is read otherwise; "
            "save it in bfloat16 or float32"
        )
    with torch.device("meta"):
        build: Any = AutoModelForCausalLM.from_config
        module = build(config, dtype=torch.float32, attn_implementation="eager")
    checkpoint = Checkpoint(folder, module)
    return module.requires_grad_(False).eval(), checkpoint.missing, checkpoint


def _attach(module: Any, checkpoint: Checkpoint, slots: tuple[Slot, ...], device: torch.device) -> None:
    """Let the module's layers be read when they run, and give it everything else now: all of it is small."""
    expected = {slot.name: module.get_parameter(slot.name).shape for slot in slots}
    _make_buffers(module)
    large = {slot.name for slot in slots}
    for name, parameter in list(module.named_parameters()):
        if name not in large:
            values = _of_shape(checkpoint.read(name), parameter.shape, name).clone()
            real = torch.nn.Parameter(values.to(device), requires_grad=False)
            for alias in checkpoint.aliases(name):
                path, _, attribute = alias.rpartition(".")
                module.get_submodule(path)._parameters[attribute] = real
    stored = module.state_dict().keys()
    for name, buffer in list(module.named_buffers()):
        if name in stored:
            path, _, attribute = name.rpartition(".")
            values = checkpoint.read(name).to(buffer.dtype)
            module.get_submodule(path)._buffers[attribute] = values.clone()
    for each in module.modules():
        for attribute, buffer in each._buffers.items():
            if buffer is not None:
                each._buffers[attribute] = buffer.to(device)

    def supply(slot: Slot) -> torch.Tensor:
        return _of_shape(checkpoint.read(slot.name), expected[slot.name], slot.name).to(device)

    stream(module, slots, supply)


def _make_buffers(module: Any) -> None:
    """What no file holds and the model computes from its config (rotary frequencies), as transformers makes it."""
    for name, buffer in list(module.named_non_persistent_buffers()):
        path, _, attribute = name.rpartition(".")
        owner = module.get_submodule(path)
        owner._buffers[attribute] = torch.empty_like(buffer, device="cpu")
        owner._is_hf_initialized = False
    module.initialize_weights()


def _of_shape(values: torch.Tensor, shape: torch.Size, name: str) -> torch.Tensor:
    if values.shape != shape:
        raise ModelError(
            f"model: {name}: expected {' x '.join(map(str, shape))} weights by config.json, the files have "
            f"{' x '.join(map(str, values.shape))}; config.json and *.safetensors are not of one model, save it anew"
        )
    return values


def _require_all(folder: Path, absent: tuple[str, ...]) -> None:
    """Raises ModelError when a weight is not in the files: transformers only warns, and draws it at random."""
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
    damaged = (name for name, values in _parameters(model) if not bool(torch.isfinite(values).all()))
    return tuple(dict.fromkeys(damaged))


def _parameters(model: LanguageModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter; of a streamed model one after the other, expert by expert."""
    if not model.streamed:
        yield from model.module.named_parameters()
        return
    inside = {slot.name: slot.layers for slot in slots_of(model.module, model.layers)}
    for name, values in model.module.named_parameters():
        if name not in inside:
            yield name, values
        for layer in inside.get(name, ()):
            yield name, model.weight(layer)


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
