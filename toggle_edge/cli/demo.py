"""`toggle-edge demo`: the whole loop on the demo model, with this machine as the device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

EXIT_CODES = {"PASS": 0, "FAIL": 1}
"""Every other outcome exits 3: it could not be done or measured."""


def register(app: typer.Typer) -> None:
    app.command("demo")(demo)


def demo(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
    work: Annotated[
        Path, typer.Option("--work", help="Folder for the store, the artifacts, the bundles and the device.")
    ] = Path("toggle-edge-demo"),
    trials: Annotated[
        int, typer.Option("--trials", min=24, help="How many configs the search evaluates.")
    ] = 36,
    candidates: Annotated[
        int, typer.Option("--candidates", min=4, help="How many candidates are exported and measured.")
    ] = 5,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the search.")] = 0,
    local: Annotated[
        bool, typer.Option("--local", help="Use the local transport even where sshd is there.")
    ] = False,
) -> None:
    """Search, export, ship over SSH, measure, re-check and re-rank: the loop on a small trained model."""
    from rich.console import Console

    from toggle_edge.pipeline.demo import DemoOptions, run_demo
    from toggle_edge.report.loop import loop_json
    from toggle_edge.report.progress import on_stderr
    from toggle_edge.report.tables import WIDTH, print_loop

    with on_stderr() as reporter:
        result = run_demo(DemoOptions(work, trials, candidates, seed, local), reporter)
    if as_json:
        typer.echo(json.dumps(loop_json(result), allow_nan=False))
    else:
        print_loop(result, Console(width=WIDTH))
    raise typer.Exit(EXIT_CODES.get(result.outcome, 3))
