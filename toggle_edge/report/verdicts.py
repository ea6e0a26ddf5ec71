"""A contract's verdicts for one config or run: the table, and the JSON that every command shares."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text
from toggle_runtime.records import SATISFIED, ModeVerdict

from toggle_edge.certify import CoverageBound
from toggle_edge.report.cells import STYLES, TITLE, place, signed


def verdict_table(title: str, judged: ModeVerdict, excerpts: Mapping[tuple[int, int], str]) -> Table:
    """One row per property: verdict, robustness, and the place that decides, with its words where all is not well."""
    table = Table(box=SIMPLE_HEAD, title=title, **TITLE)
    table.add_column("property", no_wrap=True, min_width=24)
    table.add_column("verdict", no_wrap=True, min_width=9)
    table.add_column("robustness", justify="right", no_wrap=True)
    table.add_column("worst at")
    for verdict in judged.verdicts:
        words = {} if verdict.verdict == SATISFIED else excerpts
        table.add_row(
            verdict.property.replace("_", " "),
            Text(verdict.verdict, style=STYLES[verdict.verdict]),
            signed(verdict.robustness, verdict.robustness_upper),
            Text(verdict.reason or place(verdict.argmin, words)),
        )
    return table


def coverage_sentence(judged: ModeVerdict) -> str:
    """How many probes satisfy everything at once, and how many must."""
    coverage = judged.coverage
    return (
        f"{coverage.satisfied} of {coverage.probes} probes satisfy all properties, {coverage.required} must"
    )


def coverage_json(judged: ModeVerdict, bound: CoverageBound | None) -> dict[str, object]:
    """The shared key `coverage`. `lower_bound` is None where nothing was certified."""
    return {**dataclasses.asdict(judged.coverage), "lower_bound": bound.lower_bound if bound else None}


def verdicts_json(judged: ModeVerdict) -> list[dict[str, object]]:
    """The shared key `verdicts`."""
    return [dataclasses.asdict(verdict) for verdict in judged.verdicts]
