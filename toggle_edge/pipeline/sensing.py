"""`toggle-edge sensitivity`: what each layer costs alone, in each format, all others as the baseline has them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from toggle_edge.cache import baselines_folder
from toggle_edge.config import FP16, Config, Format
from toggle_edge.cost import predicted_cost
from toggle_edge.errors import ConfigError
from toggle_edge.evaluate import Evaluator
from toggle_edge.model.load import require_whole
from toggle_edge.pipeline.checking import known_mode
from toggle_edge.pipeline.inputs import prepared_for
from toggle_edge.pipeline.preparing import Prepared
from toggle_edge.report.heatmap import write_page, write_picture
from toggle_edge.report.progress import Reporter
from toggle_edge.report.sensitivity import Sensed, SensitivityResult
from toggle_edge.search.space import storage_bits
from toggle_edge.workspace import workspace

USUAL_PROBES = 16
"""Probes for one-layer-at-a-time losses: enough to order the layers, a quarter of the cost of all."""


@dataclass(frozen=True)
class SensitivityOptions:
    """What `toggle-edge sensitivity` may be told. `formats` empty are the profile's; `mode` None is the profile's;
    `count` is how many of the search probes are read."""

    model: Path
    formats: tuple[str, ...] = ()
    profile: str = "default"
    mode: str | None = None
    probes: tuple[str, ...] = ()
    count: int = USUAL_PROBES
    quantiser: str | None = None
    output: Path = Path("toggle-edge-sensitivity")


def run_sensitivity(options: SensitivityOptions, report: Reporter) -> SensitivityResult:
    """Lower one layer at a time, judge it, draw it. Raises InputError for what cannot be used."""
    given = tuple(Format.parse(text) for text in options.formats)
    prepared = prepared_for(
        options.model, options.profile, options.probes, report, quantiser=options.quantiser
    )
    require_whole(prepared.model)
    mode = known_mode(options.mode or prepared.profile.default_mode, prepared.specification)
    if not 1 <= options.count <= len(prepared.probes.search):
        raise ConfigError(
            f"count: expected 1 to {len(prepared.probes.search)}, the profile's search probes, got {options.count}"
        )
    menu = given or tuple(Format.parse(text) for text in prepared.profile.formats)
    formats = tuple(sorted({fmt for fmt in menu if not fmt.is_float}, key=storage_bits))
    if not formats:
        raise ConfigError(
            "formats: expected at least one of fewer bits than fp16, such as int4-g32; got none"
        )
    probes = prepared.probes.search[: options.count]
    evaluator = Evaluator(
        prepared.model, prepared.bank, probes, prepared.specification, folder=baselines_folder()
    )
    entries = tuple(_sensed(prepared, evaluator, formats, mode, report))
    with workspace(options.output) as folder:
        name = f"{prepared.model.folder.resolve().name}-{prepared.profile.name}"
        title = f"{prepared.model.folder.resolve().name}: AvgPP lost by one layer alone"
        picture, page = folder / f"{name}.png", folder / f"{name}.html"
        write_picture(picture, title, entries)
        write_page(page, title, entries)
    return SensitivityResult(
        mode=mode,
        probes=len(probes),
        formats=tuple(map(str, formats)),
        entries=entries,
        picture=str(picture),
        page=str(page),
    )


def _sensed(
    prepared: Prepared, evaluator: Evaluator, formats: Sequence[Format], mode: str, report: Reporter
) -> Iterator[Sensed]:
    layers, whole = prepared.model.layers, dict(prepared.baseline)
    before = predicted_cost(layers, prepared.baseline, 0)
    done, total = 0, len(layers) * len(formats)
    for layer in layers:
        for fmt in formats:
            config = Config.of({**whole, layer.name: fmt})
            evaluation = evaluator.evaluate(config)
            verdict, cost = evaluation.modes[mode], predicted_cost(layers, config, 0)
            worst = min(
                (each for each in verdict.verdicts if each.robustness is not None),
                key=lambda each: each.robustness or 0.0,
                default=None,
            )
            done += 1
            report("sensitivity", done, total, f"{layer.name} {fmt}")
            yield Sensed(
                layer=layer.name,
                role=layer.role,
                format=str(fmt),
                avgpp_lost=None if evaluation.avgpp is None else 100.0 - evaluation.avgpp,
                robustness=verdict.robustness,
                weakest=worst.property if worst else None,
                bytes_saved=FP16.storage_bytes(layer.rows, layer.columns)
                - fmt.storage_bytes(layer.rows, layer.columns),
                proxy_flops_share_saved=1.0 - cost.proxy_flops / before.proxy_flops,
            )
