"""Targets: what weights can be stored as on each, because a kernel there reads it. Pure data, no torch.

Menus were found by running kernels, not by reading lists: onnxruntime 1.31 on x86-64, or what a target names (1.23.2,
1.19.2); executorch 1.5.1 with XNNPACK.
`paper` is no hardware: it is the world of TOGGLE (arXiv 2512.16855), where every number of bits and every zero pays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from toggle_edge.config import AXIS, FP16, FP32, Config, Format
from toggle_edge.errors import ConfigError

GROUPS = (16, 32, 64, 128, 256)
EMBEDDING = "embedding"
PAPER = "paper"


@dataclass(frozen=True)
class Target:
    """`matrices` and `embeddings` are the formats that layers of either kind can have; a search draws from `menu` where
    the profile names none of them. `sparsities` other than 0 are offered only where zeros pay. With `narrow_scales` its
    kernels take positive scales only, and those of groups in bfloat16."""

    name: str
    matrices: frozenset[Format]
    embeddings: frozenset[Format]
    menu: tuple[Format, ...]
    sparsities: tuple[float, ...] = (0.0,)
    narrow_scales: bool = False

    def formats(self, role: str) -> frozenset[Format]:
        """What a layer of this role can be stored as."""
        return self.embeddings if role == EMBEDDING else self.matrices

    def nearest(self, fmt: Format, role: str = "") -> Format:
        """The format itself where the target has it, else the nearest of at least as many bits."""
        known = self.formats(role)
        if fmt in known:
            return fmt
        enough = [each for each in known if each.bits >= fmt.bits and each.is_float == fmt.is_float]
        grain = 32 if fmt.group == AXIS else fmt.group
        return min(
            enough,
            key=lambda each: (each.bits, each.asymmetric != fmt.asymmetric, abs(each.group - grain), each),
            default=FP16,
        )

    def require(self, config: Config, roles: Mapping[str, str]) -> None:
        """Raises ConfigError where the target has no kernel for a layer's format, naming the nearest that it has."""
        for name, fmt in config:
            nearest = self.nearest(fmt, roles.get(name, ""))
            if fmt != nearest:
                raise ConfigError(
                    f"{name}: {self.name} has no kernel for {fmt}; the nearest format that it has one for is {nearest}"
                )


def _grid(bits: Sequence[int], groups: Sequence[int]) -> frozenset[Format]:
    """All of them, symmetric and with zero-points."""
    return frozenset(Format(b, g, asymmetric) for b in bits for g in groups for asymmetric in (False, True))


_FLOATS = frozenset({FP16, FP32})
_ONNX = _grid((2, 4, 8), GROUPS) | _FLOATS
_CUDA = _grid((4, 8), GROUPS) | _FLOATS
_ONNX_1_19 = _grid((4,), GROUPS) | _FLOATS
_XNNPACK = frozenset({Format(4, 32), Format(4, 128), Format(8, AXIS)}) | _FLOATS
_PAPER = (*(Format(bits, AXIS) for bits in range(2, 16)), FP16)

TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        Target("onnx-cpu", _ONNX, _ONNX, (Format(2, 64), Format(4, 32), Format(8, 64), FP16)),
        # The last for Python 3.10 and JetPack 6, and for Python 3.8 and JetPack 5.
        Target("onnx-cpu-1.23", _CUDA, _CUDA, (Format(4, 32), Format(8, 64), FP16)),
        Target("onnx-cpu-1.19", _ONNX_1_19, _ONNX_1_19, (Format(4, 32), Format(4, 128), FP16)),
        Target("onnx-cuda", _CUDA, _CUDA, (Format(4, 32), Format(8, 64), FP16)),
        Target(
            "executorch-xnnpack",
            _XNNPACK,
            frozenset(Format(bits, grain) for bits in (2, 4, 8) for grain in (32, 128, AXIS)) | _FLOATS,
            (Format(4, 32), Format(8, AXIS), FP16),
            narrow_scales=True,
        ),
        Target(
            PAPER, frozenset(_PAPER), frozenset(_PAPER), _PAPER, tuple(round(0.1 * i, 1) for i in range(6))
        ),
    )
}


def target_named(name: str) -> Target:
    """Raises ConfigError for an unknown name."""
    try:
        return TARGETS[name]
    except KeyError:
        raise ConfigError(f"target: expected one of {', '.join(TARGETS)}, got {name!r}") from None


def has_kernel_somewhere(fmt: Format) -> bool:
    """Whether any hardware's kernels multiply by it."""
    return any(fmt in target.matrices for target in TARGETS.values() if target.name != PAPER)


def menu_of(target: Target, asked: Sequence[Format], role: str = "") -> tuple[Format, ...]:
    """What a search may choose from for layers of a role: of the formats `asked` for, those that the target has.

    `paper` has its own menu whatever is asked for, since that is what it is. Raises ConfigError where nothing is left,
    naming the nearest formats that the target has.
    """
    if target.name == PAPER:
        return target.menu
    found = tuple(fmt for fmt in asked if fmt in target.formats(role))
    if not found:
        near = ", ".join(sorted({str(target.nearest(fmt, role)) for fmt in asked}))
        raise ConfigError(
            f"target {target.name} has no kernel for any of {', '.join(map(str, asked))}"
            f"{' in an embedding' if role == EMBEDDING else ''}; the nearest formats that it has one for: {near}"
        )
    return found
