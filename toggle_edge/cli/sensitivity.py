"""`toggle-edge sensitivity`: what each layer costs and what it breaks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toggle_edge.cli.output import AsJson, ModeOption, Probes, Profile, QuantiserOption, run


def register(app: typer.Typer) -> None:
    app.command("sensitivity")(sensitivity)


def sensitivity(
    model: Annotated[Path, typer.Argument(help="Folder with config.json, tokenizer.json, *.safetensors.")],
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", help="A format to try, repeatable (int4-g32). Default: the profile's."),
    ] = None,
    profile: Profile = "default",
    mode: ModeOption = None,
    probes: Probes = None,
    count: Annotated[
        int, typer.Option("--count", min=1, help="How many of the search probes are read.")
    ] = 16,
    quantiser: QuantiserOption = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the heat maps.")] = Path(
        "toggle-edge-sensitivity"
    ),
    as_json: AsJson = False,
) -> None:
    """Lower one layer at a time: what it costs, what it breaks, what it saves. Draws heat maps."""
    from toggle_edge.pipeline.sensing import SensitivityOptions, run_sensitivity
    from toggle_edge.report.sensitivity import print_sensitivity, sensitivity_json

    options = SensitivityOptions(
        model, tuple(formats or ()), profile, mode, tuple(probes or ()), count, quantiser, output
    )
    run(
        lambda report: run_sensitivity(options, report),
        as_json,
        sensitivity_json,
        print_sensitivity,
        lambda result: "PASS",
    )
