"""Cells that all tables are made of: numbers with their intervals, places in a trace, headed sentences."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from typing import Literal, Protocol, TypedDict, TypeGuard

from rich.console import Console
from rich.table import Table
from rich.text import Text
from toggle_runtime.records import MARGINAL, PASS, SATISFIED, UNSET, VIOLATED, Argmin, Measurement

WIDTH = 100
"""Columns of what is printed where there is no terminal that says how many it has."""

WIDEST = 120

STYLES = {SATISFIED: "green", MARGINAL: "yellow", VIOLATED: "red", UNSET: "red"}


class _Title(TypedDict):
    title_justify: Literal["left"]
    expand: bool


TITLE: _Title = {"title_justify": "left", "expand": True}


class Valued(Protocol):
    """A measurement that has a value."""

    @property
    def value(self) -> float: ...
    @property
    def ci95(self) -> list[float] | None: ...


def console_on_stdout() -> Console:
    """As wide as the terminal, up to where lines get hard to read; `WIDTH` where there is none.

    A character that stdout's encoding lacks, of a model's text or ours, is printed as `?`.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    console = Console()
    return Console(width=min(console.width, WIDEST) if console.is_terminal else WIDTH)


def print_entry(console: Console, heading: str, sentence: str) -> None:
    """A heading and a sentence that wraps beside it."""
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(width=11, no_wrap=True)
    grid.add_column(ratio=1)
    grid.add_row(heading, Text(_printable(sentence)))
    console.print(grid)


def print_outcome(console: Console, outcome: str, reason: str | None) -> None:
    """The last word: outcome and reason."""
    console.print()
    style = "bold green" if outcome == PASS else "bold red"
    console.print(Text(outcome, style=style), Text(_printable(reason or "")), highlight=False)


def _printable(text: str) -> str:
    # It may come from a device, and must not command the terminal.
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def place(argmin: Argmin | None, excerpts: Mapping[tuple[int, int], str]) -> str:
    """Where a robustness was attained, with the words around it where they are known."""
    if argmin is None:
        return "-"
    layer = "" if argmin.layer is None else f", block {argmin.layer}"
    words = excerpts.get((argmin.probe, argmin.step))
    return f"probe {argmin.probe}, step {argmin.step}{layer}" + (f' "{words}"' if words else "")


def has(measurement: Measurement | None) -> TypeGuard[Valued]:
    """Whether there is a value."""
    return measurement is not None and measurement.value is not None


def interval(measurement: Measurement | None, digits: int) -> str:
    """A value with its 95 % interval, where it has one."""
    if measurement is None or measurement.value is None:
        return "unavailable"
    if measurement.ci95 is None:
        return f"{measurement.value:.{digits}f}"
    low, high = measurement.ci95
    return f"{measurement.value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def value(measurement: Measurement | None, digits: int, factor: float = 1.0) -> str:
    """A value alone, in the unit that `factor` makes."""
    if measurement is None or measurement.value is None:
        return "n/a"
    return f"{measurement.value * factor:.{digits}f}"


def number(value: float | None, digits: int) -> str:
    """A number that may be missing."""
    return "n/a" if value is None else f"{value:.{digits}f}"


def signed(value: float | None, upper: float | None = None) -> str:
    """A robustness, with its sign; with its upper end where an interval is wide enough to be seen."""
    if value is None:
        return "-"
    if upper is None or upper - value < 0.0005:
        return f"{value:+.3f}"
    return f"{value:+.3f} to {upper:+.3f}"
