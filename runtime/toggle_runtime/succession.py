"""A signing key's successor, vouched for by the key before it: a device that trusts the old one may trust the new."""

import json
from dataclasses import dataclass
from typing import Iterable, List

from toggle_runtime import ed25519
from toggle_runtime.records import Signature

MAX_SUCCESSIONS = 64
"""Signatures take a slow device a while each."""

_SIGNED_AS = b"toggle-edge succession\n"


@dataclass(frozen=True)
class Succession:
    """Public keys in hex: `new`, called `name`, follows `old`, which made the `signature`."""

    old: str
    new: str
    name: str
    signature: str

    def __post_init__(self) -> None:
        Signature(self.old, self.signature)
        Signature(self.new, self.signature)


def succession_bytes(old: str, new: str, name: str) -> bytes:
    """What the old key signs. The prefix keeps a signature of anything else from being taken for this."""
    text = json.dumps({"name": name, "new": new, "old": old}, sort_keys=True, separators=(",", ":"))
    return _SIGNED_AS + text.encode("utf-8")


def succeeds(key: str, trusted: Iterable[str], successions: List[Succession]) -> bool:
    """Whether a chain of successions, in their order, leads from a trusted key to `key`, every link signed."""
    reached = set(trusted)
    for each in successions[:MAX_SUCCESSIONS]:
        if each.old in reached and _holds(each):
            reached.add(each.new)
    return key in reached


def _holds(each: Succession) -> bool:
    signed = succession_bytes(each.old, each.new, each.name)
    return ed25519.verify(bytes.fromhex(each.old), signed, bytes.fromhex(each.signature))
