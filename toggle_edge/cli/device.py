"""`toggle-edge validate` and `toggle-edge device`: what is done with registered devices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from toggle_edge.cli import alone, keys, registry
from toggle_edge.cli.output import RUNS, AllowUnsigned, AsJson, ModeOption, Restarts, RunsFolder, run
from toggle_edge.cli.registry import DeviceArgument

DeviceOption = Annotated[str, typer.Option("--device", help="A name in devices/, or a device file.")]


def register(app: typer.Typer) -> None:
    app.command("validate")(validate)
    group = typer.Typer(help="Add, list, show, examine, trust and remove devices.", no_args_is_help=True)
    group.command("add")(registry.add)
    group.command("list")(list_devices)
    group.command("show")(show)
    group.command("doctor")(registry.doctor)
    group.command("trust")(trust)
    group.command("remove")(registry.remove)
    group.command("keys")(keys.device_keys)
    group.command("revoke")(keys.device_revoke)
    group.command("agent")(alone.agent)
    app.add_typer(group, name="device")


def validate(
    device: DeviceOption,
    bundle: Annotated[Path, typer.Option("--bundle", help="A bundle's folder, as export writes it.")],
    mode: ModeOption = None,
    allow_unsigned: AllowUnsigned = False,
    strict_conditions: Annotated[
        bool,
        typer.Option("--strict-conditions", help="Refuse (exit 3) times and energy that were disturbed."),
    ] = False,
    pin_clocks: Annotated[
        bool, typer.Option("--pin-clocks", help="Hold the clocks at their highest meanwhile; put back after.")
    ] = False,
    energy_seconds: Annotated[
        float, typer.Option("--energy-seconds", min=1.0, max=3600.0, help="Length of the energy window.")
    ] = 10.0,
    output: RunsFolder = RUNS,
    restarts: Restarts = None,
    sustained: Annotated[
        float | None,
        typer.Option("--sustained", help="Generate for so many seconds more, to see whether it slows down."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a bundle on a device and check the contract there again; switch nothing."""
    from toggle_edge.pipeline.validation import ValidateOptions, measuring, run_validate
    from toggle_edge.report.validation import print_validation, validation_json

    options = ValidateOptions(
        device,
        bundle,
        mode,
        allow_unsigned,
        output,
        measuring(energy_seconds=energy_seconds, pin_clocks=pin_clocks),
        strict_conditions=strict_conditions,
        restarts=restarts,
        sustained_s=sustained,
    )
    run(
        lambda report: run_validate(options, report),
        as_json,
        validation_json,
        print_validation,
        lambda result: result.outcome,
    )


def list_devices(as_json: AsJson = False) -> None:
    """The devices that commands know by name."""
    from toggle_edge.fleet.device import device_names, load_device

    devices = [load_device(name) for name in device_names()]
    if as_json:
        entries = [
            {"name": d.name, "target": d.target, "transport": d.transport, "host": d.host} for d in devices
        ]
        typer.echo(json.dumps({"devices": entries}))
        return
    for device in devices:
        where = f"{device.user}@{device.host}:{device.port}" if device.transport == "ssh" else "this machine"
        typer.echo(f"{device.name:<24} {device.target:<12} {device.transport:<6} {where}")


def show(device: DeviceArgument, as_json: AsJson = False) -> None:
    """A device's file and, asked now, what the device says of itself."""
    from toggle_edge.pipeline.devices import described

    description = described(device)
    if as_json:
        typer.echo(json.dumps(description))
        return
    for section, entries in description.items():
        typer.echo(section)
        for key, value in entries.items():
            typer.echo(f"  {key:<20} {value}")


def trust(
    device: DeviceArgument,
    key: Annotated[
        str | None, typer.Option("--key", help="Name of a key that this host trusts. Default: its own.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Have a device run bundles signed by this host's key, or by one that it trusts, beside what it runs already."""
    from toggle_edge.pipeline.devices import trust as trust_key

    name, keys = trust_key(device, key)
    if as_json:
        typer.echo(json.dumps({"device": name, "trusted_keys": keys}))
        return
    typer.echo(f"{name} trusts bundles signed by {', '.join(sorted(keys.values()))}")
