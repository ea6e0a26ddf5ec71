"""The wire contract from host to device: what a bundle says of itself. Standard library only, Python 3.8.

Apart from the run records because an agent that only stores files needs no more, and starts the sooner.
"""

import dataclasses
import re
from dataclasses import dataclass
from typing import ClassVar, Dict, List, Optional, Tuple

from toggle_runtime.codec import RecordError, check_path, require_version, to_json

MANIFEST_VERSION = 4
"""Version of the manifests that we write. 2 added the signature and the canary, 3 reduces the probes' baseline, 4 may
say what of the model is kept."""

REDUCED_SINCE, NARROWED_SINCE = 3, 4
"""The manifest versions from which on the baseline is reduced, and from which on a model may lack heads and blocks."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_SIGNATURE = re.compile(r"[0-9a-f]{128}")
_SIGNED_AS = b"toggle-edge manifest\n"


@dataclass(frozen=True)
class Blob:
    """One content-addressed file: lower-case hex SHA-256 and size in bytes."""

    sha256: str
    size: int

    def __post_init__(self) -> None:
        if not _DIGEST.fullmatch(self.sha256):
            raise RecordError(f"sha256: expected 64 lower-case hex digits, got {self.sha256!r}")
        if self.size < 0:
            raise RecordError(f"size: expected bytes >= 0, got {self.size}")


@dataclass(frozen=True)
class Signature:
    """An Ed25519 signature (RFC 8032): public key (32 bytes) and signature (64 bytes) in lower-case hex."""

    key: str
    signature: str

    def __post_init__(self) -> None:
        if not _DIGEST.fullmatch(self.key):
            raise RecordError(f"signature.key: expected 64 lower-case hex digits, got {self.key[:70]!r}")
        if not _SIGNATURE.fullmatch(self.signature):
            raise RecordError(
                f"signature.signature: expected 128 lower-case hex digits, got {self.signature[:140]!r}"
            )


@dataclass(frozen=True)
class BlockShape:
    """A block that remains of a model: its number there, and which of its kv groups it keeps, ascending."""

    block: int
    kv_groups: List[int]


@dataclass(frozen=True)
class ModelShape:
    """What a backend must know to run the graph: counts, and the token that ends a text (None: there is none).

    The counts are the baseline's. `kept` says which blocks and kv groups of it the graph has, None for all. Raises
    RecordError where it names others than there are, or none.
    """

    layers: int
    kv_heads: int
    head_size: int
    vocabulary: int
    context_tokens: int
    end_token: Optional[int]
    kept: Optional[List[BlockShape]] = None

    def __post_init__(self) -> None:
        if self.kept is None:
            return
        for what, numbers, count in (
            ("blocks", [each.block for each in self.kept], self.layers),
            *((f"kv groups of block {each.block}", each.kv_groups, self.kv_heads) for each in self.kept),
        ):
            within = bool(numbers) and numbers[0] >= 0 and numbers[-1] < count
            if not within or numbers != sorted(set(numbers)):
                raise RecordError(
                    f"model.kept: expected some of {count} {what}, each once and ascending, got {numbers}"
                )

    @property
    def blocks(self) -> List[BlockShape]:
        """The blocks that the graph has."""
        if self.kept is not None:
            return self.kept
        return [BlockShape(block, list(range(self.kv_heads))) for block in range(self.layers)]


@dataclass(frozen=True)
class ModeSpecification:
    """What one mode asks for: formulas by property, share of probes that must satisfy them, AvgPP in percent."""

    properties: Dict[str, str]
    coverage: float
    avgpp: float


@dataclass(frozen=True)
class Manifest:
    """The index of a bundle.

    `files` maps each path of the run folder to its blob. `config` maps each layer to its format's text.
    `probe_bytes` is what the probes and their baseline traces weigh. `signature` signs `signed_bytes`; None is an
    unsigned bundle. A bundle's digest is the SHA-256 of the manifest's bytes, so it names everything it holds.
    """

    READABLE: ClassVar[Tuple[int, ...]] = (1, 2, 3, MANIFEST_VERSION)

    version: int
    target: str
    config: Dict[str, str]
    model: ModelShape
    specification: Dict[str, ModeSpecification]
    default_mode: str
    files: Dict[str, Blob]
    probe_bytes: int
    environment: Dict[str, str]
    signature: Optional[Signature] = None

    def __post_init__(self) -> None:
        require_version(self.version, self.READABLE, "manifest")
        for path in self.files:
            check_path(path)
        if self.model.kept is not None and self.version < NARROWED_SINCE:
            raise RecordError(f"model.kept: a manifest of version {self.version} cannot say what is kept")
        if self.default_mode not in self.specification:
            raise RecordError(
                f"default_mode: expected one of {sorted(self.specification)}, got {self.default_mode!r}"
            )


def signed_bytes(manifest: Manifest) -> bytes:
    """What a manifest's signature signs: a prefix of its own, then the canonical JSON without the signature.

    The prefix keeps a signature of anything else from being taken for one of a manifest.
    """
    return _SIGNED_AS + to_json(dataclasses.replace(manifest, signature=None)).encode("utf-8")
