"""artifact + tokenizer + specification + probes + manifest, content-addressed.

A bundle is a folder with `manifest.json` and `blobs/sha256/<digest>`. Its digest is the SHA-256 of the
manifest's bytes, signature included. Equal files are one blob, and bundles in one blob store share what they have
in common.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from toggle_runtime.records import (
    MANIFEST_VERSION,
    Blob,
    Manifest,
    ModelShape,
    ModeSpecification,
    RecordError,
    digest_of,
    from_json,
    to_json,
)

from toggle_edge.config import Config
from toggle_edge.errors import BundleError, ExportError
from toggle_edge.export.artifact import Artifact
from toggle_edge.signing import SigningKey, sign, signer, trusted_keys

MANIFEST = "manifest.json"
PROBES, BASELINE, CANARY = "probes/probes.json", "probes/baseline.npz", "canary/canary.npz"
"""Where in a bundle the probes, their baseline and the canary lie."""

ARTIFACT, TOKENIZER = "artifact", "tokenizer"
"""Folders in a bundle, which lie in one where an engine opens them."""

CANONICAL_SINCE = 2
"""The manifest version from which on a signature covers, and so needs, the canonical form."""

MAX_MANIFEST_BYTES = 16 * 2**20
MAX_PROBES_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Bundle:
    """A bundle on the host. `folder` holds the manifest's bytes and every blob; `signed_by` names whose key
    signed it, None for an unsigned one."""

    digest: str
    manifest: Manifest
    folder: Path
    signed_by: str | None = None

    def blob_path(self, sha256: str) -> Path:
        return self.folder / "blobs" / "sha256" / sha256

    @property
    def artifact_bytes(self) -> int:
        """Bytes of the artifact's files, without tokenizer and probes."""
        return sum(blob.size for path, blob in self.manifest.files.items() if path.startswith("artifact/"))


