"""Robustness over time, drawn in the terminal: bars that stand on the line at zero, or hang from it.

What hangs is violated. That can be told without colour, on any background, and in plain ASCII.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.padding import Padding
from rich.text import Text
from toggle_runtime.records import Argmin, ModeVerdict, Verdict

from toggle_edge.report.cells import STYLES, place, signed

ROWS = 4
"""Rows of bars where some are violated and some are not."""

GUTTER = 9
"""Columns for the labels of the axis."""

WIDEST_STEP = 2
"""A short series is stretched, but so that a bar still looks like one step."""


@dataclass(frozen=True, slots=True)
class Series:
    """Robustness of `formula` at every step of one probe, NaN where it has no value.

    `argmin` is the place that decides the property; `text` the words around it, the token in brackets.
    """

    argmin: Argmin
    formula: str
    robustness: tuple[float, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Glyphs:
    """`rising` are the heights of a bar's last cell above the line, `hanging` those below it, full ones last."""

    rising: str
    hanging: str
    line: str
    axis: str
    zero: str
    mark: str


BLOCKS = Glyphs(rising="▁▂▃▄▅▆▇█", hanging="▀█", line="─", axis="┤", zero="┼", mark="▲")
ASCII = Glyphs(rising=".:|", hanging="'X", line="-", axis="|", zero="+", mark="^")


def series_json(series: Mapping[str, Series | None]) -> dict[str, object]:
    """The key `series`: null for a property without a verdict, null at a step without a value."""
    return {
        name: None
        if each is None
        else {
            "probe": each.argmin.probe,
            "formula": each.formula,
            "steps": list(range(len(each.robustness))),
            "robustness": [value if math.isfinite(value) else None for value in each.robustness],
            "text": each.text,
        }
        for name, each in series.items()
    }


def print_series(console: Console, series: Mapping[str, Series | None], judged: ModeVerdict) -> None:
    """For each property that has a verdict: where it is decided, robustness over time there, and the words."""
    drawn = [(verdict, each) for verdict in judged.verdicts if (each := series.get(verdict.property))]
    if not drawn:
        return
    shared = any(len(each.robustness) > console.width - GUTTER for _, each in drawn)
    console.print("robustness over time where each property is decided; what hangs is violated")
    if shared:
        console.print("a column that stands for several steps shows the least of them")
    console.print()
    glyphs = ASCII if console.options.ascii_only else BLOCKS
    for verdict, each in drawn:
        console.print(_caption(verdict, each.formula), highlight=False)
        for row in plot(each.robustness, each.argmin.step, console.width, glyphs):
            console.print(row, no_wrap=True, highlight=False)
        for sentence in filter(None, (_words(each.text, verdict), _tolerated(verdict))):
            console.print(Padding(sentence, (0, 0, 0, GUTTER)), highlight=False)
        console.print()


def plot(values: Sequence[float], step: int, width: int, glyphs: Glyphs = BLOCKS) -> list[Text]:
    """The rows of a plot that is at most `width` columns wide, with the deciding step marked in the last one.

    Where there are more steps than columns, a column shows the least of its steps. A step without a value is a gap,
    in the line too. Both sides have one scale.
    """
    room = max(1, width - GUTTER)
    columns, mark, per_column = _columns(values, step, room)
    known = [value for value in columns if not math.isnan(value)]
    if not known:
        return []
    top, bottom = max(known), min(known)
    above, below = _shares(top, bottom)
    unit = max(_over(top, above), _over(-bottom, below)) or 1.0
    highest, lowest = min(above, _reached(top, unit)), min(below, _reached(-bottom, unit))
    rows = [
        _row(f"{top:+.3f}" if row == highest - 1 else "", columns, unit, row, glyphs)
        for row in reversed(range(highest))
    ]
    line = "".join(" " if math.isnan(value) else glyphs.line for value in columns)
    rows.append(Text.assemble(f"{'0':>{GUTTER - 2}} ", glyphs.zero, (line, "dim")))
    rows += [
        _row(f"{bottom:+.3f}" if row == lowest - 1 else "", columns, unit, -1 - row, glyphs)
        for row in range(lowest)
    ]
    return [*rows, _marked(mark, step, len(values), per_column, room, bottom < 0, glyphs)]


