"""What passes by in a forward pass: attention rows and hidden states, layer by layer, seen and let go.

transformers can return all of them, and then holds all of them: layers x heads x tokens x tokens per probe. With hooks
each layer's are looked at while they exist, so that one layer's are held at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from toggle_edge.errors import ModelError

OnLayer = Callable[[int, torch.Tensor], None]


@contextmanager
def recording(module: torch.nn.Module, on_attention: OnLayer, on_hidden: OnLayer) -> Iterator[None]:
    """Within it, each forward pass calls `on_attention(layer, weights)` with batch x heads x tokens x tokens, and
    `on_hidden(layer, states)` with batch x tokens x width: the output of each block, for the last one that of the
    final norm, or its own where what follows changes the width (a projection to narrower embeddings).

    Raises ModelError for a model that does not say where it computes them, or attention that is not eager.
    """
    attentions, blocks = _modules(module, "attentions"), _modules(module, "hidden_states")
    if not blocks or len(attentions) != len(blocks):
        raise ModelError(
            f"model: expected one attention module in each block, found {len(attentions)} in {len(blocks)} blocks of "
            f"{type(module).__name__}"
        )

    def attention_hook(layer: int, index: int) -> Callable[..., None]:
        def see(_: torch.nn.Module, __: object, output: Any) -> None:
            weights = output[index] if isinstance(output, tuple) and len(output) > index else None
            if weights is None:
                raise ModelError(
                    f"model: attention of layer {layer} gives no weights; load it with eager attention"
                )
            on_attention(layer, weights)

        return see

    def block_hook(layer: int) -> Callable[..., None]:
        def see(_: torch.nn.Module, __: object, output: Any) -> None:
            on_hidden(layer, output[0] if isinstance(output, tuple) else output)

        return see

    ends: list[torch.Tensor] = []

    def last_block_hook(_: torch.nn.Module, __: object, output: Any) -> None:
        ends[:] = [output[0] if isinstance(output, tuple) else output]

    def end_hook(_: torch.nn.Module, __: object, output: Any) -> None:
        own = ends.pop()
        on_hidden(len(blocks) - 1, output[0] if output[0].shape == own.shape else own)

    hooks = [
        each.register_forward_hook(attention_hook(i, index)) for i, (each, index) in enumerate(attentions)
    ]
    hooks += [each.register_forward_hook(block_hook(i)) for i, (each, _) in enumerate(blocks[:-1])]
    hooks.append(blocks[-1][0].register_forward_hook(last_block_hook))
    hooks.append(_holder(module, blocks[-1][0]).register_forward_hook(end_hook))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def block_streams(
    module: torch.nn.Module, see: Callable[[int, torch.Tensor, torch.Tensor], None]
) -> Iterator[None]:
    """Within it, each forward pass calls `see(block, input, output)` with batch x tokens x width for every block."""

    def hook(block: int) -> Callable[..., None]:
        def watch(_: torch.nn.Module, given: tuple[Any, ...], output: Any) -> None:
            see(block, given[0], output[0] if isinstance(output, tuple) else output)

        return watch

    blocks = _modules(module, "hidden_states")
    hooks = [each.register_forward_hook(hook(index)) for index, (each, _) in enumerate(blocks)]
    try:
        yield
    finally:
        for each in hooks:
            each.remove()


def _holder(module: torch.nn.Module, block: torch.nn.Module) -> torch.nn.Module:
    """The module that runs the list of blocks. Not every model's head calls `base_model`: OPT's goes past it."""
    name = next(name for name, each in module.named_modules() if each is block)
    return module.get_submodule(".".join(name.split(".")[:-2]))


def _modules(module: Any, kind: str) -> list[tuple[torch.nn.Module, int]]:
    """The modules that compute a kind of output, in forward order, and where in their output it is."""
    declared: Any = (getattr(module, "_can_record_outputs", None) or {}).get(kind)
    if declared is None:
        return []
    recorder = not isinstance(declared, type)
    target = declared.target_class if recorder else declared
    index = declared.index if recorder else int(kind == "attentions")
    place = (declared.layer_name or "").strip(".") if recorder else ""
    return [
        (each, index)
        for name, each in module.named_modules()
        if isinstance(each, target) and (not place or f".{place}." in f".{name}.")
    ]
