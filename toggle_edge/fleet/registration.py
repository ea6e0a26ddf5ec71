"""A device becomes known: its key is confirmed, its agent installed, what it says of itself written down."""

from __future__ import annotations

import getpass
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from toggle_edge.errors import DeviceFileError, FleetError, HostKeyError
from toggle_edge.fleet import transport as transports
from toggle_edge.fleet.agent_client import request
from toggle_edge.fleet.capabilities import Choice, capability_table, choose, labels_of
from toggle_edge.fleet.device import Device, is_fingerprint, load_device
from toggle_edge.fleet.device_files import device_text, require_new, write_device_file
from toggle_edge.fleet.facts import DeviceFacts, facts_of
from toggle_edge.fleet.ssh_config import SshSettings, ssh_settings
from toggle_edge.fleet.ssh_login import offered_key, private_key
from toggle_edge.fleet.templates import HOST_KEY_FOLDER, Template, load_template

FOLDER = Path("devices")
"""Where device files are written: the user's own, in the folder that commands are given in."""

_NO_KEY = "SHA256:" + "A" * 43
"""In place of a host key that nobody has confirmed yet: it would be 256 zero bits, so no device can have it."""

_OF_SSH = ("host", "user", "port", "identity", "host_key")


@dataclass(frozen=True, slots=True)
class AddOptions:
    """What is known of a device before it is asked. None: from `~/.ssh/config`, then the template, then our default."""

    name: str
    host: str | None = None
    user: str | None = None
    port: int | None = None
    identity: str | None = None
    template: str | None = None
    host_key: str | None = None
    python: str | None = None
    root: str | None = None
    local: bool = False
    replace: bool = False


@dataclass(frozen=True, slots=True)
class Offer:
    """The host key that a device offers, for somebody to confirm. `pinned` is what its file has had so far, None for a
    new device; `command` reads the right one on the device itself."""

    device: Device
    kind: str
    fingerprint: str
    pinned: str | None
    command: str


@dataclass(frozen=True, slots=True)
class Added:
    """A device that was registered, its file, what it said of itself, and what was chosen for it."""

    device: Device
    path: Path
    facts: DeviceFacts
    choice: Choice


Confirm = Callable[[Offer], bool]
"""Whether somebody has compared the fingerprint with the one on the device."""


def add_device(
    options: AddOptions,
    confirm: Confirm,
    *,
    ssh_config: Path | None = None,
    connect: Callable[[Device], transports.Transport] = transports.connect,
) -> Added:
    """Register a device in `devices/`. Without a host key in `options`, `confirm` is asked about the offered one.

    Nothing is sent before the key is confirmed, and no file is written unless everything held. Raises DeviceFileError
    for options that cannot be used and for a file that is there already, HostKeyError for a key that is not the
    expected one or was not confirmed, FleetError for a device that cannot be used.
    """
    template = load_template(options.template) if options.template else None
    device = _described(options, template or Template("", ""), ssh_config)
    path = FOLDER / f"{device.name}.toml"
    if not options.replace:
        require_new(path)
    pinned = "no host key: this machine"
    if device.transport == "ssh":
        offer = _offer(device, template, path)
        pinned = f"host key {offer.kind}, {_agreed(offer, options.host_key, confirm)}"
        device = replace(device, host_key=offer.fingerprint)
    transport = connect(device)
    try:
        facts = facts_of(transport, device)
        _require_own_root(facts, device)
        # The first command that is not a look makes the root ours, and so shows that it can be written.
        request(transport, device, "missing", digests=[])
    finally:
        transport.close()
    choice = choose(facts)
    looked = time.strftime("%Y-%m-%d", time.gmtime())
    device = replace(
        device,
        target=choice.target,
        threads=min(device.threads, max(facts.cpus, 1)),
        labels={**labels_of(facts), **(template.labels if template else {})},
        capabilities={"looked": looked, **capability_table(facts, choice)},
    )
    heading = [f"Written by `toggle-edge device add` on {looked} ({pinned}). Edit it as you like."]
    heading += [f"{template.summary}.", *template.advice] if template else []
    heading += [choice.note] if choice.note else []
    write_device_file(path, device_text(device, heading), replace=options.replace)
    return Added(load_device(path), path, facts, choice)


