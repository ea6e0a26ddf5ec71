"""Format and Config: how each layer's weights are stored. Pure data, no torch.

A `Format` parses from and prints as text: `fp16`, `int4-g32`, `int8-axis`, `int2-g64-asym`. A `Config` gives every
layer of a model its format; its digest names it everywhere (store, bundle, report).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from toggle_edge.errors import ConfigError

SCALE_BITS = 32
"""Each group's scale is stored as float32, as MatMulNBits reads it beside float32 activations."""

AXIS = -1
"""The `group` of a format with one scale for a whole row (output channel)."""

KERNEL_BITS = (2, 4, 8)
"""Bits per code that targets' kernels read, in groups, with zero-points or without."""

QUANTISERS = ("rtn", "lsq", "seq", "hqq", "importance", "gptq")
"""How codes and scales may be chosen; `compress.quantise` has what is behind the names."""

_TEXT = re.compile(r"int([2-9]|1[0-6])-(?:axis|g(16|32|64|128|256))(-asym)?")
_FLOATS = {"fp16": 16, "fp32": 32}


@dataclass(frozen=True, slots=True, order=True)
class Format:
    """How one layer's weights are stored: `bits` per code, one scale per `group` inputs or, with `AXIS`, per row.

    `fp16` and `fp32` have 16 and 32 bits and group 0. An integer code `c` stands for `(c - z)` scales: `z` is
    `2**(bits-1)` in symmetric formats, and in `asymmetric` ones a zero-point per group, itself a code, so that zero
    is always stored exactly. Not every format has a kernel on every target; exporters refuse the others.
    """

    bits: int
    group: int = 0
    asymmetric: bool = False

    def __str__(self) -> str:
        if self.is_float:
            return f"fp{self.bits}"
        grain = "axis" if self.group == AXIS else f"g{self.group}"
        return f"int{self.bits}-{grain}" + ("-asym" if self.asymmetric else "")

    @classmethod
    def parse(cls, text: str) -> Format:
        """Read a format's text. Raises ConfigError on anything else."""
        if text in _FLOATS:
            return cls(_FLOATS[text])
        match = _TEXT.fullmatch(text)
        if match is None:
            raise ConfigError(
                "format: expected fp32, fp16, or int2 to int16 with -axis or -g16|-g32|-g64|-g128|-g256 and, for a "
                f"zero-point per group, -asym (as in int4-g32, int8-axis, int2-g64-asym), got {text!r}"
            )
        return cls(int(match[1]), int(match[2] or AXIS), match[3] is not None)

    @property
    def is_float(self) -> bool:
        return self.group == 0

    def group_size(self, columns: int) -> int:
        """Inputs that share a scale in a row of that many. ValueError for a format without scales."""
        if self.is_float:
            raise ValueError(f"{self} has no scales")
        return columns if self.group == AXIS else self.group

    def storage_bytes(self, rows: int, columns: int) -> int:
        """Bytes of a `rows x columns` matrix: codes with the padding of the last group, scales, zero-points.

        Each group's codes and each row's zero-points fill whole bytes.
        """
        if self.is_float:
            return self.bits // 8 * rows * columns
        size = self.group_size(columns)
        groups = -(-columns // size)
        zero_points = -(-groups * self.bits // 8) if self.asymmetric else 0
        return rows * (groups * (-(-size * self.bits // 8) + SCALE_BITS // 8) + zero_points)


def nearest_with_kernel(fmt: Format) -> Format:
    """The format itself where a target's kernels read it, else the nearest such format of at least as many bits."""
    if fmt.is_float:
        return fmt
    bits = min((bits for bits in KERNEL_BITS if bits >= fmt.bits), default=None)
    return FP16 if bits is None else Format(bits, 32 if fmt.group == AXIS else fmt.group, fmt.asymmetric)


FP16 = Format(16)
FP32 = Format(32)


@dataclass(frozen=True, slots=True)
class Config:
    """A format for every layer, in the model's order."""

    formats: tuple[tuple[str, Format], ...]

    @classmethod
    def of(cls, formats: Mapping[str, Format]) -> Config:
        return cls(tuple(formats.items()))

    @classmethod
    def uniform(cls, layers: Iterator[str] | tuple[str, ...], fmt: Format) -> Config:
        return cls(tuple((layer, fmt) for layer in layers))

    @classmethod
    def from_json(cls, data: object) -> Config:
        """Read `{layer: format text}`. Raises ConfigError with the layer that does not parse."""
        if not isinstance(data, dict) or not data:
            raise ConfigError(f"config: expected an object of layer -> format, got {str(data)[:60]!r}")
        formats = {}
        for layer, text in data.items():
            if not isinstance(text, str):
                raise ConfigError(f"config: layer {layer!r}: expected a format's text, got {text!r}")
            try:
                formats[str(layer)] = Format.parse(text)
            except ConfigError as exc:
                raise ConfigError(f"config: layer {layer!r}: {exc}") from exc
        return cls.of(formats)

    def to_json(self) -> dict[str, str]:
        return {layer: str(fmt) for layer, fmt in self.formats}

    def __getitem__(self, layer: str) -> Format:
        return dict(self.formats)[layer]

    def __iter__(self) -> Iterator[tuple[str, Format]]:
        return iter(self.formats)

    def __len__(self) -> int:
        return len(self.formats)

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(layer for layer, _ in self.formats)

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON; independent of the order in which layers were given."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def summary(self) -> str:
        """Formats by number of layers, most first: `int4-g32 ×30, int8-g64 ×7`."""
        counts: dict[Format, int] = {}
        for _, fmt in self.formats:
            counts[fmt] = counts.get(fmt, 0) + 1
        return ", ".join(
            f"{fmt} ×{n}" for fmt, n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        )
