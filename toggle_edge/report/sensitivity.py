"""What `toggle-edge sensitivity` found, and how it is shown."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from toggle_edge.report.cells import TITLE, number, print_entry, signed

SHOWN = 12
"""Rows of the table for people; `--json` has all."""

_BLOCK = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Sensed:
    """One layer in one format, all others as in the baseline.

    `avgpp_lost` in percentage points, None where it could not be computed; `robustness` is the mode's joint one, None
    where it is UNSET, and `weakest` the property with the least. `bytes_saved` and `proxy_flops_share_saved` (0 to 1 of
    the whole model's) are against fp16.
    """

    layer: str
    role: str
    format: str
    avgpp_lost: float | None
    robustness: float | None
    weakest: str | None
    bytes_saved: int
    proxy_flops_share_saved: float

    @property
    def block(self) -> int | None:
        """The number of the layer's block; None for embedding and head."""
        match = _BLOCK.search(self.layer)
        return int(match[1]) if match else None


@dataclass(frozen=True)
class SensitivityResult:
    """Every layer in every format, in the model's order; `picture` and `page` are the heat maps' files."""

    mode: str
    probes: int
    formats: tuple[str, ...]
    entries: tuple[Sensed, ...]
    picture: str
    page: str


def by_loss(entries: tuple[Sensed, ...]) -> list[Sensed]:
    """Most sensitive first; what could not be computed counts as most sensitive of all."""
    return sorted(entries, key=lambda each: -(100.0 if each.avgpp_lost is None else each.avgpp_lost))


def sensitivity_json(result: SensitivityResult) -> dict[str, object]:
    """The one object that `toggle-edge sensitivity --json` prints."""
    return {
        "outcome": "PASS",
        "mode": result.mode,
        "probes": result.probes,
        "formats": list(result.formats),
        "layers": [dataclasses.asdict(each) for each in result.entries],
        "picture": result.picture,
        "page": result.page,
    }


def print_sensitivity(result: SensitivityResult, console: Console) -> None:
    """For people: the layers that cost most in each format, what they save, where the pictures are."""
    for fmt in result.formats:
        own = by_loss(tuple(each for each in result.entries if each.format == fmt))
        console.print(_table(fmt, result.mode, own))
        if len(own) > SHOWN:
            # The first of the rest loses most; n/a where even that could not be computed.
            most = number(own[SHOWN].avgpp_lost, 2)
            print_entry(
                console, "", f"{len(own) - SHOWN} more layers lose at most {most} points each; --json has all"
            )
            console.print()
    print_entry(
        console,
        "read as",
        f"one layer alone in that format, all others as the baseline has them, on {result.probes} search probes; "
        "losses of several layers do not simply add up",
    )
    print_entry(console, "heat map", f"{result.picture}, {result.page}")


def _table(fmt: str, mode: str, entries: list[Sensed]) -> Table:
    table = Table(box=SIMPLE_HEAD, title=f"one layer in {fmt}", **TITLE)
    table.add_column("layer", min_width=30)
    table.add_column("AvgPP lost", justify="right", no_wrap=True)
    table.add_column(f"robustness, {mode}", justify="right", no_wrap=True)
    table.add_column("weakest property")
    table.add_column("saves", justify="right", no_wrap=True)
    for each in entries[:SHOWN]:
        style = "red" if each.robustness is None or each.robustness < 0 else ""
        table.add_row(
            each.layer,
            number(each.avgpp_lost, 2),
            Text(signed(each.robustness), style=style),
            (each.weakest or "").replace("_", " "),
            f"{each.bytes_saved / 1e6:.2f} MB",
        )
    return table
