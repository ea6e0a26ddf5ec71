"""A graph of any model of transformers, by `torch.onnx.export`: its layers as stand-ins, its attention fused.

transformers lets an attention be registered by name; ours is a GroupQueryAttention node over the caches that the other
graphs have. So the graph takes and gives what they do: shared buffers, attention rows as an output of the same node.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from toggle_runtime.records import ModelShape
from transformers import AttentionInterface
from transformers.cache_utils import Cache

from toggle_edge.errors import ExportError
from toggle_edge.export.attention import EVERYWHERE
from toggle_edge.export.rotations import real_rotations
from toggle_edge.export.skeleton import ATTENTION_MASK, INPUT_IDS, LOGITS, cache_names
from toggle_edge.export.standins import put_in
from toggle_edge.model.load import load_model
from toggle_edge.model.recording import recording

OPSET = 21
"""The newest that every target reads. What 23 has beyond it, its Attention, is the fused node here."""

HIDDEN = "hidden.{}"
"""What the traced graph calls the hidden states after a block."""

_FUSED = "toggle_edge_fused"


class _Past(Cache):
    """Keeps nothing, since the fused attention does; says how many tokens came before."""

    def __init__(self, tokens: Any) -> None:
        super().__init__(layers=[])
        self.tokens = tokens

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return key_states, value_states

    def get_seq_length(self, *_: object) -> Any:
        return self.tokens


class _Traced(torch.nn.Module):
    """The graph's inputs -> logits, hidden states after each block, and the caches as they are then."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module
        self.past: Sequence[Sequence[torch.Tensor]] = ()
        self.present: dict[int, Sequence[torch.Tensor]] = {}
        self.total: Any = 0
        self.lengths: Sequence[torch.Tensor] = ()

    def forward(
        self, ids: torch.Tensor, mask: torch.Tensor, past: Sequence[Sequence[torch.Tensor]]
    ) -> tuple[Any, ...]:
        new, self.total = ids.shape[1], mask.shape[1]
        last = (mask.sum(1) - 1).to(torch.int32)
        self.lengths = last, torch.scalar_tensor(self.total, dtype=torch.int32)
        self.past, self.present = past, {}
        positions = (torch.arange(new) + (self.total - new)).unsqueeze(0)
        hidden: dict[int, torch.Tensor] = {}
        # What a hidden state is, is said in one place: there where a search looks at them.
        with recording(self.module, lambda *_: None, hidden.__setitem__):
            found = self.module(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=_Past(self.total - new),
                use_cache=True,
            )
        blocks = range(len(past))
        return found.logits, [hidden[block] for block in blocks], [self.present[block] for block in blocks]

    def attend(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        *,
        scaling: float,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **_: object,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """transformers' interface: queries, keys and values `batch x heads x tokens x size`, of the new tokens only.

        What it wants as rows is anything: the graph's come from the node, not from here.
        """
        (batch, heads, tokens, size), groups, width = query.shape, key.shape[1], value.shape[-1]
        # The kernel has one size for all three; zeros add nothing.
        value = torch.nn.functional.pad(value, (0, size - width)) if width < size else value
        rows = [each.transpose(1, 2).reshape(batch, tokens, -1) for each in (query, key, value)]
        attributes: dict[str, Any] = {
            "num_heads": heads,
            "kv_num_heads": groups,
            "scale": float(scaling),
            "do_rotary": 0,
            "local_window_size": EVERYWHERE if sliding_window is None else int(sliding_window),
            **({} if softcap is None else {"softcap": float(softcap)}),
        }
        cached = [batch, groups, self.total, size]
        found, *present = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::GroupQueryAttention",
            [*rows, *self.past[module.layer_idx], *self.lengths],
            attributes,
            dtypes=[torch.float32] * 3,
            shapes=[[batch, tokens, heads * size], cached, cached],
            version=1,
        )
        self.present[module.layer_idx] = present
        mixed = found.reshape(batch, tokens, heads, size)[..., :width]
        return mixed, mixed


def traced(folder: Path, shape: ModelShape) -> onnx.ModelProto:
    """The graph of the model in `folder` with stand-ins for its layers, named as the backend names inputs and outputs.

    Raises ExportError where it cannot be traced.
    """
    # Streamed: of the matrices that stand-ins replace nothing is read.
    model = load_model(folder, streamed=True)
    module: Any = model.module
    put_in(module, model.layers)
    whole = _Traced(module).eval()
    AttentionInterface.register(_FUSED, whole.attend)
    caches = [[_zeros(shape) for _ in range(2)] for _ in range(shape.layers)]
    dynamic = torch.export.Dim.DYNAMIC
    hidden = [HIDDEN.format(block) for block in range(shape.layers)]
    try:
        module.set_attn_implementation(_FUSED)
        with _quiet(), torch.no_grad(), real_rotations(module):
            program = torch.onnx.export(
                whole,
                (torch.zeros(2, 3, dtype=torch.int64), torch.ones(2, 7, dtype=torch.int64), caches),
                dynamo=True,
                opset_version=OPSET,
                verbose=False,
                optimize=True,
                external_data=False,
                input_names=[INPUT_IDS, ATTENTION_MASK, *cache_names(shape, "past_key_values")],
                output_names=[LOGITS, *hidden, *cache_names(shape, "present")],
                dynamic_shapes=(
                    {0: dynamic, 1: dynamic},
                    {0: dynamic, 1: dynamic},
                    [[{0: dynamic, 2: dynamic}] * 2] * shape.layers,
                ),
            )
    except ExportError:
        raise
    except Exception as exc:  # of torch, onnxscript and transformers, each with its own
        first = next(iter(str(exc).splitlines()), "no message")
        raise ExportError(
            f"export of {folder}: torch cannot trace it: {type(exc).__name__}: {first}; its rotary or routing "
            "settings may be ones that depend on the text"
        ) from exc
    if program is None:
        raise ExportError(f"export of {folder}: torch.onnx.export gave no graph")
    return program.model_proto


def _zeros(shape: ModelShape) -> torch.Tensor:
    return torch.zeros(2, shape.kv_heads, 4, shape.head_size)


@contextmanager
def _quiet() -> Iterator[None]:
    """torch says what it lacks for other models and which of its own calls are old; nothing of it concerns users."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
