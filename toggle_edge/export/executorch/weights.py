"""Compressed layers as torchao exports them: our own codes and scales, never quantised a second time.

Runs only in the process that lowers, since torchao lies in the overlay.
"""

from __future__ import annotations

from typing import Any

import executorch.exir.passes._quant_patterns_and_replacements  # noqa: F401  (registers the look-ups)
import torch
from torch.nn import functional
from torchao.quantization.quant_primitives import dequantize_affine
from torchao.quantization.quantize_.workflows.intx.intx_unpacked_to_int8_tensor import (
    _apply_int8_act_asym_per_token_quant_dequant as quantise_rows,
)

from toggle_edge.compress.quantise import CompressedLayer, dequantise
from toggle_edge.errors import ExportError


class Codes(torch.nn.Module):
    """An integer layer as torchao's `IntxUnpackedToInt8Tensor` holds it: int8 codes around zero, a scale per group.

    Parameters of a module of its own rather than that tensor class, so that they keep their names on the way through
    export; what they stand for is computed by the same function of torchao's. Codes of the last group's padding stay:
    they stand for zero. Raises ExportError when torchao reads other weights from them than were searched, bit for bit.
    """

    def __init__(self, layer: CompressedLayer) -> None:
        super().__init__()
        if layer.scales is None:
            raise ExportError(f"export: expected an integer layer, got {layer.format}")
        rows, groups, size = layer.codes.shape
        self.codes = kept(_signed(layer))
        self.scales = kept(layer.scales)
        self.register_buffer("zero_points", torch.zeros(rows, groups, dtype=torch.int8))
        self._block, self._range = (
            (1, size),
            (-(1 << layer.format.bits - 1), (1 << layer.format.bits - 1) - 1),
        )
        if not torch.equal(self()[:, : layer.columns], dequantise(layer)):
            raise ExportError("export: torchao reads other weights from these codes than were searched")

    def forward(self) -> torch.Tensor:
        return dequantize_affine(  # type: ignore[no-any-return]
            self.codes, self._block, self.scales, self.zero_points, torch.int8, *self._range
        )


class Multiplied(torch.nn.Module):
    """A matrix that activations are multiplied by. Integers meet int8 activations, each token's row quantised as it
    comes; float16 meets float16; float32 meets float32."""

    def __init__(self, layer: CompressedLayer, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.is_half = layer.codes.dtype == torch.float16
        self.weight: Any = kept(layer.codes) if layer.scales is None else Codes(layer)
        self._integer = layer.scales is not None
        self.narrows_activations = self._integer or self.is_half
        # Zeros on both sides add nothing, and change no row's least or largest value: the range reaches over zero.
        self._padding = layer.codes[0].numel() - layer.columns
        dtype = torch.float16 if self.is_half else torch.float32
        self.bias = None if bias is None else kept(bias.to(dtype))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        if self._padding:
            values = functional.pad(values, (0, self._padding))
        if self._integer:
            return functional.linear(quantise_rows(values), self.weight(), self.bias)
        if self.is_half:
            return functional.linear(values.half(), self.weight, self.bias).float()
        return functional.linear(values, self.weight, self.bias)


class LookedUp(torch.nn.Module):
    """An embedding; its rows come out in float32. Integer ones are packed as ExecuTorch's own operator reads them.

    Raises ExportError when that operator reads other weights than were searched, bit for bit.
    """

    def __init__(self, layer: CompressedLayer) -> None:
        super().__init__()
        self.bits = 0 if layer.scales is None else layer.format.bits
        if layer.scales is None:
            self.codes = kept(layer.codes)
            return
        signed = _signed(layer)
        packed = self.bits < 8
        self.codes = kept(
            torch.ops.quant_fusion._pack_embedding_weight(signed, self.bits) if packed else signed
        )
        self.scales = kept(layer.scales)
        if not torch.equal(self(torch.arange(layer.rows)), dequantise(layer)):
            raise ExportError("export: executorch looks up other weights in these codes than were searched")

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        if not self.bits:
            return functional.embedding(ids, self.codes).float()
        half = 1 << self.bits - 1
        operator = getattr(torch.ops.quantized_decomposed, _LOOKUPS[self.bits]).dtype
        return operator(self.codes, self.scales, None, -half, half - 1, ids, dtype=torch.float32)  # type: ignore[no-any-return]


_LOOKUPS = {2: "embedding_2bit", 4: "embedding_4bit", 8: "embedding_byte"}


def _signed(layer: CompressedLayer) -> torch.Tensor:
    """The codes around zero, `rows x groups * group`."""
    signed = layer.codes.to(torch.int16) - (1 << layer.format.bits - 1)
    return signed.to(torch.int8).reshape(layer.rows, -1)


def kept(values: torch.Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(values.detach().clone(), requires_grad=False)
