"""What all commands share: options, exit codes, one JSON object on stdout, progress on stderr."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from toggle_edge.cli.interrupts import checked

if TYPE_CHECKING:
    from rich.console import Console

    from toggle_edge.report.progress import Reporter

EXIT_CODES = {"PASS": 0, "FAIL": 1}
"""Every other outcome exits 3: it could not be done or measured."""

Result = TypeVar("Result")

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Profile = Annotated[
    str, typer.Option("--profile", help="The contract: a built-in profile's name, or a .toml file.")
]
Probes = Annotated[
    list[str] | None,
    typer.Option(
        "--probes",
        metavar="[KIND:]PATH",
        help="Texts to judge on, repeatable: csv, jsonl, lambada, stories, text, truthfulqa or wikitext, told from the "
        "file unless given; or hub:NAME. Default: the profile's, else probes.jsonl in the model, else built-in "
        "stories.",
    ),
]
Store = Annotated[str, typer.Option("--store", help="Database URL of studies and trials.")]
QuantiserOption = Annotated[
    str | None,
    typer.Option(
        "--quantiser",
        help="How codes and scales are chosen: rtn, lsq, seq, hqq, importance or gptq. Default: the profile's.",
    ),
]
PrunerOption = Annotated[
    str | None,
    typer.Option(
        "--pruner",
        help="Which weights become zero in layers with a sparsity: magnitude or wanda. Default: the profile's.",
    ),
]
ModeOption = Annotated[
    str | None, typer.Option("--mode", help="strict, optimal or relaxed. Default: the profile's or bundle's.")
]
AllowUnsigned = Annotated[
    bool, typer.Option("--allow-unsigned", help="Take a bundle without a signature, and tell the device to.")
]
RunsFolder = Annotated[Path, typer.Option("--output", "-o", help="Folder for the runs' records and traces.")]
RUNS = Path("toggle-edge-runs")
Restarts = Annotated[
    int | None,
    typer.Option(
        "--restarts",
        help="Processes to time. Default: 24; with fewer p95 and p99 have no interval, with fewer than 8 no time of a "
        "generation has.",
    ),
]


def run(
    work: Callable[[Reporter], Result],
    as_json: bool,
    to_json: Callable[[Result], dict[str, object]],
    to_people: Callable[[Result, Console], None],
    outcome: Callable[[Result], str],
) -> None:
    """Do the work with progress on stderr, print the result, exit with its outcome's code."""
    from toggle_edge.report.cells import console_on_stdout
    from toggle_edge.report.progress import on_stderr

    with on_stderr(as_json=as_json) as reporter:
        result = work(checked(reporter))
    if as_json:
        typer.echo(json.dumps(to_json(result), allow_nan=False))
    else:
        to_people(result, console_on_stdout())
    raise typer.Exit(EXIT_CODES.get(outcome(result), 3))
