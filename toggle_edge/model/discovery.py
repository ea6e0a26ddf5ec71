"""A built model's layers, by the registry or, for an architecture that is not in it, by what is found.

Names and sizes come from the model itself, never from its config's numbers, so they cannot differ from it. Every matrix
must be a layer or be kept on purpose: one that is neither would silently stay uncompressed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch

from toggle_edge.errors import ModelError
from toggle_edge.model.architectures import ARCHITECTURES, SAME_INPUT, Architecture
from toggle_edge.model.layers import Layer
from toggle_edge.model.placement import device_of
from toggle_edge.model.recording import recording
from toggle_edge.model.weights import Matrix, matrices_of, weight_of

OTHER = "other"
"""The role of a discovered layer whose name says nothing."""

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_EXPERT = re.compile(r"\.experts\.(\d+)\.")
_ROUTERS = ("gate", "router", "shared_expert_gate")
_PROBE_TOKENS = 4


def layers_of(module: torch.nn.Module) -> tuple[Layer, ...]:
    """The compressible layers of a causal language model, in forward order.

    Raises ModelError when a matrix is neither a layer nor kept, or has an unexpected shape, and for an unknown
    architecture whose attention maps and hidden states cannot be had: signals need both.
    """
    kind, matrices = _config(module).model_type, tuple(matrices_of(module))
    known = ARCHITECTURES.get(kind)
    architecture = known or _discovered(module, matrices)
    strays = [
        each for each in matrices if _pattern(each.name) not in {*architecture.roles, *architecture.kept}
    ]
    if strays:
        raise ModelError(
            f"model architecture {kind}: expected every matrix to be a layer or known to stay as it is, found "
            f"{_listed(strays)}, which is neither; {_found(module, matrices, architecture)}"
        )
    layers = tuple(
        layer
        for each in matrices
        if (role := architecture.roles.get(_pattern(each.name))) is not None
        for layer in _layers(module, each, role)
    )
    for layer in layers:
        weight_of(module, layer)
    missing = {"embedding"} - {layer.role for layer in layers}
    if missing or not any(_NUMBER.search(layer.name) for layer in layers):
        raise ModelError(
            f"model architecture {kind}: expected an embedding and blocks with layers; "
            f"{_found(module, matrices, architecture)}"
        )
    if not any(parameter.is_meta for parameter in module.parameters()):
        require_signals(module)
    return layers


def require_signals(module: torch.nn.Module) -> None:
    """Raises ModelError for an architecture that is not in the registry unless a forward pass shows attention maps and
    hidden states of every block. `layers_of` asks for it, unless the module has no weights yet."""
    kind, matrices = _config(module).model_type, tuple(matrices_of(module))
    if kind not in ARCHITECTURES:
        _require_signals(module, _found(module, matrices, _discovered(module, matrices)))


def _layers(module: torch.nn.Module, matrix: Matrix, role: str) -> Iterator[Layer]:
    """The layer that a matrix is, or one for each expert in it."""
    parent = matrix.name.rpartition(".")[0]
    group = f"{parent}.{SAME_INPUT[role]}" if role in SAME_INPUT else ""
    if len(matrix.shape) == 2:
        rows, columns = matrix.shape
        multiplied = role != "embedding" or _is_tied(module)
        number = _EXPERT.search(matrix.name)
        if number is None:
            yield Layer(matrix.name, role, rows, columns, multiplied, group)
        else:
            experts = sum(1 for _ in module.get_submodule(matrix.name[: number.start(1) - 1]).children())
            activity = _activity(module, matrix.name, experts)
            yield Layer(matrix.name, role, rows, columns, multiplied, group, int(number[1]), activity)
        return
    # Some implementations multiply from the other side; they say so.
    if len(matrix.shape) != 3 or getattr(matrix.owner, "is_transposed", False):
        raise ModelError(
            f"model: {matrix.name}: expected experts x outputs x inputs, got {' x '.join(map(str, matrix.shape))} in "
            f"{type(matrix.owner).__name__}; this storage of experts cannot be compressed yet"
        )
    experts, rows, columns = matrix.shape
    activity = _activity(module, matrix.name, experts)
    for expert in range(experts):
        yield Layer(f"{matrix.name}.{expert}", role, rows, columns, expert=expert, activity=activity)


def _activity(module: torch.nn.Module, name: str, experts: int) -> float:
    """Active experts over all. Raises ModelError where the model's config does not say how many are active."""
    active = getattr(_config(module), "num_experts_per_tok", None)
    if not isinstance(active, int) or not 1 <= active <= experts:
        raise ModelError(
            f"model: {name}: expected num_experts_per_tok between 1 and {experts} in config.json, got {active!r}"
        )
    return active / experts


