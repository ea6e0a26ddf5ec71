"""Rotary embeddings that transformers computes in complex numbers, in real ones: ONNX has no nodes for the former."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_FUNCTION = "apply_rotary_emb"
COMPLEX = ("deepseek_v2",)
"""Architectures whose module multiplies queries and keys by complex numbers, in a function of that name."""


class _Angles(torch.nn.Module):
    """Cosines and sines by position, `1 x tokens x half x 2`, in place of complex numbers."""

    def __init__(self, own: Any) -> None:
        super().__init__()
        self.frequencies, self.scaling = own.inv_freq.float(), float(own.attention_scaling)

    def forward(self, _: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        angles = position_ids[..., None].float() * self.frequencies
        return torch.stack((angles.cos(), angles.sin()), -1) * self.scaling


def _rotate(
    queries: torch.Tensor, keys: torch.Tensor, angles: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate neighbouring channels of queries and keys, `batch x heads x tokens x size`."""
    cosine, sine = angles.unsqueeze(1).unbind(-1)

    def turned(value: torch.Tensor) -> torch.Tensor:
        even, odd = value.reshape(*value.shape[:-1], -1, 2).unbind(-1)
        return torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), -1).flatten(3)

    return turned(queries), turned(keys)


@contextmanager
def real_rotations(module: Any) -> Iterator[None]:
    """Within it, a model that rotates in complex numbers does so in real ones; any other is as it was.

    The model itself stays changed; what it shares with others of its architecture does not.
    """
    if module.config.model_type not in COMPLEX:
        yield
        return
    for name, each in list(module.named_modules()):
        # Frequencies that depend on the text are left to torch, which says that it cannot trace them.
        if name.endswith("rotary_emb") and each.rope_type not in ("dynamic", "longrope"):
            module.set_submodule(name, _Angles(each))
    source: Any = sys.modules[type(module).__module__]
    own = getattr(source, _FUNCTION)
    setattr(source, _FUNCTION, _rotate)
    try:
        yield
    finally:
        setattr(source, _FUNCTION, own)
