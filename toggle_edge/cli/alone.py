"""`toggle-edge device agent` and `toggle-edge import`: to a device without a host, and back from there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from toggle_edge.cli.output import RUNS, AsJson, ModeOption, RunsFolder, Store, run
from toggle_edge.cli.search import DEFAULT_STORE


def register(app: typer.Typer) -> None:
    app.command("import")(bring_home)


def agent(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The new file, for any Python from 3.8 on.")
    ] = Path("toggle-agent.pyz"),
    key: Annotated[
        Path | None,
        typer.Option(
            "--key", metavar="FILE", help="Also write this host's public key, for the agent's --key."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the agent as one file, for a device that no host can reach: python3 toggle-agent.pyz validate BUNDLE."""
    from toggle_edge.pipeline.carrying import write_agent

    written = write_agent(output, key)
    if as_json:
        typer.echo(json.dumps(written))
        return
    typer.echo(f"{written['agent']}  {written['bytes']} bytes, sha256 {written['sha256']}")
    known = f" --key {Path(str(written['key'])).name}" if written["key"] else ""
    typer.echo(
        f"there: python3 {output.name} validate BUNDLE{known} -o run.zip; then here: toggle-edge import run.zip"
    )


def bring_home(
    records: Annotated[
        Path, typer.Argument(metavar="RECORDS", help="A run's folder, or the file that the agent's -o made.")
    ],
    bundle: Annotated[
        Path | None,
        typer.Option(
            "--bundle", help="The bundle's folder. Default: what came along, if the store knows it."
        ),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="What to call the device.")] = "imported",
    mode: ModeOption = None,
    store: Store = DEFAULT_STORE,
    allow_unsigned: Annotated[
        bool, typer.Option("--allow-unsigned", help="Take a --bundle without a signature.")
    ] = False,
    output: RunsFolder = RUNS,
    jobs: Annotated[
        int | None, typer.Option("--jobs", help="Processes of RTAMT. Default: one per core.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Take home a run that was measured without a host: certify it from its traces, and keep it once."""
    from toggle_edge.pipeline.importing import ImportOptions, run_import
    from toggle_edge.report.imported import imported_json, print_imported

    options = ImportOptions(records, bundle, device, mode, store, allow_unsigned, output, jobs)
    run(
        lambda report: run_import(options, report),
        as_json,
        imported_json,
        print_imported,
        lambda result: result.outcome,
    )
