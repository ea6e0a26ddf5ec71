"""`toggle-edge device`: a registered device, described and told whom to trust."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from toggle_edge.errors import SigningKeyError
from toggle_edge.fleet.deploy import trust_key
from toggle_edge.fleet.device import load_device
from toggle_edge.fleet.facts import facts_of
from toggle_edge.fleet.transport import connect
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
