"""Keys are made once, kept secret, never replaced; a signature says who made a manifest and that nobody changed it."""

from __future__ import annotations

import dataclasses
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from toggle_runtime.records import Manifest, ModelShape, ModeSpecification, Signature, from_json, to_json
from toggle_runtime.trust import signature_holds

from toggle_edge.errors import BundleError, SigningKeyError
from toggle_edge.signing import key_folder, sign, signer, signing_key, trusted_keys

MANIFEST = Manifest(
    version=2,
    target="onnx-cpu",
    config={"a": "fp16"},
    model=ModelShape(1, 1, 16, 8, 32, None),
    specification={"optimal": ModeSpecification({"coherence": "always (jsd <= 0.25)"}, 0.95, 95.0)},
    default_mode="optimal",
    files={},
    probe_bytes=0,
    environment={"é": "ü"},
)


def test_a_key_is_made_on_first_use_and_stays(tmp_path: Path) -> None:
    first, second = signing_key(tmp_path), signing_key(tmp_path)
    assert first == second
    assert stat.S_IMODE((tmp_path / "signing.pem").stat().st_mode) == 0o600
    assert trusted_keys(tmp_path) == {first.public: first.name}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["signing.pem", "signing.pub", "trusted"]
    assert "secret" not in repr(first)


def test_processes_that_make_it_at_once_get_the_same_key(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from toggle_edge.signing import signing_key\n"
        "print(signing_key(Path(sys.argv[1])).public)"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert len({process.communicate(timeout=60)[0] for process in processes}) == 1
    assert all(process.returncode == 0 for process in processes)


def test_a_killed_first_use_is_completed(tmp_path: Path) -> None:
    public = signing_key(tmp_path).public
    (tmp_path / "signing.pub").unlink()
    assert signing_key(tmp_path).public == public
    assert public in trusted_keys(tmp_path)


def test_the_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOGGLE_EDGE_HOME", str(tmp_path / "own"))
    assert key_folder() == tmp_path / "own" / "keys"
    monkeypatch.delenv("TOGGLE_EDGE_HOME")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert key_folder() == tmp_path / "xdg" / "toggle-edge" / "keys"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert key_folder() == Path.home() / ".config" / "toggle-edge" / "keys"


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    signing_key(tmp_path)
    (tmp_path / "signing.pem").chmod(0o644)
    with pytest.raises(SigningKeyError, match="run chmod 600"):
        signing_key(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a key", b"\xff" * 100])
def test_a_damaged_key_is_refused_and_not_replaced(tmp_path: Path, content: bytes) -> None:
    signing_key(tmp_path)
    (tmp_path / "signing.pem").write_bytes(content)
    with pytest.raises(SigningKeyError, match="restore it from a backup"):
        signing_key(tmp_path)
    assert (tmp_path / "signing.pem").read_bytes() == content


def test_another_kind_of_key_is_refused(tmp_path: Path) -> None:
    signing_key(tmp_path)
    text = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "signing.pem").write_bytes(text)
    with pytest.raises(SigningKeyError, match="expected an Ed25519 key"):
        signing_key(tmp_path)


def test_a_public_half_of_another_key_is_refused(tmp_path: Path) -> None:
    signing_key(tmp_path / "one")
    signing_key(tmp_path / "two")
    (tmp_path / "one" / "signing.pub").write_bytes((tmp_path / "two" / "signing.pub").read_bytes())
    with pytest.raises(SigningKeyError, match="is not the public half"):
        signing_key(tmp_path / "one")


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(SigningKeyError, match="set TOGGLE_EDGE_HOME"):
        signing_key(tmp_path / "keys")


def test_a_file_in_the_way_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("")
    with pytest.raises(SigningKeyError, match="set TOGGLE_EDGE_HOME"):
        signing_key(tmp_path / "keys")


def test_other_peoples_keys_are_read_and_checked(tmp_path: Path) -> None:
    ours, theirs = signing_key(tmp_path / "ours"), signing_key(tmp_path / "theirs")
    trusted = tmp_path / "ours" / "trusted" / "lab.pub"
    trusted.write_text(f"ed25519 {theirs.public} lab-key\n")
    assert trusted_keys(tmp_path / "ours") == {ours.public: ours.name, theirs.public: "lab-key"}
    trusted.write_text("ssh-ed25519 AAAA")
    with pytest.raises(SigningKeyError, match="expected one line `ed25519 HEX NAME`"):
        trusted_keys(tmp_path / "ours")


def test_a_signed_manifest_names_its_signer_on_host_and_device(tmp_path: Path) -> None:
    key = signing_key(tmp_path)
    signed = sign(key, MANIFEST)
    assert sign(key, signed) == signed, "signing is deterministic, and an old signature is replaced"
    assert signer(signed, {key.public: "lab"}) == "lab"
    read = from_json(Manifest, to_json(signed))
    assert read.signature is not None
    assert signature_holds(read, read.signature)


@pytest.mark.parametrize(
    "change", [{"target": "other"}, {"config": {"a": "int8-g64"}}, {"probe_bytes": 1}, {"environment": {}}]
)
def test_any_change_after_signing_is_noticed(tmp_path: Path, change: dict[str, object]) -> None:
    key = signing_key(tmp_path)
    altered = dataclasses.replace(sign(key, MANIFEST), **change)  # type: ignore[arg-type]
    with pytest.raises(BundleError, match="was altered after it was signed"):
        signer(altered, {key.public: "lab"})
    assert altered.signature is not None
    assert not signature_holds(altered, altered.signature)


def test_strangers_and_the_unsigned_are_refused_with_a_remedy(tmp_path: Path) -> None:
    key = signing_key(tmp_path)
    with pytest.raises(BundleError, match=rf"unknown key .*`ed25519 {key.public} NAME`"):
        signer(sign(key, MANIFEST), {})
    with pytest.raises(BundleError, match=r"has no signature.*--allow-unsigned"):
        signer(MANIFEST, {key.public: "lab"})
    with pytest.raises(BundleError, match="comes from a version without signatures"):
        signer(dataclasses.replace(MANIFEST, version=1), {key.public: "lab"})
    forged = Signature(key.public, "0" * 128)
    with pytest.raises(BundleError, match="does not fit"):
        signer(dataclasses.replace(MANIFEST, signature=forged), {key.public: "lab"})
