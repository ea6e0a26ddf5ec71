"""`toggle-edge certify`: judge a kept run again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toggle_edge.cli.output import AsJson, ModeOption, run


def register(app: typer.Typer) -> None:
    app.command("certify")(certify)


def certify(
    run_folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run's folder, as validate keeps it in toggle-edge-runs.")
    ],
    mode: ModeOption = None,
    candidates: Annotated[
        int,
        typer.Option(
            "--candidates", help="How many candidates were judged on the same probes, this one included."
        ),
    ] = 1,
    jobs: Annotated[
        int | None, typer.Option("--jobs", help="Processes of RTAMT. Default: one per core.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Judge a kept run again with RTAMT, the second monitor; needs no device."""
    from toggle_edge.pipeline.certifying import CertifyOptions, run_certify
    from toggle_edge.report.certificate import certificate_json, print_certificate

    options = CertifyOptions(run_folder, mode, candidates, jobs)
    run(
        lambda report: run_certify(options, report),
        as_json,
        certificate_json,
        print_certificate,
        lambda result: result.outcome,
    )
