"""A bundle in the device's store: its manifest and every file verified, and laid out as a folder."""

import os
from pathlib import Path
from typing import Optional, Tuple

from toggle_runtime import records
from toggle_runtime.blobs import blob_of, blob_path, mismatch, place
from toggle_runtime.records import Manifest
from toggle_runtime.trust import require_signature


def verified_manifest(root: Path, bundle: str, *, allow_unsigned: bool) -> Tuple[Manifest, Optional[str]]:
    """The manifest of the bundle with this digest, and the key (hex) that signed it, None for an unsigned one.

    Raises RecordError unless manifest, signature and every file are exactly what they should be. What is damaged is
    removed, so that the next deployment sends it again.
    """
    manifest, signed_by = read_manifest(root, bundle, allow_unsigned=allow_unsigned)
    for name, blob in sorted(manifest.files.items()):
        problem = mismatch(blob_path(root, blob.sha256), blob)
        if problem is not None:
            _discard(blob_path(root, blob.sha256))
            raise records.RecordError(f"digest: file {name}: {problem}; nothing was run, deploy again")
    return manifest, signed_by


def read_manifest(root: Path, bundle: str, *, allow_unsigned: bool) -> Tuple[Manifest, Optional[str]]:
    """As `verified_manifest`, of the manifest alone."""
    path = blob_path(root, bundle)
    if path.is_symlink():
        _discard(path)
        raise records.RecordError(
            "digest: manifest: expected a plain file, got a symbolic link; deploy again"
        )
    found = blob_of(path)
    if found.sha256 != bundle:
        _discard(path)
        raise records.RecordError(
            f"digest: manifest: expected sha256 {bundle}, got {found.sha256}; deploy again"
        )
    text = path.read_text(encoding="utf-8")
    manifest = records.from_json(Manifest, text)
    if manifest.version >= records.REDUCED_SINCE and records.to_json(manifest) != text:
        raise records.RecordError(
            "manifest: expected canonical JSON (sorted keys, no spaces); export it again"
        )
    return manifest, require_signature(root, manifest, allow_unsigned=allow_unsigned)


def lay_out(root: Path, manifest: Manifest, folder: Path) -> None:
    """The bundle's files under their names in `folder`: hard links, or copies where links are denied."""
    for name, blob in manifest.files.items():
        stored = blob_path(root, blob.sha256)
        place(stored, folder / name)
        os.utime(str(stored))  # what was used last is collected last


def _discard(path: Path) -> None:
    if path.is_symlink() or path.exists():
        path.unlink()