def build_bundle(
    folder: Path,
    artifact: Artifact,
    *,
    config: Config,
    shape: ModelShape,
    specification: Mapping[str, ModeSpecification],
    default_mode: str,
    extra: Mapping[str, Path],
    environment: Mapping[str, str],
    key: SigningKey | None,
) -> Bundle:
    """Write a bundle into `folder`, which must not exist yet, and sign it with `key`; None leaves it unsigned.

    `extra` maps further bundle paths (`tokenizer/...`, `probes/...`) to files. The manifest is written last, so
    a folder without one is not a bundle. Raises BundleError when the folder exists, ExportError when something
    cannot be read or written; nothing is left behind then.
    """
    if folder.exists():
        raise BundleError(
            f"bundle folder {folder}: expected a new folder, it exists; remove it or choose another"
        )
    blobs = folder / "blobs" / "sha256"
    sources = {f"artifact/{path}": artifact.folder / path for path in artifact.files}
    sources.update(extra)
    try:
        blobs.mkdir(parents=True)
        files = {path: _add_blob(blobs, source) for path, source in sorted(sources.items())}
        manifest = Manifest(
            version=MANIFEST_VERSION,
            target=artifact.target,
            config={layer: str(fmt) for layer, fmt in config},
            model=shape,
            specification=dict(specification),
            default_mode=default_mode,
            files=files,
            probe_bytes=sum(blob.size for path, blob in files.items() if path.startswith("probes/")),
            environment=dict(environment),
        )
        manifest = manifest if key is None else sign(key, manifest)
        text = to_json(manifest)
        partial = folder / (MANIFEST + ".partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(folder / MANIFEST)
    except BaseException as exc:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(exc, (OSError, RecordError)):
            raise ExportError(f"bundle folder {folder}: cannot be built: {exc}") from exc
        raise
    return Bundle(digest_of(text), manifest, folder, key.name if key else None)


def read_bundle(
    folder: Path, *, trusted: Mapping[str, str] | None = None, allow_unsigned: bool = False
) -> Bundle:
    """Open a bundle; verify its signature, and every blob's size and digest.

    `trusted` maps public keys to names, by default `signing.trusted_keys()`. Raises BundleError on an unknown
    version, a path that leaves the bundle, a missing or altered blob, a signature that is wrong or a stranger's,
    and on an unsigned bundle unless `allow_unsigned`.
    """
    manifest, text = _manifest_in(folder)
    try:
        whose = None
        if manifest.signature is not None or not allow_unsigned:
            whose = signer(manifest, trusted_keys() if trusted is None else trusted)
        bundle = Bundle(digest_of(text), manifest, folder, whose)
        for name, blob in manifest.files.items():
            found = _digest_file(bundle.blob_path(blob.sha256))
            if found != blob:
                raise BundleError(
                    f"{folder}: {name}: expected sha256 {blob.sha256} ({blob.size} bytes), got {found.sha256} "
                    f"({found.size} bytes); the bundle is damaged, export it again"
                )
    except (OSError, UnicodeDecodeError, RecordError) as exc:
        raise BundleError(f"{folder}: not a readable bundle: {exc}") from exc
    return bundle


def unpack(bundle: Bundle, folder: Path) -> None:
    """Lay a bundle's artifact and tokenizer out in the new `folder` under their own names, as engines open them.

    Weights are hard links to the bundle's blobs, or copies where links are denied; the files that people edit are
    copies. Raises ExportError when the folder exists or cannot be written; nothing is left behind then.
    """
    if folder.exists():
        raise ExportError(f"{folder}: expected a new folder to unpack into, it exists; choose another")
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # what a killed process may have left
        for path, blob in bundle.manifest.files.items():
            kind, _, name = path.partition("/")
            if kind not in (ARTIFACT, TOKENIZER):
                continue
            target = partial / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if name.startswith("weights/"):
                _link(bundle.blob_path(blob.sha256), target)
            else:
                shutil.copyfile(bundle.blob_path(blob.sha256), target)
        partial.rename(folder)
    except BaseException as exc:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(exc, OSError):
            raise ExportError(f"{folder}: cannot unpack the bundle: {exc}") from exc
        raise


def keep_contract(bundle: Bundle, folder: Path) -> None:
    """Put into `folder` what a run's verdict depends on: the manifest and the probes, without the artifact."""
    (folder / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
    blob = bundle.manifest.files[PROBES]
    shutil.copyfile(bundle.blob_path(blob.sha256), folder / "blobs" / "sha256" / blob.sha256)
    shutil.copyfile(bundle.folder / MANIFEST, folder / MANIFEST)


def read_contract(folder: Path) -> Bundle:
    """Open what `keep_contract` kept; only the manifest and the probes are there. Signatures are not asked for: who
    signed matters to what may run, and this has run.

    Raises BundleError when either is missing or altered.
    """
    manifest, text = _manifest_in(folder)
    bundle = Bundle(digest_of(text), manifest, folder)
    blob = manifest.files.get(PROBES)
    try:
        found = None if blob is None else _digest_file(bundle.blob_path(blob.sha256))
    except OSError as exc:
        raise BundleError(f"{folder}: {PROBES} cannot be read: {exc}") from exc
    if blob is None or found != blob:
        raise BundleError(f"{folder}: {PROBES}: expected {blob}, got {found}; measure the bundle again")
    return bundle


@dataclass(frozen=True, slots=True)
class BundledProbe:
    """What the bundle's probes say of one probe's trace: its steps, and which of them predict the gold answer."""

    steps: int
    answer_steps: tuple[int, ...]


def probes_of(bundle: Bundle) -> tuple[BundledProbe, ...]:
    """The probes that a bundle carries, in order. Raises BundleError when they are missing or malformed."""
    blob = bundle.manifest.files.get(PROBES)
    where = f"{bundle.folder}: {PROBES}"
    if blob is None or blob.size > MAX_PROBES_BYTES:
        raise BundleError(f"{where}: expected probes of at most {MAX_PROBES_BYTES} bytes, got {blob}")
    try:
        entries = json.loads(bundle.blob_path(blob.sha256).read_text(encoding="utf-8"))
        return tuple(_bundled_probe(entry) for entry in entries)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as exc:
        raise BundleError(f"{where}: expected a list of probes: {exc!r}; export the bundle again") from exc


def _manifest_in(folder: Path) -> tuple[Manifest, str]:
    """The manifest in a folder, and its text. Raises BundleError where it is too large, damaged or not canonical."""
    path = folder / MANIFEST
    try:
        if path.exists() and not path.is_file():
            raise BundleError(f"{path}: expected a plain file")
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise BundleError(
                f"{path}: expected at most {MAX_MANIFEST_BYTES} bytes, got {path.stat().st_size}"
            )
        text = path.read_text(encoding="utf-8")
        manifest = from_json(Manifest, text)
        if manifest.version >= CANONICAL_SINCE and to_json(manifest) != text:
            raise BundleError(f"{path}: expected canonical JSON (sorted keys, no spaces); export it again")
    except (OSError, UnicodeDecodeError, RecordError) as exc:
        raise BundleError(f"{folder}: not a readable bundle: {exc}") from exc
    return manifest, text


def _bundled_probe(entry: dict[str, object]) -> BundledProbe:
    tokens, prompt, answers = entry["tokens"], entry["prompt_tokens"], entry["answer_steps"]
    if not (isinstance(tokens, list) and isinstance(prompt, int) and isinstance(answers, list)):
        raise ValueError(f"got {str(entry)[:60]}")
    probe = BundledProbe(len(tokens) - prompt, tuple(answers))
    if prompt < 1 or probe.steps < 1 or not all(0 <= step < probe.steps for step in probe.answer_steps):
        raise ValueError(f"prompt of {prompt} of {len(tokens)} tokens, answer steps {answers}")
    return probe


def _add_blob(blobs: Path, source: Path) -> Blob:
    blob = _digest_file(source)
    destination = blobs / blob.sha256
    if not destination.exists():
        _link(source, destination)
    return blob


def _link(source: Path, destination: Path) -> None:
    try:
        os.link(source, destination)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, destination)


def _digest_file(path: Path) -> Blob:
    # Not of a pipe or device, which would never end.
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "expected a plain file", str(path))
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
    return Blob(digest.hexdigest(), path.stat().st_size)
