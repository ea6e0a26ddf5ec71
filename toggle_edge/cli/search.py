"""`toggle-edge search`, `check` and `export`: from a model to a bundle, on the host."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toggle_edge.cli.output import (
    AsJson,
    ModeOption,
    Probes,
    Profile,
    PrunerOption,
    QuantiserOption,
    Store,
    run,
)

# As the store has it, whose import costs too much for --help.
DEFAULT_STORE = "sqlite:///toggle-edge.db"
TARGETS = ("onnx-cpu", "onnx-cpu-1.23", "onnx-cpu-1.19", "onnx-cuda", "executorch-xnnpack")


def register(app: typer.Typer) -> None:
    app.command("search")(search)
    app.command("check")(check)
    app.command("export")(export)


def search(
    model: Annotated[Path, typer.Argument(help="Folder with config.json, tokenizer.json, *.safetensors.")],
    profile: Profile = "default",
    target: Annotated[
        str,
        typer.Option(
            "--target",
            help="What the configs must run on: onnx-cpu, onnx-cpu-1.23 or onnx-cpu-1.19 (onnxruntime of that "
            "version on), onnx-cuda or executorch-xnnpack; or paper, TOGGLE's own world of 2 to 16 bits and zeros "
            "that pay.",
        ),
    ] = TARGETS[0],
    trials: Annotated[
        int | None,
        typer.Option("--trials", min=1, help="How many configs are evaluated. Default: the profile's."),
    ] = None,
    probes: Probes = None,
    study: Annotated[
        str | None, typer.Option("--study", help="The study's name. Default: MODEL-PROFILE-SEED.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The search is deterministic for a seed.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a study, and fail if there is none of that name.")
    ] = False,
    store: Store = DEFAULT_STORE,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the selected configs.")] = Path(
        "toggle-edge-studies"
    ),
    quantiser: QuantiserOption = None,
    pruner: PrunerOption = None,
    workers: Annotated[
        int, typer.Option("--workers", min=1, help="Processes that evaluate at once; they share the cores.")
    ] = 1,
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch",
            min=1,
            help="Trials that are proposed at once; decides which, whoever evaluates. Default: the study's, else 1, or "
            "two for each of several workers.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find the cheapest per-layer formats that keep the contract. The same command again goes on."""
    from toggle_edge.pipeline.searching import SearchOptions, run_search
    from toggle_edge.report.search import print_search, search_json

    options = SearchOptions(
        model,
        profile,
        target,
        tuple(probes or ()),
        trials,
        study,
        seed,
        resume,
        store,
        output,
        quantiser,
        pruner,
        workers,
        batch,
    )
    run(
        lambda report: run_search(options, report),
        as_json,
        search_json,
        print_search,
        lambda result: result.outcome,
    )


def check(
    model: Annotated[Path, typer.Argument(help="Folder with config.json, tokenizer.json, *.safetensors.")],
    config: Annotated[
        str, typer.Option("--config", help="A config file, or one format for all layers (int4-g32).")
    ],
    profile: Profile = "default",
    mode: ModeOption = None,
    probes: Probes = None,
    relax: Annotated[
        float, typer.Option("--relax", min=0.0, help="Weaken every threshold by this share: 0.2 is 20 %.")
    ] = 0.0,
    mine: Annotated[
        bool, typer.Option("--mine", help="Also print the tightest thresholds that this config satisfies.")
    ] = False,
    quantiser: QuantiserOption = None,
    pruner: PrunerOption = None,
    as_json: AsJson = False,
) -> None:
    """Judge one config against the contract, on the host."""
    from toggle_edge.pipeline.checking import CheckOptions, run_check
    from toggle_edge.report.check import check_json, print_check

    options = CheckOptions(model, config, profile, mode, tuple(probes or ()), relax, mine, quantiser, pruner)
    run(
        lambda report: run_check(options, report),
        as_json,
        check_json,
        print_check,
        lambda result: result.outcome,
    )


def export(
    source: Annotated[str, typer.Argument(help="A study's name; with --config, a model's folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The bundle's folder, which must be new.")],
    config: Annotated[
        str | None, typer.Option("--config", help="A config file, or one format for all layers (int4-g32).")
    ] = None,
    mode: Annotated[
        str | None, typer.Option("--mode", help="Export what this mode of the study selects.")
    ] = None,
    trial: Annotated[
        int | None, typer.Option("--trial", min=0, help="Export this trial of the study.")
    ] = None,
    target: Annotated[
        str, typer.Option("--target", help=f"What it must run on: {', '.join(TARGETS)}.")
    ] = TARGETS[0],
    profile: Profile = "default",
    probes: Probes = None,
    store: Store = DEFAULT_STORE,
    unsigned: Annotated[
        bool, typer.Option("--unsigned", help="Leave the bundle unsigned; devices refuse it by default.")
    ] = False,
    quantiser: QuantiserOption = None,
    pruner: PrunerOption = None,
    unpacked: Annotated[
        Path | None,
        typer.Option(
            "--unpacked",
            help="A new folder that onnxruntime-genai and onnxruntime open as it is: the bundle's artifact and "
            "tokenizer by name, as hard links where possible.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a signed bundle: the artifact with real low-bit weights, tokenizer, specification, probes."""
    from toggle_edge.pipeline.exporting import ExportOptions, run_export
    from toggle_edge.report.export import export_json, print_export

    texts = tuple(probes or ())
    options = ExportOptions(
        source,
        output,
        config,
        mode,
        trial,
        target,
        profile,
        texts,
        store,
        unsigned,
        quantiser,
        pruner,
        unpacked,
    )
    run(lambda report: run_export(options, report), as_json, export_json, print_export, lambda result: "PASS")
