"""`toggle-edge deploy`, `rollback` and `run`: what is active on a device."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toggle_edge.cli.device import DeviceOption
from toggle_edge.cli.output import (
    RUNS,
    AllowUnsigned,
    AsJson,
    ModeOption,
    Restarts,
    RunsFolder,
    Store,
    run,
)
from toggle_edge.cli.search import DEFAULT_STORE


def register(app: typer.Typer) -> None:
    app.command("deploy")(deploy)
    app.command("rollback")(rollback)
    app.command("run")(talk)


def deploy(
    device: DeviceOption,
    bundle: Annotated[
        Path | None, typer.Option("--bundle", help="A bundle's folder. Default: what the study selects.")
    ] = None,
    mode: ModeOption = None,
    study: Annotated[
        str | None, typer.Option("--study", help="The study that selects. Default: the store's only one.")
    ] = None,
    store: Store = DEFAULT_STORE,
    bundles: Annotated[
        Path, typer.Option("--bundles", help="Folder for what is exported from a study.")
    ] = Path("toggle-edge-bundles"),
    allow_unsigned: AllowUnsigned = False,
    output: RunsFolder = RUNS,
    restarts: Restarts = None,
    as_json: AsJson = False,
) -> None:
    """Ship a bundle, validate it on the device, and switch it in if it passes; else nothing is switched."""
    from toggle_edge.pipeline.deploying import DeployOptions, run_deploy
    from toggle_edge.report.deployment import deploy_json, print_deploy

    options = DeployOptions(
        device, bundle, mode, study, store, bundles, allow_unsigned, output, restarts=restarts
    )
    run(
        lambda report: run_deploy(options, report),
        as_json,
        deploy_json,
        print_deploy,
        lambda result: result.outcome,
    )


def rollback(device: DeviceOption, as_json: AsJson = False) -> None:
    """Switch a device back to the bundle that was active before."""
    from toggle_edge.pipeline.deploying import run_rollback
    from toggle_edge.report.deployment import print_rollback, rollback_json

    run(lambda report: run_rollback(device, report), as_json, rollback_json, print_rollback, lambda _: "PASS")


def talk(
    prompt: Annotated[str, typer.Argument(help="A text to go on from.")],
    device: DeviceOption,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="At most so many tokens.")] = 64,
    beside_baseline: Annotated[
        bool, typer.Option("--beside-baseline", help="Also continue it with the baseline on this host.")
    ] = False,
    model: Annotated[
        Path | None,
        typer.Option("--model", help="The baseline's folder. Default: found in the store's studies."),
    ] = None,
    store: Store = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Talk to what is deployed on a device: greedy tokens, as they come."""
    from toggle_edge.pipeline.talking import TalkOptions, run_talk
    from toggle_edge.report.deployment import print_talked, talked_json

    options = TalkOptions(device, prompt, tokens, beside_baseline, model, store)

    def on_text(text: str) -> None:
        if not as_json:
            # The device chose the tokens; none of them may command the terminal.
            typer.echo("".join(c for c in text if c.isprintable() or c in "\n\t"), nl=False)

    run(
        lambda report: run_talk(options, report, on_text),
        as_json,
        talked_json,
        print_talked,
        lambda _: "PASS",
    )
