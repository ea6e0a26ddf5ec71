"""Format and Config: how each layer's weights are stored. Pure data, no torch.

A `Format` parses from and prints as text: `fp16`, `int4-g32`. A `Config` gives every layer of a model its
format; its digest names it everywhere (store, bundle, report).
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

_TEXT = re.compile(r"int([248])-g(\d+)")


@dataclass(frozen=True, slots=True, order=True)
class Format:
    """How one layer's weights are stored: `bits` per code in groups of `group` inputs with one scale each.

    `fp16` has 16 bits and group 0. Integer formats are symmetric: code 0 is -2**(bits-1) scales.
    """

    bits: int
    group: int = 0

    def __str__(self) -> str:
        return "fp16" if self.bits == 16 else f"int{self.bits}-g{self.group}"

    @classmethod
    def parse(cls, text: str) -> Format:
        """Read a format's text. Raises ConfigError on anything that no exporter could store."""
        if text == "fp16":
            return FP16
        match = _TEXT.fullmatch(text)
        if match is None or int(match[2]) not in (16, 32, 64, 128, 256):
            raise ConfigError(
                "format: expected fp16 or int2|int4|int8 with -g16|-g32|-g64|-g128|-g256 (as in int4-g32), "
                f"got {text!r}"
            )
        return cls(int(match[1]), int(match[2]))

    def storage_bytes(self, rows: int, columns: int) -> int:
        """Bytes of a `rows x columns` matrix, scales and the padding of the last group included."""
        if self.bits == 16:
            return 2 * rows * columns
        groups = -(-columns // self.group)
        return rows * groups * (self.group * self.bits + SCALE_BITS) // 8


FP16 = Format(16)


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
