"""A host key is offered, and somebody who has seen the right one says whether it is that."""

from __future__ import annotations

import getpass
import re
from collections.abc import Callable
from dataclasses import dataclass

from toggle_edge.errors import HostKeyError
from toggle_edge.fleet.device import Device, Jump
from toggle_edge.fleet.ssh_login import offered_key


@dataclass(frozen=True, slots=True)
class Offer:
    """The host key that a device, or the host in between, offers, for somebody to confirm. `pinned` is what the device
    file has had so far, None for a new one; `command` reads the right one there, `option` is how to give it instead."""

    name: str
    where: str
    option: str
    kind: str
    fingerprint: str
    pinned: str | None
    command: str


Confirm = Callable[[Offer], bool]
"""Whether somebody has compared the fingerprint with the one on the device."""


def offer_of(
    name: str, end: Device | Jump, folder: str, known: Device | Jump | None, jump: Jump | None
) -> Offer:
    """Ask the sshd of a device, or of the host in between, for its key; `folder` is where it keeps its host keys,
    `known` the device file so far. Raises TransportError where nobody answers."""
    offered = offered_key(end.host, end.port, jump)
    kind = re.search("ed25519|ecdsa|rsa", offered.kind)
    command = f"ssh-keygen -lf {folder}/ssh_host_{kind[0] if kind else 'ed25519'}_key.pub"
    option = "--jump-host-key" if isinstance(end, Jump) else "--host-key"
    pinned = known.host_key or None if known is not None else None
    return Offer(name, f"{end.host}:{end.port}", option, offered.kind, offered.fingerprint, pinned, command)


def agreed(offer: Offer, expected: str | None, confirm: Confirm) -> str:
    """How the offered key was found to be right, in words for the file. Raises HostKeyError for any other key."""
    where = f"device {offer.name!r} ({offer.where})"
    if expected is None:
        if confirm(offer):
            return f"confirmed by {getpass.getuser()}"
        raise HostKeyError(
            f"{where}: the host key {offer.kind} {offer.fingerprint} was not confirmed; nothing was sent or written"
        )
    if expected != offer.fingerprint:
        raise HostKeyError(
            f"{where}: expected host key {expected}, got {offer.kind} {offer.fingerprint}; nothing was sent or "
            f"written. Read the right one there, not over this link: {offer.command}"
        )
    return f"as given with {offer.option}"
