"""`toggle-edge demo`: the whole loop on the demo model, with this machine as the device."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toggle_edge.cli.output import AsJson, run


def register(app: typer.Typer) -> None:
    app.command("demo")(demo)


def demo(
    as_json: AsJson = False,
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
    from toggle_edge.pipeline.demo import DemoOptions, run_demo
    from toggle_edge.report.loop import loop_json
    from toggle_edge.report.tables import print_loop

    options = DemoOptions(work, trials, candidates, seed, local)
    run(
        lambda report: run_demo(options, report),
        as_json,
        loop_json,
        print_loop,
        lambda result: result.outcome,
    )
