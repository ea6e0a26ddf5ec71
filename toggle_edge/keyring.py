"""This host's keys over time: listed, rotated with the old key's word for the new one, and revoked.

Beside what `signing` keeps, the folder has `revoked/*.pub`, and `successions.json`: each of ours that followed another.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from toggle_runtime.blobs import write_durably
from toggle_runtime.records import RecordError, from_data
from toggle_runtime.succession import Succession, succession_bytes
from toggle_runtime.trust import key_id, key_line

from toggle_edge.errors import SigningKeyError
from toggle_edge.signing import (
    PRIVATE_FILE,
    PUBLIC_FILE,
    SigningKey,
    key_folder,
    revoked_keys,
    signing_key,
    trusted_keys,
)

NEXT_FILE, SUCCESSIONS = "signing-next.pem", "successions.json"
SIGNING, TRUSTED, REVOKED = "signing", "trusted", "revoked"


@dataclass(frozen=True, slots=True)
class Key:
    """A public key (hex), what it is called, and whether we sign with it, believe it, or do so no more."""

    key: str
    name: str
    role: str

    @property
    def id(self) -> str:
        return key_id(self.key)


def keys(folder: Path | None = None) -> list[Key]:
    """All keys that this host knows: its own first, then those that it trusts, then the revoked ones, by name."""
    own = (folder or key_folder()) / PRIVATE_FILE
    ours = signing_key(folder).public if own.exists() else None
    listed = [
        Key(key, name, SIGNING if key == ours else TRUSTED) for key, name in trusted_keys(folder).items()
    ]
    listed += [Key(key, name, REVOKED) for key, name in revoked_keys(folder).items()]
    return sorted(
        listed, key=lambda each: ((SIGNING, TRUSTED, REVOKED).index(each.role), each.name, each.key)
    )


def rotate(folder: Path | None = None) -> tuple[Key, SigningKey]:
    """Sign with a new key from now on; return the old one, still trusted here, and the new one.

    The old secret is gone afterwards; before, it signs that the new key follows it. May be repeated when it was
    interrupted: the same new key is gone on with. Raises SigningKeyError as `signing_key` does.
    """
    folder = folder or key_folder()
    old = signing_key(folder)
    try:
        new = _next_secret(folder)
        public = new.public_key().public_bytes_raw().hex()
        followed = successions(folder)
        if not (followed and (followed[-1].old, followed[-1].new) == (old.public, public)):
            base = old.name.rpartition(".")[0] if followed and followed[-1].new == old.public else old.name
            name = f"{base[:70]}.{len(followed) + 2}"
            signature = old.secret.sign(succession_bytes(old.public, public, name)).hex()
            followed.append(Succession(old.public, public, name, signature))
            text = json.dumps([dataclasses.asdict(each) for each in followed], indent=1)
            write_durably(folder / SUCCESSIONS, text.encode())
        (folder / "trusted").mkdir(exist_ok=True)
        line = key_line(old.public, old.name)
        write_durably(folder / "trusted" / f"{key_id(old.public)}.pub", f"{line}\n".encode())
        # Without its public half a secret gets one again; with another one's it is refused.
        (folder / PUBLIC_FILE).unlink(missing_ok=True)
        (folder / NEXT_FILE).replace(folder / PRIVATE_FILE)
        write_durably(folder / PUBLIC_FILE, f"{key_line(public, followed[-1].name)}\n".encode())
    except (OSError, RecordError) as exc:
        raise SigningKeyError(
            f"signing key in {folder}: cannot be rotated: {exc}; repeat it, nothing is lost"
        ) from exc
    return Key(old.public, old.name, TRUSTED), signing_key(folder)


def revoke(which: str, folder: Path | None = None) -> Key:
    """Take no bundle by this key (its name or id) any more. Raises SigningKeyError for one that is not known, and for
    the one that we sign with."""
    folder = folder or key_folder()
    found = chosen(which, {each.key: each.name for each in keys(folder) if each.role != REVOKED})
    if (folder / PRIVATE_FILE).exists() and signing_key(folder).public == found.key:
        raise SigningKeyError(
            f"key {found.id} ({found.name}) is what this host signs with; run `toggle-edge keys rotate` first"
        )
    try:
        (folder / "revoked").mkdir(exist_ok=True)
        line = key_line(found.key, found.name)
        write_durably(folder / "revoked" / f"{found.id}.pub", f"{line}\n".encode())
    except OSError as exc:
        raise SigningKeyError(f"keys in {folder}: {exc}") from exc
    return Key(found.key, found.name, REVOKED)


def chosen(which: str, known: Mapping[str, str]) -> Key:
    """The key of this name or id among `known` (hex to name). Raises SigningKeyError for none or several."""
    found = [Key(key, name, TRUSTED) for key, name in known.items() if which in (name, key_id(key))]
    if len(found) != 1:
        listed = ", ".join(f"{key_id(key)} ({name})" for key, name in sorted(known.items())) or "none"
        what = "no key is" if not found else f"{len(found)} keys are"
        raise SigningKeyError(f"{what} called {which[:80]!r}; name one by its id: {listed}")
    return found[0]


def successions(folder: Path | None = None) -> list[Succession]:
    """How our keys followed each other, oldest first. Raises SigningKeyError for a damaged file."""
    path = (folder or key_folder()) / SUCCESSIONS
    if not path.is_file():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, list):
            raise ValueError(f"got {type(found).__name__}")
        return [from_data(Succession, each) for each in found]
    except (OSError, ValueError, RecursionError, TypeError) as exc:
        raise SigningKeyError(
            f"{path}: expected a list of successions: {exc}; restore it from a backup, or remove it (devices must then "
            "be told of the new key with `toggle-edge device trust`)"
        ) from exc


def _next_secret(folder: Path) -> Ed25519PrivateKey:
    path = folder / NEXT_FILE
    if not path.exists():
        text = Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        partial = folder / f".{NEXT_FILE}.{os.getpid()}"
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    secret = serialization.load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(secret, Ed25519PrivateKey):
        raise SigningKeyError(f"{path}: expected an Ed25519 key; remove it and repeat")
    return secret
