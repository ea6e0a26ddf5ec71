"""`toggle-edge device`: a registered device, described and told whom to trust."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from toggle_edge.fleet.deploy import trust_key
from toggle_edge.fleet.device import load_device
from toggle_edge.fleet.facts import facts_of
from toggle_edge.fleet.transport import connect
from toggle_edge.signing import signing_key


def described(name: str) -> dict[str, Mapping[str, object]]:
    """The device's file under `file`, and what its agent says under `facts`. Raises FleetError when unreachable."""
    device = load_device(name)
    transport = connect(device)
    try:
        facts = facts_of(transport, device)
    finally:
        transport.close()
    return {"file": dataclasses.asdict(device), "facts": dataclasses.asdict(facts)}


def trust_own_key(name: str) -> tuple[str, dict[str, str]]:
    """Have the device trust this host's signing key; return its name and all keys (hex) that it now trusts."""
    device, key = load_device(name), signing_key()
    transport = connect(device)
    try:
        trust_key(transport, device, key.public, key.name, force=True)
        return device.name, facts_of(transport, device).trusted_keys
    finally:
        transport.close()