def _columns(values: Sequence[float], step: int, room: int) -> tuple[list[float], int, int]:
    """The value of each column, the column of the deciding step, and how many steps a column stands for."""
    per_column = -(-len(values) // room)
    if per_column > 1:
        parts = [values[start : start + per_column] for start in range(0, len(values), per_column)]
        least = [min((v for v in part if not math.isnan(v)), default=math.nan) for part in parts]
        return least, step // per_column, per_column
    wide = min(WIDEST_STEP, room // len(values))
    return [value for value in values for _ in range(wide)], step * wide, 1


def _shares(top: float, bottom: float) -> tuple[int, int]:
    """How many rows are above the line and below it, so that the larger side gets the more."""
    if bottom >= 0:
        return 1, 0  # eight heights are enough to see where it was close
    if top < 0:
        return 0, ROWS // 2
    splits = [(above, ROWS - above) for above in range(1, ROWS)]
    return min(splits, key=lambda split: max(top / split[0], -bottom / split[1]))


def _over(height: float, rows: int) -> float:
    return height / rows if rows else 0.0


def _reached(height: float, unit: float) -> int:
    """How many rows a bar of that height takes."""
    return max(1, math.ceil(height / unit - 1e-9))


def _row(label: str, columns: Sequence[float], unit: float, row: int, glyphs: Glyphs) -> Text:
    """One row of bars: rows above the line are numbered 0, 1, … upwards, those below it -1, -2, … downwards."""
    levels, distance = (glyphs.rising, row) if row >= 0 else (glyphs.hanging, -1 - row)
    cells = []
    for value in columns:
        height = -1.0 if math.isnan(value) or (value < 0) != (row < 0) else abs(value) / unit - distance
        # Next to the line every bar can be seen, however short.
        least = 1 if distance == 0 and height >= 0 else 0
        level = min(len(levels), max(least, math.ceil(height * len(levels) - 1e-9)))
        cells.append(levels[level - 1] if level else " ")
    return Text.assemble(f"{label:>{GUTTER - 2}} ", glyphs.axis, ("".join(cells), "" if row >= 0 else "red"))


def _marked(
    mark: int, step: int, steps: int, per_column: int, room: int, violated: bool, glyphs: Glyphs
) -> Text:
    note = f"step {step} of {steps}" + (f", {per_column} to a column" if per_column > 1 else "")
    style = "bold red" if violated else "bold"
    if mark + 2 + len(note) <= room:
        return Text.assemble(" " * (GUTTER + mark), (glyphs.mark, style), f" {note}")
    before = f"{note} " if len(note) < GUTTER + mark else ""
    return Text.assemble(f"{before:>{GUTTER + mark}}", (glyphs.mark, style))


def _caption(verdict: Verdict, formula: str) -> Text:
    return Text.assemble(
        (verdict.property.replace("_", " "), "bold"),
        "  ",
        (verdict.verdict, STYLES[verdict.verdict]),
        f" {signed(verdict.robustness)}  {place(verdict.argmin, {})}  ",
        (formula, "dim"),
    )


def _tolerated(verdict: Verdict) -> Text | None:
    """A mode with less than full coverage is decided by another probe than the worst one: a violation is said."""
    if verdict.worst is None or verdict.worst >= min(0.0, verdict.robustness or 0.0):
        return None
    return Text(f"the mode's coverage allows for worse probes, down to {signed(verdict.worst)}", "dim")


def _words(text: str, verdict: Verdict) -> Text:
    words = Text(text)
    # A text with brackets of its own is left as it is.
    if text.count("[") == text.count("]") == 1:
        words.stylize(f"bold {STYLES[verdict.verdict]}", text.index("["), text.index("]") + 1)
    return words
