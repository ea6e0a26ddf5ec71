"""`toggle-edge keys`, and `device keys` and `revoke`: whose bundles are taken, here and on devices."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from toggle_edge.cli.output import AsJson
from toggle_edge.cli.registry import DeviceArgument

KeyArgument = Annotated[str, typer.Argument(help="A key's name or id, as `keys` lists them.")]


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="List, rotate and revoke the keys of this host.", no_args_is_help=True)
    group.command("list")(list_keys)
    group.command("rotate")(rotate)
    group.command("revoke")(revoke)
    app.add_typer(group, name="keys")


def list_keys(as_json: AsJson = False) -> None:
    """The key that this host signs with, those whose bundles it takes, and those that were revoked."""
    from toggle_edge.keyring import keys

    _tell(
        {},
        [(each.id, each.name, each.role) for each in keys()],
        as_json,
        "no key yet: the first export makes one",
    )


def rotate(as_json: AsJson = False) -> None:
    """Sign with a new key from now on. The old one signs that it follows, so devices that trust that one take it."""
    from toggle_runtime.trust import key_id

    from toggle_edge.keyring import rotate as rotated

    old, new = rotated()
    if as_json:
        typer.echo(json.dumps({"old": old.id, "new": key_id(new.public), "name": new.name}))
        return
    typer.echo(
        f"signs as {new.name} ({key_id(new.public)}) from now on; its bundles are taken where {old.name}'s are"
    )
    typer.echo(
        f"{old.name} ({old.id}) is still trusted. If it was lost or stolen: toggle-edge keys revoke {old.id}"
    )


def revoke(key: KeyArgument, as_json: AsJson = False) -> None:
    """Take no bundle by a key any more, on this host. Devices are told one by one: toggle-edge device revoke D KEY."""
    from toggle_edge.keyring import revoke as revoked

    gone = revoked(key)
    if as_json:
        typer.echo(json.dumps({"revoked": gone.id, "name": gone.name}))
        return
    typer.echo(
        f"{gone.name} ({gone.id}) is revoked here; on each device: toggle-edge device revoke D {gone.id}"
    )


def device_keys(device: DeviceArgument, as_json: AsJson = False) -> None:
    """The keys whose bundles a device takes, and those that were revoked there."""
    from toggle_edge.pipeline.devices import keys_on

    _tell(
        {"device": device},
        keys_on(device),
        as_json,
        "trusts nobody yet: the first bundle's signer will be trusted",
    )


def device_revoke(device: DeviceArgument, key: KeyArgument, as_json: AsJson = False) -> None:
    """Have a device validate, activate and run no bundle by a key any more; for good."""
    from toggle_edge.pipeline.devices import revoke_on

    gone, listed = revoke_on(device, key)
    if not as_json:
        typer.echo(f"{gone.name} ({gone.id}) is revoked on {device}")
    _tell({"device": device, "revoked": gone.id}, listed, as_json, "")


def _tell(more: dict[str, str], listed: list[tuple[str, str, str]], as_json: bool, none: str) -> None:
    if as_json:
        entries = [{"id": key, "name": name, "role": role} for key, name, role in listed]
        typer.echo(json.dumps({**more, "keys": entries}))
        return
    for key, name, role in listed:
        typer.echo(f"{key}  {role:<8} {name}")
    if not listed:
        typer.echo(none)
