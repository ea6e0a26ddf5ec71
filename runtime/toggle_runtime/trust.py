"""Whose bundles a device runs: the public keys in `ROOT/keys`, and the check of a manifest's signature.

The first host that reaches a device leaves its key there; after that a key is added only on purpose. Whoever can
log in could write the file anyway: what the signature keeps out is a bundle that nobody on the list has made.
"""

import fcntl
import hashlib
import os
import re
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, Optional, Sequence

from toggle_runtime import ed25519
from toggle_runtime.blobs import write_durably
from toggle_runtime.records import Manifest, RecordError, Signature, signed_bytes
from toggle_runtime.succession import Succession, succeeds
from toggle_runtime.wire import RequestError

MAX_KEY_BYTES = 4096

_LINE = re.compile(r"ed25519 ([0-9a-f]{64}) ([A-Za-z0-9_][A-Za-z0-9._@-]{0,79})")


def key_line(key: str, name: str) -> str:
    """A public key as one line of text, on host and device alike. Raises RecordError for a malformed one."""
    line = f"ed25519 {key} {name}"
    if not _LINE.fullmatch(line):
        raise RecordError(
            f"key: expected 64 lower-case hex digits and a plain name, got {key[:70]!r} and {name[:90]!r}"
        )
    return line


def read_key(path: Path) -> Dict[str, str]:
    """`{key: name}` of one key file. Raises RecordError when it is not one line as `key_line` writes it."""
    with path.open("rb") as stream:
        text = stream.read(MAX_KEY_BYTES).decode("utf-8", "replace").strip()
    match = _LINE.fullmatch(text)
    if match is None:
        raise RecordError(f"{path}: expected one line `ed25519 HEX NAME`, got {text[:60]!r}; remove the file")
    return {match[1]: match[2]}


def key_id(key: str) -> str:
    """Sixteen hex digits that name a public key (hex) where people read it."""
    return hashlib.sha256(bytes.fromhex(key)).hexdigest()[:16]


def trusted_keys(root: Path) -> Dict[str, str]:
    """The public keys (hex) that this device trusts, and their names. A damaged key file trusts nobody."""
    keys: Dict[str, str] = {}
    for path in sorted((root / "keys").glob("*.pub")):
        try:
            keys.update(read_key(path))
        except RecordError:
            continue
    gone = revoked_keys(root)
    return {key: name for key, name in keys.items() if key_id(key) not in gone}


def revoked_keys(root: Path) -> Dict[str, str]:
    """By key id, the names of keys that this device takes no bundle from any more. A damaged file revokes all the same:
    its name is enough."""
    gone: Dict[str, str] = {}
    for path in sorted((root / "keys").glob("*.revoked")):
        try:
            gone[path.stem] = next(iter(read_key(path).values()))
        except (RecordError, OSError):
            gone[path.stem] = "unknown"
    return gone


def trust(
    root: Path, key: str, name: str, force: bool, successions: Sequence[Succession] = ()
) -> Dict[str, Any]:
    """Trust `key` if it is the first one, or already trusted, or follows a trusted one by `successions`, or `force`.

    Raises RequestError of kind `trust` otherwise, and for a revoked key always.
    """
    line = key_line(key, name)
    with _keys(root) as folder:
        known, gone = trusted_keys(root), revoked_keys(root)
        if key_id(key) in gone:
            raise RequestError(
                "trust",
                f"key {key_id(key)} ({gone[key_id(key)]}) was revoked on this device, which is for good; sign "
                "with a new key (toggle-edge keys rotate)",
            )
        if key not in known:
            # Where a key was revoked somebody has been here: nobody is the first again.
            # A revoked key may be in whoever's hands, so it vouches for nobody.
            vouching = [each for each in successions if key_id(each.old) not in gone]
            if (known or gone) and not force and not succeeds(key, known, vouching):
                raise RequestError(
                    "trust",
                    f"this device trusts bundles signed by {_listed(known) or 'nobody'} only, got key {key_id(key)} "
                    f"({name}); if that is right, run `toggle-edge device trust` for this device",
                )
            write_durably(folder / f"{key_id(key)}.pub", (line + "\n").encode("utf-8"))
        return {"trusted_keys": trusted_keys(root)}


def revoke(root: Path, key: str, name: str) -> Dict[str, Any]:
    """Never again take a bundle by `key`, known here or not; its name is `name` unless it is known by another."""
    with _keys(root) as folder:
        line = key_line(key, trusted_keys(root).get(key, name))
        path = folder / f"{key_id(key)}.revoked"
        if not path.exists():
            write_durably(path, (line + "\n").encode("utf-8"))
        return {"trusted_keys": trusted_keys(root), "revoked_keys": revoked_keys(root)}


@contextmanager
def _keys(root: Path) -> Iterator[Path]:
    """The folder of keys, locked: of two hosts that come at once, one is the first."""
    folder = root / "keys"
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(str(folder), os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield folder
    finally:
        os.close(descriptor)


def require_signature(root: Path, manifest: Manifest, *, allow_unsigned: bool) -> Optional[str]:
    """The trusted public key that signed the manifest; None for an unsigned one that is allowed.

    Raises RecordError, `signature: ...`, for every other manifest.
    """
    signature = manifest.signature
    if signature is None:
        if allow_unsigned:
            return None
        why = "made by a toggle-edge without signatures" if manifest.version == 1 else "not signed"
        raise RecordError(
            f"signature: expected a signed bundle, this one was {why}; export it again, or allow unsigned bundles"
        )
    known, gone = trusted_keys(root), revoked_keys(root)
    if key_id(signature.key) in gone:
        raise RecordError(
            f"signature: the bundle is signed by key {key_id(signature.key)} ({gone[key_id(signature.key)]}), which "
            "was revoked on this device; export it again, signed by a key that is trusted"
        )
    if signature.key not in known:
        listed = _listed(known) or "nobody"
        raise RecordError(
            f"signature: the bundle is signed by key {key_id(signature.key)}, this device trusts {listed}; "
            "if that key is yours, run `toggle-edge device trust` for this device, or on it `validate --key FILE`"
        )
    if not signature_holds(manifest, signature):
        raise RecordError(
            f"signature: the signature by {known[signature.key]} does not fit the manifest: it was altered after "
            "it was signed; export the bundle again"
        )
    return signature.key


def signature_holds(manifest: Manifest, signature: Signature) -> bool:
    """Whether `signature` signs this manifest, by whoever's key it is."""
    return ed25519.verify(
        bytes.fromhex(signature.key), signed_bytes(manifest), bytes.fromhex(signature.signature)
    )


def _listed(keys: Dict[str, str]) -> str:
    return ", ".join(f"{key_id(key)} ({name})" for key, name in sorted(keys.items()))