def _described(options: AddOptions, template: Template, ssh_config: Path | None) -> Device:
    """The device as far as options, SSH configuration and template tell; its host key is none that exists."""
    device = Device(
        name=options.name,
        transport="local",
        root=options.root or template.root,
        python=options.python or template.python,
        threads=template.threads,
        meters=tuple(template.meters),
    )
    if options.local:
        given = [key for key in _OF_SSH if getattr(options, key) is not None]
        if given:
            raise DeviceFileError(
                f"device {options.name!r}: --local is this machine, so expected no --{given[0].replace('_', '-')}"
            )
        # Its own interpreter is there for certain, and the worker's wheels exist for it.
        return device if options.python or template.name else replace(device, python=sys.executable)
    if options.host is None:
        raise DeviceFileError(
            f"device {options.name!r}: expected --host ADDRESS, or --local for this machine, got neither"
        )
    if options.host_key is not None and not is_fingerprint(options.host_key):
        raise DeviceFileError(
            f"--host-key: expected SHA256: and 43 characters as ssh-keygen -lf prints them, got {options.host_key!r}"
        )
    return _reached(device, options, template, ssh_settings(options.host, ssh_config))


def _reached(device: Device, options: AddOptions, template: Template, settings: SshSettings) -> Device:
    identity = settings.identity or ""
    if options.identity is not None:
        try:
            private_key(Path(options.identity))
        except ValueError as exc:
            raise DeviceFileError(
                f"--{exc}; one with a passphrase works through the SSH agent: run ssh-add, and leave --identity out"
            ) from exc
        identity = str(Path(options.identity).expanduser().absolute())
    return replace(
        device,
        transport="ssh",
        host=settings.host,
        user=options.user or settings.user or getpass.getuser(),
        port=options.port or settings.port or template.port,
        identity=identity,
        host_key=_NO_KEY,
    )


def _offer(device: Device, template: Template | None, path: Path) -> Offer:
    offered = offered_key(device.host, device.port)
    known = re.search("ed25519|ecdsa|rsa", offered.kind)
    folder = template.host_key_folder if template else HOST_KEY_FOLDER
    command = f"ssh-keygen -lf {folder}/ssh_host_{known[0] if known else 'ed25519'}_key.pub"
    pinned = None
    if path.exists():
        with suppress(DeviceFileError):  # it is about to be replaced, perhaps because it is damaged
            pinned = load_device(path).host_key or None
    return Offer(device, offered.kind, offered.fingerprint, pinned, command)


def _agreed(offer: Offer, expected: str | None, confirm: Confirm) -> str:
    """How the offered key was found to be right, in words for the file. Raises HostKeyError for any other key."""
    where = f"device {offer.device.name!r} ({offer.device.host}:{offer.device.port})"
    if expected is None:
        if confirm(offer):
            return f"confirmed by {getpass.getuser()}"
        raise HostKeyError(
            f"{where}: the host key {offer.kind} {offer.fingerprint} was not confirmed; nothing was sent or written"
        )
    if expected != offer.fingerprint:
        raise HostKeyError(
            f"{where}: expected host key {expected}, got {offer.kind} {offer.fingerprint}; nothing was sent or "
            f"written. Read the right one on the device itself: {offer.command}"
        )
    return "as given with --host-key"


def _require_own_root(facts: DeviceFacts, device: Device) -> None:
    if facts.root_foreign:
        shown = ", ".join(facts.root_foreign[:3])
        raise FleetError(
            f"device {device.name!r}: root {device.root}: expected a folder of our own, found {shown[:120]!r} in it; "
            f"choose another one with --root; the agent is all that was put there ({device.root}/agent)"
        )
