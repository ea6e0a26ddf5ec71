"""Who made a bundle: our Ed25519 key, made on first use, and the keys whose bundles this host believes.

Keys lie in `key_folder()`: the private half in `signing.pem`, the public halves of other people in `trusted/*.pub`,
one line each, as they lie on devices too.
"""

from __future__ import annotations

import dataclasses
import getpass
import os
import re
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from toggle_runtime.records import Manifest, RecordError, Signature, signed_bytes
from toggle_runtime.trust import key_id, key_line, read_key

from toggle_edge.errors import BundleError, SigningKeyError

PRIVATE_FILE, PUBLIC_FILE = "signing.pem", "signing.pub"
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9._@-]")


@dataclass(frozen=True, slots=True)
class SigningKey:
    """Our key: `name` is who and where (`user@host`), `public` the public half in hex. The secret is not shown."""

    name: str
    public: str
    secret: Ed25519PrivateKey = field(repr=False, compare=False)


def key_folder() -> Path:
    """`$TOGGLE_EDGE_HOME/keys`, else `keys` in `toggle-edge` under the user's configuration folder."""
    home = os.environ.get("TOGGLE_EDGE_HOME")
    if home:
        return Path(home) / "keys"
    configuration = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(configuration) / "toggle-edge" / "keys"


def signing_key(folder: Path | None = None) -> SigningKey:
    """Our key, made if there is none yet. Two processes that make it at once end up with the same one.

    Raises SigningKeyError when it cannot be read or written, is damaged (it is never replaced), or may be read
    by others.
    """
    folder = folder or key_folder()
    path = folder / PRIVATE_FILE
    try:
        if not path.exists():
            _make(folder)
        if path.stat().st_mode & 0o077:
            raise SigningKeyError(
                f"signing key {path}: expected a file that only its owner can read; run chmod 600 {path}"
            )
        secret = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as exc:
        raise SigningKeyError(
            f"signing key {path}: cannot be read or written: {exc}; set TOGGLE_EDGE_HOME to a folder of yours"
        ) from exc
    except (ValueError, TypeError) as exc:
        raise SigningKeyError(
            f"signing key {path}: expected an Ed25519 key in PEM without a passphrase: {exc}; restore it from a "
            "backup, or move it away to get a new one (devices must then be told to trust that)"
        ) from exc
    if not isinstance(secret, Ed25519PrivateKey):
        raise SigningKeyError(f"signing key {path}: expected an Ed25519 key, got {type(secret).__name__}")
    public = secret.public_key().public_bytes_raw().hex()
    try:
        return SigningKey(_own_name(folder, public), public, secret)
    except (OSError, RecordError) as exc:
        raise SigningKeyError(f"signing key: {exc}") from exc


def sign(key: SigningKey, manifest: Manifest) -> Manifest:
    """The manifest with our signature in it. Ed25519 is deterministic: equal manifests stay equal."""
    signature = Signature(key.public, key.secret.sign(signed_bytes(manifest)).hex())
    return dataclasses.replace(manifest, signature=signature)


def trusted_keys(folder: Path | None = None) -> dict[str, str]:
    """Public keys (hex) whose bundles this host believes, and their names: ours if there is one, and `trusted/*.pub`.

    Never one of `revoked_keys`. Raises SigningKeyError for a file that is not one line `ed25519 HEX NAME`.
    """
    folder = folder or key_folder()
    keys = _keys_in([*sorted((folder / "trusted").glob("*.pub")), folder / PUBLIC_FILE])
    gone = revoked_keys(folder)
    return {key: name for key, name in keys.items() if key not in gone}


def revoked_keys(folder: Path | None = None) -> dict[str, str]:
    """Public keys (hex) whose bundles this host takes no more, and their names. Raises as `trusted_keys` does."""
    return _keys_in(sorted(((folder or key_folder()) / "revoked").glob("*.pub")))


def _keys_in(paths: Sequence[Path]) -> dict[str, str]:
    keys: dict[str, str] = {}
    try:
        for path in paths:
            if path.is_file():
                keys.update(read_key(path))
    except (OSError, RecordError) as exc:
        raise SigningKeyError(f"trusted keys: {exc}") from exc
    return keys


def signer(manifest: Manifest, trusted: Mapping[str, str]) -> str:
    """The name of the trusted key that signed the manifest. Raises BundleError for any other manifest."""
    signature = manifest.signature
    if signature is None:
        why = "comes from a version without signatures" if manifest.version == 1 else "has no signature"
        raise BundleError(
            f"manifest: expected a signed bundle, this one {why}; export it again, or pass --allow-unsigned"
        )
    if signature.key in (gone := revoked_keys()):
        raise BundleError(
            f"manifest: signed by key {key_id(signature.key)} ({gone[signature.key]}), which was revoked here; export "
            "the bundle again"
        )
    if signature.key not in trusted:
        raise BundleError(
            f"manifest: signed by the unknown key {key_id(signature.key)}; if you know whose it is and trust it, put "
            f"the line `ed25519 {signature.key} NAME` into {key_folder() / 'trusted' / 'NAME.pub'}"
        )
    try:
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signature.key))
        public.verify(bytes.fromhex(signature.signature), signed_bytes(manifest))
    except (InvalidSignature, ValueError) as exc:
        raise BundleError(
            f"manifest: the signature by {trusted[signature.key]} does not fit: the manifest was altered after it was "
            "signed; export the bundle again"
        ) from exc
    return trusted[signature.key]


def _own_name(folder: Path, public: str) -> str:
    """The name in the public half's file, which is written here: between the two files a process may be killed."""
    path = folder / PUBLIC_FILE
    if not path.is_file():
        name = _NOT_PLAIN.sub("-", f"{getpass.getuser()}@{socket.gethostname()}").lstrip(".-@")[:80]
        partial = folder / f".{PUBLIC_FILE}.{os.getpid()}"
        partial.write_text(key_line(public, name or "host") + "\n", encoding="utf-8")
        partial.replace(path)
    key, name = next(iter(read_key(path).items()))
    if key != public:
        raise SigningKeyError(f"signing key {path}: is not the public half of {PRIVATE_FILE}; remove {path}")
    return name


def _make(folder: Path) -> None:
    (folder / "trusted").mkdir(parents=True, exist_ok=True)
    text = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    temporary = folder / f".{PRIVATE_FILE}.{os.getpid()}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        # A link fails where the name exists: whoever comes second takes the first one's key.
        with suppress(FileExistsError):
            (folder / PRIVATE_FILE).hardlink_to(temporary)
    finally:
        temporary.unlink()
