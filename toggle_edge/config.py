"""Format and Config: how each layer's weights are stored. Pure data, no torch.

A `Format` parses from and prints as text: `fp16`, `int4-g32`, `int8-axis`, `int2-g64-asym`. A `Config` gives every
layer of a model its format and its sparsity and says what structure is removed; its digest names it everywhere (store,
bundle, report).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from toggle_edge.errors import ConfigError
from toggle_edge.structure import WHOLE, Structure

SCALE_BITS = 32
"""Each group's scale is stored as float32, as MatMulNBits reads it beside float32 activations."""

AXIS = -1
"""The `group` of a format with one scale for a whole row (output channel)."""

KERNEL_BITS = (2, 4, 8)
"""Bits per code that targets' kernels read, in groups, with zero-points or without."""

QUANTISERS = ("rtn", "lsq", "seq", "hqq", "importance", "gptq")
"""How codes and scales may be chosen; `compress.quantise` has what is behind the names."""

PRUNERS = ("magnitude", "wanda")
"""How weights that become zero may be chosen; `compress.prune` has what is behind the names."""

MOST_SPARSITY = 0.5
"""Most of a layer's weights that may become zero."""

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
    """A format for every layer that is kept, in the model's order; sparsities above 0; what structure is removed.

    A layer's sparsity is the share of its weights that are zero. Layers of removed blocks have no format.
    Raises ConfigError on a sparsity outside 0 to 1 (exclusive), or of a layer without a format.
    """

    formats: tuple[tuple[str, Format], ...]
    sparsities: tuple[tuple[str, float], ...] = ()
    structure: Structure = WHOLE

    def __post_init__(self) -> None:
        names = self.layers if self.sparsities else ()
        for layer, sparsity in self.sparsities:
            if not 0.0 < sparsity < 1.0:
                raise ConfigError(
                    f"config: layer {layer!r}: expected a sparsity of at least 0 and below 1, got {sparsity!r}"
                )
            if layer not in names:
                raise ConfigError(f"config: layer {layer!r} has a sparsity and no format")

    @classmethod
    def of(
        cls,
        formats: Mapping[str, Format],
        sparsities: Mapping[str, float] | None = None,
        structure: Structure = WHOLE,
    ) -> Config:
        """From mappings; sparsities of 0 may be given. Raises as the class does."""
        given = sparsities or {}
        order = {layer: index for index, layer in enumerate(formats)}
        zeros = sorted(
            ((layer, float(share)) for layer, share in given.items() if share != 0.0),
            key=lambda pair: order.get(pair[0], -1),
        )
        return cls(tuple(formats.items()), tuple(zeros), structure)

    @classmethod
    def uniform(cls, layers: Iterator[str] | tuple[str, ...], fmt: Format) -> Config:
        return cls(tuple((layer, fmt) for layer in layers))

    @classmethod
    def from_json(cls, data: object) -> Config:
        """Read `{layer: format text}`, or `{"formats": {layer: text}, "sparsities": {layer: share}, "structure": {…}}`.

        Raises ConfigError with the layer that does not parse.
        """
        if not isinstance(data, dict) or not data:
            raise ConfigError(f"config: expected an object of layer -> format, got {str(data)[:60]!r}")
        if not isinstance(data.get("formats"), dict):
            return cls.of(_formats(data))
        if odd := sorted(set(data) - {"formats", "sparsities", "structure"}):
            raise ConfigError(f"config: expected formats, sparsities and structure, got {odd[0]!r}")
        sparsities = data.get("sparsities", {})
        if not isinstance(sparsities, dict):
            raise ConfigError(f"config: sparsities: expected {{layer: share}}, got {str(sparsities)[:60]!r}")
        for layer, share in sparsities.items():
            if isinstance(share, bool) or not isinstance(share, int | float):
                raise ConfigError(f"config: layer {layer!r}: expected a sparsity as a number, got {share!r}")
        return cls.of(_formats(data["formats"]), sparsities, Structure.from_json(data.get("structure", {})))

    def to_json(self) -> dict[str, object]:
        """`{layer: format text}` where that says it all, so that plain configs read as they always did."""
        formats: dict[str, object] = {layer: str(fmt) for layer, fmt in self.formats}
        if not self.sparsities and not self.structure:
            return formats
        found: dict[str, object] = {"formats": formats}
        if self.sparsities:
            found["sparsities"] = dict(self.sparsities)
        if self.structure:
            found["structure"] = self.structure.to_json()
        return found

    def __getitem__(self, layer: str) -> Format:
        return dict(self.formats)[layer]

    def sparsity(self, layer: str) -> float:
        """The share of the layer's weights that are zero."""
        return dict(self.sparsities).get(layer, 0.0)

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
        """Formats by number of layers, most first, zeros, structure: `int4-g32 ×30, int8-g64 ×7; 2 layers sparse`."""
        counts: dict[Format, int] = {}
        for _, fmt in self.formats:
            counts[fmt] = counts.get(fmt, 0) + 1
        text = ", ".join(
            f"{fmt} ×{n}" for fmt, n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        )
        if self.sparsities:
            plural = "s" if len(self.sparsities) > 1 else ""
            text += f"; {len(self.sparsities)} layer{plural} sparse"
        return f"{text}; {self.structure.summary()}" if self.structure else text


def _formats(data: Mapping[object, object]) -> dict[str, Format]:
    formats = {}
    for layer, text in data.items():
        if not isinstance(text, str):
            raise ConfigError(f"config: layer {layer!r}: expected a format's text, got {text!r}")
        try:
            formats[str(layer)] = Format.parse(text)
        except ConfigError as exc:
            raise ConfigError(f"config: layer {layer!r}: {exc}") from exc
    return formats
