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

from toggle_edge.errors import DeviceFileError, FleetError
from toggle_edge.fleet import transport as transports
from toggle_edge.fleet.agent_client import request
from toggle_edge.fleet.capabilities import Choice, capability_table, choose, is_by_runtime, labels_of
from toggle_edge.fleet.device import Device, Jump, is_fingerprint, load_device
from toggle_edge.fleet.device_files import device_text, require_new, write_device_file
from toggle_edge.fleet.facts import DeviceFacts, facts_of
from toggle_edge.fleet.host_keys import Confirm, agreed, offer_of
from toggle_edge.fleet.packages import look_at_packages
from toggle_edge.fleet.ssh_config import ssh_settings
from toggle_edge.fleet.ssh_login import private_key
from toggle_edge.fleet.templates import HOST_KEY_FOLDER, Template, load_template

FOLDER = Path("devices")
"""Where device files are written: the user's own, in the folder that commands are given in."""

_NO_KEY = "SHA256:" + "A" * 43
"""In place of a host key that nobody has confirmed yet: it would be 256 zero bits, so no device can have it."""

_OF_SSH = ("host", "user", "port", "identity", "host_key", "jump", "jump_host_key")
_HOP = re.compile(r"(?:(?P<user>[^@\s,]+)@)?(?P<host>[^@:\s,-][^@:\s,]*)(?::(?P<port>[0-9]{1,5}))?")


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
    jump: str | None = None
    jump_host_key: str | None = None
    packages: str | None = None


@dataclass(frozen=True, slots=True)
class Added:
    """A device that was registered, its file, what it said of itself, and what was chosen for it."""

    device: Device
    path: Path
    facts: DeviceFacts
    choice: Choice


def add_device(
    options: AddOptions,
    confirm: Confirm,
    *,
    ssh_config: Path | None = None,
    connect: Callable[[Device], transports.Transport] = transports.connect,
) -> Added:
    """Register a device in `devices/`. Without a host key in `options`, `confirm` is asked about the offered one.

    Nothing is sent before the key is confirmed, and no file is written unless everything held. A file that is replaced
    leaves to the new one what people have set in it: budget, labels, packages, a target that is not decided by its
    onnxruntime.

    Raises DeviceFileError for options that cannot be used and for a file that is there already, HostKeyError for a key
    that is not the expected one or was not confirmed, FleetError for a device that cannot be used.
    """
    template = load_template(options.template) if options.template else None
    device = _described(options, template or Template("", ""), ssh_config)
    path = FOLDER / f"{device.name}.toml"
    if not options.replace:
        require_new(path)
    pinned, known = "no host key: this machine", _known(path)
    if options.packages is None and known is not None:
        device = replace(device, packages=known.packages)
    if device.transport == "ssh":
        if device.jump is not None:
            first = offer_of(device.name, device.jump, HOST_KEY_FOLDER, known and known.jump, None)
            agreed(first, options.jump_host_key, confirm)
            device = replace(device, jump=replace(device.jump, host_key=first.fingerprint))
        folder = template.host_key_folder if template else HOST_KEY_FOLDER
        offer = offer_of(device.name, device, folder, known, device.jump)
        pinned = f"host key {offer.kind}, {agreed(offer, options.host_key, confirm)}"
        device = replace(device, host_key=offer.fingerprint)
    transport = connect(device)
    try:
        facts = facts_of(transport, device)
        _require_own_root(facts, device)
        # The first command that is not a look makes the root ours, and so shows that it can be written.
        request(transport, device, "receive", blobs=[])
        own = look_at_packages(transport, device) if device.packages else None
    finally:
        transport.close()
    choice = choose(facts, own=own)
    looked = time.strftime("%Y-%m-%d", time.gmtime())
    device = replace(
        device,
        target=known.target if known and not is_by_runtime(known.target) else choice.target,
        threads=min(device.threads, max(facts.cpus, 1)),
        labels={
            **(known.labels if known else {}),
            **labels_of(facts),
            **(template.labels if template else {}),
        },
        budget=known.budget if known else device.budget,
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
        packages=options.packages or "",
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
    for option, key in (("--host-key", options.host_key), ("--jump-host-key", options.jump_host_key)):
        if key is not None and not is_fingerprint(key):
            raise DeviceFileError(
                f"{option}: expected SHA256: and 43 characters as ssh-keygen -lf prints them, got {key!r}"
            )
    return _reached(device, options, template, ssh_config)


def _reached(device: Device, options: AddOptions, template: Template, ssh_config: Path | None) -> Device:
    settings = ssh_settings(options.host or "", ssh_config)
    identity = settings.identity or ""
    if options.identity is not None:
        try:
            private_key(Path(options.identity))
        except ValueError as exc:
            raise DeviceFileError(
                f"--{exc}; one with a passphrase works through the SSH agent: run ssh-add, and leave --identity out"
            ) from exc
        identity = str(Path(options.identity).expanduser().absolute())
    jump = options.jump or settings.jump
    if jump is None and options.jump_host_key is not None:
        raise DeviceFileError("--jump-host-key: expected --jump, or a ProxyJump in ~/.ssh/config, beside it")
    return replace(
        device,
        transport="ssh",
        host=settings.host,
        user=options.user or settings.user or getpass.getuser(),
        port=options.port or settings.port or template.port,
        identity=identity,
        host_key=_NO_KEY,
        jump=None if jump is None else _jump(jump, identity, ssh_config),
    )


def _jump(text: str, identity: str, ssh_config: Path | None) -> Jump:
    """The host in between, from `[USER@]HOST[:PORT]` and what the SSH configuration says of it."""
    match = _HOP.fullmatch(text)
    if match is None:
        raise DeviceFileError(f"jump: expected one host as [USER@]HOST[:PORT], got {text!r}")
    settings = ssh_settings(match["host"], ssh_config)
    if settings.jump is not None:
        raise DeviceFileError(
            f"jump {match['host']}: expected one that is reached directly, it has a ProxyJump {settings.jump} itself"
        )
    user = match["user"] or settings.user or getpass.getuser()
    port = int(match["port"]) if match["port"] else settings.port or 22
    return Jump(settings.host, port, user, _NO_KEY, settings.identity or identity)


def _known(path: Path) -> Device | None:
    # It is about to be replaced, perhaps because it is damaged.
    with suppress(DeviceFileError):
        return load_device(path) if path.exists() else None
    return None


def _require_own_root(facts: DeviceFacts, device: Device) -> None:
    if facts.root_foreign:
        shown = ", ".join(facts.root_foreign[:3])
        raise FleetError(
            f"device {device.name!r}: root {device.root}: expected a folder of our own, found {shown[:120]!r} in it; "
            f"choose another one with --root; the agent is all that was put there ({device.root}/agent)"
        )
