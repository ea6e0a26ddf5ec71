"""`toggle-edge device add`, `doctor` and `remove`: devices become known, are looked at, and are forgotten."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from toggle_edge.cli.output import EXIT_CODES, AsJson
from toggle_edge.errors import DeviceFileError

if TYPE_CHECKING:
    from toggle_edge.fleet.host_keys import Offer

DeviceArgument = Annotated[str, typer.Argument(help="A name in devices/, or a device file.")]
NameArgument = Annotated[str, typer.Argument(help="What to call it here: a plain name.")]
HostOption = Annotated[str | None, typer.Option("--host", help="Its address, or its name in ~/.ssh/config.")]
UserOption = Annotated[
    str | None, typer.Option("--user", help="Who logs in. Default: ~/.ssh/config's, else you.")
]
PortOption = Annotated[
    int | None, typer.Option("--port", help="Default: ~/.ssh/config's, the template's, else 22.")
]
IdentityOption = Annotated[
    str | None,
    typer.Option(
        "--identity",
        help="Private key without passphrase. Default: ~/.ssh/config's, else the SSH agent's keys.",
    ),
]
TemplateOption = Annotated[
    str | None, typer.Option("--template", help="Kind of board to fill in from, such as raspberry-pi-5.")
]
HostKeyOption = Annotated[
    str | None,
    typer.Option(
        "--host-key", metavar="SHA256:...", help="Its fingerprint, read on the device; asked for otherwise."
    ),
]


def add(
    name: NameArgument,
    host: HostOption = None,
    user: UserOption = None,
    port: PortOption = None,
    identity: IdentityOption = None,
    template: TemplateOption = None,
    host_key: HostKeyOption = None,
    python: Annotated[
        str | None, typer.Option("--python", help="Interpreter there, 3.8 or later. Default: the template's.")
    ] = None,
    root: Annotated[
        str | None,
        typer.Option(
            "--root", help="Folder of our own there, which need not exist. Default: the template's."
        ),
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="This machine, without SSH.")] = False,
    jump: Annotated[
        str | None,
        typer.Option(
            "--jump",
            metavar="[USER@]HOST[:PORT]",
            help="Host in between. Default: ~/.ssh/config's ProxyJump.",
        ),
    ] = None,
    jump_host_key: Annotated[
        str | None, typer.Option("--jump-host-key", metavar="SHA256:...", help="That host's fingerprint.")
    ] = None,
    packages: Annotated[
        str | None,
        typer.Option(
            "--packages",
            metavar="FOLDER",
            help="Its own numpy and onnxruntime there, in place of wheels that we ship.",
        ),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Write the device file anew.")] = False,
    as_json: AsJson = False,
) -> None:
    """Register a device: confirm its host key, install the agent, see what can run there, write devices/NAME.toml."""
    from toggle_edge.pipeline.registry import AddOptions, add_device
    from toggle_edge.report.cells import console_on_stdout
    from toggle_edge.report.devices import added_json, print_added

    options = AddOptions(
        name,
        host,
        user,
        port,
        identity,
        template,
        host_key,
        python,
        root,
        local,
        replace,
        jump,
        jump_host_key,
        packages,
    )
    added = add_device(options, _confirmed)
    if as_json:
        typer.echo(json.dumps(added_json(added)))
    else:
        print_added(added, console_on_stdout())


def doctor(device: DeviceArgument, as_json: AsJson = False) -> None:
    """What can and cannot be done and measured on a device, why, and the command that would mend it."""
    from toggle_edge.pipeline.registry import examined
    from toggle_edge.report.cells import console_on_stdout
    from toggle_edge.report.devices import examination_json, print_examination

    examination = examined(device)
    if as_json:
        typer.echo(json.dumps(examination_json(examination)))
    else:
        print_examination(examination, console_on_stdout())
    raise typer.Exit(EXIT_CODES.get(examination.outcome, 3))


def remove(
    device: DeviceArgument,
    keep_files: Annotated[
        bool, typer.Option("--keep-files", help="Leave the device alone; only forget it here.")
    ] = False,
    forget: Annotated[
        bool, typer.Option("--forget", help="Forget it even if it cannot be reached to be cleaned.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Take everything of ours off a device, and delete its device file."""
    from toggle_edge.pipeline.registry import remove_device
    from toggle_edge.report.cells import console_on_stdout
    from toggle_edge.report.devices import print_removed, removed_json

    removed = remove_device(device, keep_files=keep_files, forget=forget)
    if as_json:
        typer.echo(json.dumps(removed_json(removed)))
    else:
        print_removed(removed, console_on_stdout())


def _confirmed(offer: Offer) -> bool:
    """Ask whoever sits at the terminal. Raises DeviceFileError where nobody does."""
    who = f"{offer.where} offers the host key {offer.kind} {offer.fingerprint}"
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise DeviceFileError(
            f"device {offer.name!r}: {who}, and nobody is at a terminal to confirm it; read it there, not over "
            f"this link ({offer.command}), and give it as {offer.option}"
        )
    typer.echo(who, err=True)
    if offer.pinned is not None:
        known = "the same as in" if offer.pinned == offer.fingerprint else f"NOT {offer.pinned}, which is in"
        typer.echo(f"This is {known} its device file.", err=True)
    typer.echo(f"There, at its own console and not over this link, read it with\n  {offer.command}", err=True)
    try:
        return typer.confirm("Is it the same?", err=True)
    except typer.Abort as exc:  # Ctrl-C or Ctrl-D: an interrupt like any other
        raise KeyboardInterrupt from exc
