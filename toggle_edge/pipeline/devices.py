"""`toggle-edge device`: a registered device, described and told whom to trust."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from toggle_runtime.trust import key_id

from toggle_edge.errors import SigningKeyError
from toggle_edge.fleet.agent_client import request
from toggle_edge.fleet.deploy import trust_key
from toggle_edge.fleet.device import load_device
from toggle_edge.fleet.facts import DeviceFacts, facts_of
from toggle_edge.fleet.transport import connect
from toggle_edge.keyring import REVOKED, TRUSTED, Key, chosen, keys
from toggle_edge.signing import signing_key, trusted_keys
from toggle_edge.strict_tables import nearest


def described(name: str) -> dict[str, Mapping[str, object]]:
    """The device's file under `file`, and what its agent says under `facts`. Raises FleetError when unreachable."""
    device = load_device(name)
    transport = connect(device)
    try:
        facts = facts_of(transport, device)
    finally:
        transport.close()
    return {"file": dataclasses.asdict(device), "facts": dataclasses.asdict(facts)}


def trust(name: str, key_name: str | None) -> tuple[str, dict[str, str]]:
    """Have the device trust a key of `signing.trusted_keys()`, by default our own; return its name and all keys (hex)
    that it now trusts. Raises SigningKeyError for a name that is not known."""
    device, own = load_device(name), signing_key()
    known = {whose: key for key, whose in trusted_keys().items()}
    wanted = key_name or own.name
    if wanted not in known:
        raise SigningKeyError(
            f"no trusted key is called {wanted!r}{nearest(wanted, known)}; known: {', '.join(sorted(known))}"
        )
    transport = connect(device)
    try:
        trust_key(transport, device, known[wanted], wanted, force=True)
        return device.name, facts_of(transport, device).trusted_keys
    finally:
        transport.close()


def keys_on(name: str) -> list[tuple[str, str, str]]:
    """Id, name and role (`trusted` or `revoked`) of every key that a device knows."""
    device = load_device(name)
    transport = connect(device)
    try:
        return _listed(facts_of(transport, device))
    finally:
        transport.close()


def revoke_on(name: str, which: str) -> tuple[Key, list[tuple[str, str, str]]]:
    """Have a device take no bundle by a key any more, one that it trusts or that this host knows; return the key, and
    all that the device knows then. Raises SigningKeyError for a name or id that is neither's."""
    device = load_device(name)
    transport = connect(device)
    try:
        known = {each.key: each.name for each in keys()} | facts_of(transport, device).trusted_keys
        key = chosen(which, known)
        request(transport, device, "revoke", key=key.key, name=key.name)
        return key, _listed(facts_of(transport, device))
    finally:
        transport.close()


def _listed(facts: DeviceFacts) -> list[tuple[str, str, str]]:
    trusted = sorted((key_id(key), name, TRUSTED) for key, name in facts.trusted_keys.items())
    return trusted + sorted((each, name, REVOKED) for each, name in facts.revoked_keys.items())