_WELL_KNOWN = {
    **{
        f"{module}.{name}": "o"
        for module in ("attn", "self_attn", "attention")
        for name in ("c_proj", "dense")
    },
    "mlp.c_proj": "down",
    **dict.fromkeys(("q_proj", "query", "wq"), "q"),
    **dict.fromkeys(("k_proj", "key", "wk"), "k"),
    **dict.fromkeys(("v_proj", "value", "wv"), "v"),
    **dict.fromkeys(("qkv_proj", "query_key_value", "c_attn", "Wqkv", "qkv"), "qkv"),
    **dict.fromkeys(("o_proj", "out_proj", "wo"), "o"),
    **dict.fromkeys(("gate_proj", "w1"), "gate"),
    **dict.fromkeys(("up_proj", "w3", "fc1", "c_fc", "dense_h_to_4h"), "up"),
    **dict.fromkeys(("gate_up_proj",), "gate_up"),
    **dict.fromkeys(("down_proj", "w2", "fc2", "dense_4h_to_h"), "down"),
}


def _discovered(module: Any, matrices: tuple[Matrix, ...]) -> Architecture:
    """Roles of what multiplies inside the blocks, of embedding and head; other embeddings and routers are kept."""
    embedding, head = module.get_input_embeddings(), module.get_output_embeddings()
    roles, kept = {}, set()
    for each in matrices:
        pattern, (parent, last) = _pattern(each.name), ("." + each.name).split(".")[-2:]
        if each.owner is embedding:
            roles[pattern] = "embedding"
        elif each.owner is head:
            roles[pattern] = "head"
        elif isinstance(each.owner, torch.nn.Embedding) or (last in _ROUTERS and len(each.shape) == 2):
            kept.add(pattern)
        elif each.multiplies and _NUMBER.search(each.name):
            roles[pattern] = _WELL_KNOWN.get(f"{parent}.{last}") or _WELL_KNOWN.get(last, OTHER)
    return Architecture(roles, frozenset(kept))


def _require_signals(module: Any, found: str) -> None:
    """Raises ModelError unless a forward pass shows attention maps and hidden states of every block."""
    config = _config(module)
    attention: dict[int, tuple[int, ...]] = {}
    hidden: dict[int, tuple[int, ...]] = {}
    tokens = torch.zeros(1, _PROBE_TOKENS, dtype=torch.long, device=device_of(module))
    try:
        with (
            torch.inference_mode(),
            recording(
                module,
                lambda layer, weights: attention.update({layer: tuple(weights.shape)}),
                lambda layer, states: hidden.update({layer: tuple(states.shape)}),
            ),
        ):
            module(input_ids=tokens, use_cache=False)
    except Exception as exc:  # an unknown model's code may raise anything
        raise ModelError(
            f"model architecture {config.model_type}: expected attention maps and hidden states from a forward pass, "
            f"got {type(exc).__name__}: {exc}; {found}"
        ) from exc
    blocks = set(range(config.num_hidden_layers))
    square = all(
        len(shape) == 4 and shape[2:] == (_PROBE_TOKENS, _PROBE_TOKENS) for shape in attention.values()
    )
    if set(attention) != blocks or set(hidden) != blocks or not square:
        raise ModelError(
            f"model architecture {config.model_type}: expected attention maps (heads x tokens x tokens) and hidden "
            f"states of {len(blocks)} blocks, got attention of {len(attention)} and hidden states of {len(hidden)}; "
            f"{found}"
        )


def _found(module: torch.nn.Module, matrices: tuple[Matrix, ...], architecture: Architecture) -> str:
    roles = {_pattern(each.name): architecture.roles.get(_pattern(each.name)) for each in matrices}
    named = ", ".join(f"{name} ({role or 'no layer'})" for name, role in roles.items())
    return f"found {named or 'no matrices'}; known architectures are {', '.join(ARCHITECTURES)}"


def _listed(matrices: list[Matrix]) -> str:
    more = f" and {len(matrices) - 3} more" if len(matrices) > 3 else ""
    return ", ".join(each.name for each in matrices[:3]) + more


def _pattern(name: str) -> str:
    return _NUMBER.sub("*", name)


def _is_tied(module: Any) -> bool:
    head = module.get_output_embeddings()
    return head is not None and head.weight is module.get_input_embeddings().weight


def _config(module: Any) -> Any:
    return module.config.get_text_config()
