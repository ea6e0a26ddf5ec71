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


def check_program(
    program: Program, decoder: Decoder, tokens: tuple[int, ...], prompt: int, logits: torch.Tensor
) -> tuple[float, float | None]:
    """The largest absolute difference to torchao's reference: logits of one prefill and of decoding from the cache, and
    all that the signals' method gives.

    Activations that are quantised as they come turn a difference of 1e-7 into one of a whole step where a value lies
    between two, and that goes on from block to block. So above `TOLERANCE` a program with such activations passes only
    where that explains it (`explained`); the second figure is then what it differs by block for block, else None.
    `logits` are those of the searched weights. Raises ParityError otherwise, or when anything is not finite.
    """
    ids, places = torch.tensor(tokens), torch.arange(len(tokens))
    with torch.inference_mode():
        expected = Signals(decoder)(ids[None], places)
    found = program.run(SIGNALS, ids)
    runs = {
        "prefill": program.run(FORWARD, ids)[0],
        "cached decode": program.logits(ids, prompt),
        "the signals' logits": found[0],
    }
    differences = {path: difference(run, expected[0]) for path, run in runs.items()}
    rest = max(map(difference, found[1:], expected[1:]))
    largest = max(*differences.values(), rest)
    if largest <= TOLERANCE or not decoder.quantises_activations:
        differences["attention rows and hidden states"] = rest
        return _within(TOLERANCE, differences, "torchao's"), None
    noise = _size(expected[0] - logits)
    for path, run in runs.items():
        share = _size(run - expected[0]) / noise
        if not share <= NOISE_SHARE:
            raise ParityError(
                f"executorch: expected logits of {path} to differ from torchao's by at most {NOISE_SHARE} of what "
                f"quantised activations change, got {share:.3g}; the program is not what was searched"
            )
    _require_exact_start(program, decoder, ids)
    return max(differences.values()), explained(found, decoder, ids)


NOISE_SHARE = 0.25
"""Of the root mean square that quantising activations changes in logits, what rounding may change."""

START_TOKENS, STARTS = 4, 8
"""Texts so short that most of them meet no rounding between two steps, and how many are tried for one that does not."""


def explained(found: list[torch.Tensor], decoder: Decoder, ids: torch.Tensor) -> float:
    """The largest over blocks of what the median token's state, and attention row, differs by when torchao's block
    reads the program's own state before it, so that nothing goes on from block to block.

    A wrong weight changes every token; a value between two steps changes the token that it is in, a little. So the
    median has to be within `TOLERANCE` of what is there (and at least of 1), else this raises ParityError.
    """
    places, count = torch.arange(len(ids)), len(decoder.blocks)
    rows, states, worst = found[1 : 1 + count], found[1 + count :], 0.0
    with torch.inference_mode():
        stream, place = decoder.begin(ids[None], places, places)
        for number, block in enumerate(decoder.blocks):
            after, seen = block(stream, place, lambda key, value: (key, value))
            after = decoder.norm(after) if number == count - 1 else after
            stream = states[number]
            by_row = (rows[number] - seen).abs().amax(-1).view(-1, len(ids)).amax(0)
            by_token = torch.maximum(_relative(stream, after)[0], by_row)
            worst = max(worst, float(by_token.double().median()) if by_token.isfinite().all() else torch.nan)
            if not worst <= TOLERANCE:
                raise ParityError(
                    f"executorch: block {number}: expected most tokens within {TOLERANCE} of torchao's block, got a "
                    f"median difference of {worst:.3g}; the program is not what was searched and must not ship"
                )
        head = _relative(found[0], decoder.head(states[-1]))[0]
    return _within(TOLERANCE, {"the head": max(worst, float(head.median()))}, "torchao's")


def _require_exact_start(program: Program, decoder: Decoder, ids: torch.Tensor) -> None:
    """Decoding from the cache, exactly: some short texts meet no value between two steps."""
    least = torch.inf
    for start in range(0, START_TOKENS * STARTS, START_TOKENS):
        short = ids[start : start + START_TOKENS]
        if len(short) > 1:
            with torch.inference_mode():
                expected = Decoding(decoder)(short[None], torch.arange(len(short)))
            least = min(least, difference(program.logits(short, 1), expected))
    _within(TOLERANCE, {f"all of {STARTS} short texts decoded from the cache": least}, "torchao's")


def _relative(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """By token, the largest difference over the largest value there, or over 1."""
    return (found - expected).abs().amax(-1) / expected.abs().amax(-1).clamp(min=1)


def _size(values: torch.Tensor) -> float:
    return float(values.double().square().mean().sqrt())


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
