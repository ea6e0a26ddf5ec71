"""A bundle's folder, as `export` writes it, brought into the device's store without a host."""

from contextlib import closing
from pathlib import Path
from typing import Tuple

from toggle_runtime import records
from toggle_runtime.arrivals import Arrival
from toggle_runtime.blobs import blob_of, blob_path, mismatch, sync_folder, write_durably
from toggle_runtime.records import Blob, Manifest, RecordError, digest_of
from toggle_runtime.spool import Spool

MAX_MANIFEST_BYTES = 16 << 20
PROBES = "probes/probes.json"

_CHUNK = 1 << 20


def open_bundle(folder: Path) -> Tuple[Manifest, str]:
    """The manifest in a bundle's folder, and the bundle's digest. Raises RecordError for what is not one.

    Neither signature nor blobs are looked at yet.
    """
    path = folder / "manifest.json"
    if path.is_symlink() or not path.is_file():
        raise RecordError(
            f"{folder}: expected a bundle's folder, with manifest.json in it, as export writes it"
        )
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise RecordError(f"{path}: expected at most {MAX_MANIFEST_BYTES} bytes, got {path.stat().st_size}")
    text = path.read_bytes().decode("utf-8", "replace")
    manifest = records.from_json(Manifest, text)
    if manifest.version >= records.REDUCED_SINCE and records.to_json(manifest) != text:
        raise RecordError(f"{path}: expected canonical JSON (sorted keys, no spaces); export it again")
    return manifest, digest_of(text)


def ingest(root: Path, folder: Path, manifest: Manifest, digest: str) -> None:
    """Copy what the store lacks of a bundle, verified. Raises RecordError for a file that is missing or altered."""
    take_file(root, folder / "manifest.json", Blob(digest, (folder / "manifest.json").stat().st_size))
    for blob in set(manifest.files.values()):
        take_file(root, folder / "blobs" / "sha256" / blob.sha256, blob)


def take_file(root: Path, source: Path, blob: Blob) -> None:
    """Copy one file into the store, unless it is there. Raises RecordError where it is not what `blob` says."""
    stored = blob_path(root, blob.sha256)
    if stored.is_file() and mismatch(stored, blob) is None:
        return
    # Its size before its content: what is no plain file, or a larger one, is not read at all.
    if source.is_symlink() or not source.is_file() or source.stat().st_size != blob.size:
        raise RecordError(
            f"digest: {source}: expected a file of {blob.size} bytes; the bundle is damaged, copy it here again"
        )
    stored.parent.mkdir(parents=True, exist_ok=True)
    with closing(Arrival(root, blob)) as arrival, source.open("rb") as stream:
        arrival.start_over()
        for data in iter(lambda: stream.read(_CHUNK), b""):
            arrival.write(data)
        problem = arrival.finish()
    if problem is not None:
        raise RecordError(f"digest: {source}: {problem}; the bundle is damaged, copy it here again")
    sync_folder(stored.parent)


def keep_contract(root: Path, spool: Spool, manifest: Manifest, digest: str) -> Path:
    """Put beside a run's record what it is judged by at home: the manifest and the probes."""
    folder = spool.folder / "contract"
    wanted = {"manifest.json": digest}
    if PROBES in manifest.files:
        probes = manifest.files[PROBES].sha256
        wanted[f"blobs/sha256/{probes}"] = probes
    for name, sha256 in wanted.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_durably(folder / name, blob_path(root, sha256).read_bytes())
    return folder


def describe_file(path: Path) -> Blob:
    """Digest and size of a file that lies here. Raises RecordError for what is none."""
    if path.is_symlink() or not path.is_file():
        raise RecordError(f"{path}: expected a plain file")
    return blob_of(path)
