"""What the onnxruntime that a target names has, as far as graphs differ. A further version is a row in `KERNELS`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Kernels:
    """What a target's onnxruntime has kernels for beyond what all of them have: GatherBlockQuantized, attention rows
    as an output. `joint`: queries, keys and values come from one matrix where they can. `opset` is the newest that it
    reads. `beside` is how many tokens a window of attention has beside those that its size counts: 1 before the token
    itself was counted."""

    lookups: bool = True
    rows: bool = True
    joint: bool = True
    opset: int = 23
    beside: int = 0


KERNELS: Mapping[str, Kernels] = {
    "onnx-cpu": Kernels(),
    "onnx-cpu-1.23": Kernels(beside=1),
    "onnx-cpu-1.19": Kernels(lookups=False, rows=False, opset=21),
    # CUDA's GroupQueryAttention does not hand out its rows.
    # That joining is faster there was not measured: it stays as the builder makes it.
    "onnx-cuda": Kernels(rows=False, joint=False),
}
