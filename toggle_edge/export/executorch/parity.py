"""Parity: the program, with the files that will ship, computes what torchao's reference of the same codes computes.

Runs only in the process that lowers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import executorch.kernels.quantized  # noqa: F401  (registers the look-ups with the runtime)
import torch
from executorch.exir._serialize.data_serializer import DataPayload
from executorch.extension.flat_tensor.serialize.serialize import FlatTensorConfig, FlatTensorSerializer
from executorch.extension.pybindings import portable_lib
from toggle_runtime.canary import HALF_TOLERANCE, LEAST_SHARE, TOLERANCE, tolerance_of

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
        self._paths = str(folder / "model.pte"), str(scratch / "all.ptd")
        Path(self._paths[1]).write_bytes(content)
        portable_lib._unsafe_reset_threadpool(1)
        self._module: Any = portable_lib._load_for_executorch(*self._paths)

    def fresh(self) -> Program:
        """The same with an empty cache."""
        other = copy.copy(self)
        other._module = portable_lib._load_for_executorch(*self._paths)
        return other

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
    between two, and attention hands that on to all later tokens: torchao's reference differs so from itself when it
    reads the same text in other parts. So above `TOLERANCE` a program with such activations passes where short texts,
    of which many meet no such value, show that it computes the same (`exact_share`, the second figure, else None), and
    the long one differs by no more than what quantising changes. `logits` are those of the searched weights.
    Raises ParityError otherwise, or when anything is not finite.
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
    differences["attention rows and hidden states"] = worst(map(difference, found[1:], expected[1:]))
    largest = worst(differences.values())
    if not math.isfinite(largest) or largest <= TOLERANCE or not decoder.quantises_activations:
        return _within(TOLERANCE, differences, "torchao's"), None
    noise = MOST_NOISE * _size(expected[0] - logits)
    if decoder.has_halves:
        noise = max(noise, HALF_TOLERANCE * _size(expected[0]))
    for path, run in runs.items():
        if not _size(run - expected[0]) <= noise:
            raise ParityError(
                f"executorch: expected logits of {path} within {noise:.3g} of torchao's (root mean square; what "
                f"rounding activations changes), got {_size(run - expected[0]):.3g}; the program is not what was "
                "searched and must not ship"
            )
    return largest, exact_share(program, decoder, ids)


MOST_NOISE = 2.0
"""Of what quantising activations changes: two roundings that have nothing in common differ by its square root."""

LENGTHS, TEXTS = (1, 2, 4), 12
"""Lengths of short texts, and how many there are, of which `LEAST_SHARE` must be exact. One wrong code leaves none."""


def exact_share(program: Program, decoder: Decoder, ids: torch.Tensor) -> float:
    """The share of short texts, at positions all over the cache, on which decoding and the signals' method compute what
    torchao computes, within `tolerance_of` their logits. Raises ParityError where it is too small, or a text of one
    token is all."""
    exact = []
    for number in range(TEXTS):
        length = LENGTHS[number % len(LENGTHS)]
        start = number * (decoder.capacity - max(LENGTHS)) // (TEXTS - 1)
        text = ids[torch.arange(number, number + length) % len(ids)]
        places = torch.arange(start, start + length)
        with torch.inference_mode():
            decoding = Decoding(decoder)
            cached = [decoding(text[None, at : at + 1], places[at : at + 1]) for at in range(length)]
            expected = Signals(decoder)(text[None], places)
        fresh = program.fresh()
        found = [fresh.run(FORWARD, text[at : at + 1], start + at)[0] for at in range(length)]
        found += fresh.run(SIGNALS, text, start)
        differences = map(difference, found, [*cached, *expected])
        tolerance = tolerance_of(expected[0].numpy(), is_half=decoder.has_halves)
        if worst(differences) <= tolerance:
            exact.append(length)
    if len(exact) < LEAST_SHARE * TEXTS or max(exact) == 1:
        raise ParityError(
            f"executorch: expected torchao's values within {tolerance:.3g} on {LEAST_SHARE:.0%} of {TEXTS} short "
            f"texts, got them on {len(exact)}; the program is not what was searched, or too wide for this to show"
        )
    return len(exact) / TEXTS


def _size(values: torch.Tensor) -> float:
    return float(values.double().square().mean().sqrt())


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest absolute one, NaN where anything is."""
    return float((found.double() - expected.double()).abs().max())


def worst(differences: Iterable[float]) -> float:
    """The largest, NaN where any is: `max` would keep whatever came before a NaN."""
    found = list(differences)
    return math.nan if any(map(math.isnan, found)) else max(found)


def _within(tolerance: float, differences: dict[str, float], whose: str) -> float:
    for path, found in differences.items():
        if not found <= tolerance:
            raise ParityError(
                f"executorch: expected values within {tolerance} of {whose} in {path}, got a difference of "
                f"{found:.3g}; the program is not what was searched and must not ship"
            )
    return worst(differences.values())
