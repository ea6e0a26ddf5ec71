"""artifact + tokenizer + specification + probes + manifest, content-addressed.

A bundle is a folder with `manifest.json` and `blobs/sha256/<digest>`. Its digest is the SHA-256 of the
manifest's bytes. Equal files are one blob, and bundles in one blob store share what they have in common.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from toggle_runtime.records import (
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
from toggle_edge.errors import BundleError
from toggle_edge.export.artifact import Artifact

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Bundle:
    """A bundle on the host. `folder` holds the manifest's bytes and every blob."""

    digest: str
    manifest: Manifest
    folder: Path

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
) -> Bundle:
    """Write a bundle into `folder`, which must not exist yet.

    `extra` maps further bundle paths (`tokenizer/...`, `probes/...`) to files. The manifest is written last, so
    a folder without one is not a bundle. Raises BundleError when the folder exists or a file cannot be read.
    """
    if folder.exists():
        raise BundleError(
            f"bundle folder {folder}: expected a new folder, it exists; remove it or choose another"
        )
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    sources = {f"artifact/{path}": artifact.folder / path for path in artifact.files}
    sources.update(extra)
    try:
        files = {path: _add_blob(blobs, source) for path, source in sorted(sources.items())}
        manifest = Manifest(
            version=1,
            target=artifact.target,
            config=config.to_json(),
            model=shape,
            specification=dict(specification),
            default_mode=default_mode,
            files=files,
            probe_bytes=sum(blob.size for path, blob in files.items() if path.startswith("probes/")),
            environment=dict(environment),
        )
    except (OSError, RecordError) as exc:
        shutil.rmtree(folder, ignore_errors=True)
        raise BundleError(f"bundle folder {folder}: cannot be built: {exc}") from exc
    text = to_json(manifest)
    partial = folder / (MANIFEST + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(folder / MANIFEST)
    return Bundle(digest_of(text), manifest, folder)


def read_bundle(folder: Path) -> Bundle:
    """Open a bundle and verify every blob's size and digest.

    Raises BundleError on an unknown version, a path that leaves the bundle, a missing or altered blob.
    """
    path = folder / MANIFEST
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise BundleError(
                f"{path}: expected at most {MAX_MANIFEST_BYTES} bytes, got {path.stat().st_size}"
            )
        text = path.read_text(encoding="utf-8")
        bundle = Bundle(digest_of(text), from_json(Manifest, text), folder)
        for name, blob in bundle.manifest.files.items():
            found = _digest_file(bundle.blob_path(blob.sha256))
            if found != blob:
                raise BundleError(
                    f"{folder}: {name}: expected sha256 {blob.sha256} ({blob.size} bytes), got {found.sha256} "
                    f"({found.size} bytes); the bundle is damaged, export it again"
                )
    except (OSError, UnicodeDecodeError, RecordError) as exc:
        raise BundleError(f"{folder}: not a readable bundle: {exc}") from exc
    return bundle


def _add_blob(blobs: Path, source: Path) -> Blob:
    blob = _digest_file(source)
    destination = blobs / blob.sha256
    if not destination.exists():
        try:
            os.link(source, destination)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, destination)
    return blob


def _digest_file(path: Path) -> Blob:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
    return Blob(digest.hexdigest(), path.stat().st_size)
