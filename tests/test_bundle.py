"""A bundle is content-addressed, shares what it can, and refuses to be read when anything is off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from toggle_runtime.records import ModelShape, ModeSpecification

from toggle_edge.bundle import Bundle, build_bundle, read_bundle
from toggle_edge.config import FP16, Config
from toggle_edge.errors import BundleError, ExportError
from toggle_edge.export.artifact import artifact_in
from toggle_edge.signing import SigningKey, signing_key

SHAPE = ModelShape(layers=1, kv_heads=1, head_size=16, vocabulary=8, context_tokens=32, end_token=None)
SPECIFICATION = {"optimal": ModeSpecification({"coherence": "always (jsd <= 0.25)"}, 0.95, 95.0)}


def bundled(folder: Path, weights: bytes = b"weights", key: SigningKey | None = None) -> Bundle:
    source = folder / "source"
    (source / "weights").mkdir(parents=True)
    (source / "model.onnx").write_bytes(b"graph")
    (source / "weights" / "a.bin").write_bytes(weights)
    (source / "weights" / "b.bin").write_bytes(b"same")
    probes = folder / "probes.json"
    probes.write_text("[]")
    return build_bundle(
        folder / "bundle",
        artifact_in("onnx-cpu", source),
        config=Config.uniform(("a",), FP16),
        shape=SHAPE,
        specification=SPECIFICATION,
        default_mode="optimal",
        extra={"probes/probes.json": probes, "tokenizer/again.bin": source / "weights" / "b.bin"},
        environment={},
        key=key or signing_key(),
    )


def test_a_bundle_reads_back_and_counts_what_it_holds(tmp_path: Path) -> None:
    built = bundled(tmp_path)
    assert read_bundle(built.folder) == built
    assert built.artifact_bytes == len(b"graph" + b"weights" + b"same")
    assert built.manifest.probe_bytes == 2
    blobs = list((built.folder / "blobs" / "sha256").iterdir())
    assert len(blobs) == 4  # the file that two paths share is one blob


def test_equal_content_gives_an_equal_digest_and_a_changed_byte_another(tmp_path: Path) -> None:
    digests = [bundled(tmp_path / str(i), weights).digest for i, weights in enumerate((b"x", b"x", b"y"))]
    assert digests[0] == digests[1] != digests[2]


def test_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    built = bundled(tmp_path)
    path = built.blob_path(built.manifest.files["artifact/weights/a.bin"].sha256)
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.unlink()
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"artifact/weights/a\.bin: expected sha256"):
        read_bundle(built.folder)


def test_a_missing_blob_is_refused(tmp_path: Path) -> None:
    built = bundled(tmp_path)
    built.blob_path(built.manifest.files["artifact/model.onnx"].sha256).unlink()
    with pytest.raises(BundleError, match="not a readable bundle"):
        read_bundle(built.folder)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("version", 99, "written by a newer toggle-edge: upgrade this side"),
        ("surprise", 1, "unknown key 'surprise'"),
        ("files", {"../escape": {"sha256": "0" * 64, "size": 1}}, "inside the bundle"),
        ("files", {"/etc/passwd": {"sha256": "0" * 64, "size": 1}}, "inside the bundle"),
        ("files", {"a": {"sha256": "zz", "size": 1}}, "64 lower-case hex"),
        ("default_mode", "lax", "default_mode"),
        ("probe_bytes", True, "expected int"),
    ],
)
def test_a_manifest_that_is_off_is_refused(tmp_path: Path, key: str, value: object, message: str) -> None:
    built = bundled(tmp_path)
    manifest = json.loads((built.folder / "manifest.json").read_text())
    (built.folder / "manifest.json").write_text(json.dumps({**manifest, key: value}))
    with pytest.raises(BundleError, match=message):
        read_bundle(built.folder)


def test_an_existing_folder_is_not_written_into(tmp_path: Path) -> None:
    bundled(tmp_path)
    with pytest.raises(BundleError, match="expected a new folder"):
        build_bundle(
            tmp_path / "bundle",
            artifact_in("onnx-cpu", tmp_path / "source"),
            config=Config.uniform(("a",), FP16),
            shape=SHAPE,
            specification=SPECIFICATION,
            default_mode="optimal",
            extra={},
            environment={},
            key=None,
        )


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "model.onnx").write_bytes(b"graph")
    with pytest.raises(ExportError, match="cannot be built"):
        build_bundle(
            tmp_path / "bundle",
            artifact_in("onnx-cpu", source),
            config=Config.uniform(("a",), FP16),
            shape=SHAPE,
            specification=SPECIFICATION,
            default_mode="optimal",
            extra={"probes/probes.json": tmp_path / "absent"},
            environment={},
            key=None,
        )
    assert not (tmp_path / "bundle").exists()
