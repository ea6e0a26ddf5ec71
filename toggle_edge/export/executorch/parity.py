"""Parity: the program, with the files that will ship, computes what torchao's reference of the same codes computes.

Runs only in the process that lowers.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import executorch.kernels.quantized  # noqa: F401  (registers the look-ups with the runtime)
import torch
from executorch.exir._serialize.data_serializer import DataPayload
from executorch.extension.flat_tensor.serialize.serialize import FlatTensorConfig, FlatTensorSerializer
from executorch.extension.pybindings import portable_lib
from toggle_runtime.canary import TOLERANCE

from toggle_edge.errors import ParityError
from toggle_edge.export.executorch.decoder import Decoder, Decoding, Signals
from toggle_edge.export.executorch.programs import FORWARD, SIGNALS


class Reference(torch.nn.Module):
    """The decoder in eager torch, called as transformers' modules are, a row of tokens at a time."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self._signals = Signals(decoder)

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> SimpleNamespace:
        places = torch.arange(input_ids.shape[1])
        rows = [self._signals(row[None], places)[0] for row in input_ids]
        return SimpleNamespace(logits=torch.cat(rows))


class Program:
    """An artifact's program as the runtime runs it. Its Python binding takes one data file, so the layers' files are
    put together for it; what is compared are the bytes that ship."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        content = merged(sorted((folder / "weights").glob("*.ptd")))
        (scratch / "all.ptd").write_bytes(content)
        portable_lib._unsafe_reset_threadpool(1)
        self._module: Any = portable_lib._load_for_executorch(
            str(folder / "model.pte"), str(scratch / "all.ptd")
        )

    def run(self, method: str, ids: torch.Tensor, start: int = 0) -> list[torch.Tensor]:
        inputs = (ids[None].contiguous(), torch.arange(start, start + len(ids)))
        return [each.clone() for each in self._module.run_method(method, inputs)]

    def logits(self, ids: torch.Tensor, prompt: int) -> torch.Tensor:
        """The prompt in one prefill, the rest one by one from the cache."""
        rows = [self.run(FORWARD, ids[:prompt])[0]]
        rows += [self.run(FORWARD, ids[at : at + 1], at)[0] for at in range(prompt, len(ids))]
        return torch.cat(rows, 1)


def merged(files: list[Path]) -> bytes:
    """The content of several data files as one."""
    serializer = FlatTensorSerializer(FlatTensorConfig())
    buffers: list[bytes] = []
    named: dict[str, Any] = {}
    for file in files:
        part = serializer.deserialize(file.read_bytes())
        for key, entry in part.named_data.items():
            entry.buffer_index += len(buffers)
            named[key] = entry
        buffers += part.buffers
    return bytes(serializer.serialize(DataPayload(buffers=buffers, named_data=named)))


def check_decoder(decoder: Decoder, tokens: tuple[int, ...], logits: torch.Tensor) -> float:
    """The largest absolute difference of the logits of a decoder with the searched weights to those that the model's
    own modules compute. Raises ParityError above `TOLERANCE`: the architecture is not the one that was written out."""
    with torch.inference_mode():
        found = Reference(decoder)(torch.tensor([tokens])).logits[0]
    return _within(TOLERANCE, {"the decoder that is lowered": difference(found, logits)}, "the model's")


def check_program(program: Program, decoder: Decoder, tokens: tuple[int, ...], prompt: int) -> float:
    """The largest absolute difference to torchao's reference, in one prefill, in decoding from the cache, and in the
    signals' method with all its outputs. Raises ParityError above `TOLERANCE`, or when anything is not finite."""
    ids, places = torch.tensor(tokens), torch.arange(len(tokens))
    with torch.inference_mode():
        cached = Decoding(decoder)(ids[None], places)
        expected = Signals(decoder)(ids[None], places)
    found = program.run(SIGNALS, ids)
    differences = {
        "prefill": difference(program.run(FORWARD, ids)[0], cached),
        "cached decode": difference(program.logits(ids, prompt), cached),
        "the signals' logits": difference(found[0], expected[0]),
        "attention rows and hidden states": max(map(difference, found[1:], expected[1:])),
    }
    return _within(TOLERANCE, differences, "torchao's")


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest absolute one, NaN where anything is."""
    return float((found.double() - expected.double()).abs().max())


def _within(tolerance: float, differences: dict[str, float], whose: str) -> float:
    for path, found in differences.items():
        if not found <= tolerance:
            raise ParityError(
                f"executorch: expected values within {tolerance} of {whose} in {path}, got a difference of "
                f"{found:.3g}; the program is not what was searched and must not ship"
            )
    return max(differences.values())
