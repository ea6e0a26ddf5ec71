"""How a running search stands: the front so far, what each mode would select now, and how long it will take."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

PLOT_WIDTH, PLOT_ROWS = 56, 6
BITS = (2, 4, 8, 16)
"""Upper ends of the groups in which a table counts a config's layers by bits."""


@dataclass(frozen=True, slots=True)
class Point:
    """A trial as the plot has it: `cost` as a share of the fp16 baseline's, AvgPP in percent."""

    cost: float
    avgpp: float
    on_front: bool
    uniform: bool


@dataclass(frozen=True, slots=True)
class Best:
    """What a mode would select now. `cost` is a share of the baseline's, `versus_uniform` the change against the
    cheapest feasible uniform config (-0.27 is 27 % cheaper), None where none is feasible; `layers` are counts by bits,
    one for each of `BITS`."""

    mode: str
    trial: int
    cost: float
    versus_uniform: float | None
    layers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Standing:
    """A search after `trials` of `of`.

    `hypervolume` is the share that the feasible front covers of the rectangle between the baseline's cost and none, and
    between the least AvgPP that a mode asks for and 100. Times are in seconds, None before the first trial of this
    process; `best` has no entry for a mode without a feasible trial.
    """

    trials: int
    of: int
    refuted: int
    feasible: int
    hypervolume: float
    seconds_per_trial: float | None
    seconds_left: float | None
    best: tuple[Best, ...]
    points: tuple[Point, ...]
    modes: tuple[str, ...]

    @property
    def note(self) -> str:
        """What a person would want to know of it in one line."""
        parts = [f"{self.refuted} refuted early", f"{self.feasible} feasible"]
        if self.seconds_per_trial is not None and self.seconds_left is not None:
            parts.append(f"{self.seconds_per_trial:.1f} s/trial")
            if self.trials < self.of:
                parts.append(f"{duration(self.seconds_left)} left")
        return " · ".join(parts)


def standing_json(standing: Standing) -> dict[str, object]:
    """As one object of plain values, without the points: each trial was an event of its own."""
    found = dataclasses.asdict(standing)
    del found["points"], found["modes"]
    return found


def news(before: Standing | None, now: Standing) -> str | None:
    """What changed for the modes, in a line; None where nothing did."""
    known = {} if before is None else {best.mode: best.trial for best in before.best}
    changed = [best for best in now.best if known.get(best.mode) != best.trial]
    if not changed:
        return None
    return "; ".join(f"{best.mode} {best.cost:.3f} of fp16 (trial {best.trial})" for best in changed)


def duration(seconds: float) -> str:
    """`40 s`, `4 min`, `2 h 5 min`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def drawn(standing: Standing, console: Console) -> RenderableType:
    """For a terminal: the front in the plane of cost and AvgPP, and a table of what each mode would select."""
    return Group(_plot(standing.points, plain=console.options.ascii_only), _table(standing))


def _plot(points: Sequence[Point], *, plain: bool) -> RenderableType:
    """Points of the front, of uniform configs, and of other feasible trials, later kinds hidden by earlier ones."""
    if not points:
        return Text("no trial is feasible yet", style="dim")
    marks = {"front": "*" if plain else "●", "uniform": "u" if plain else "○", "other": "."}
    axis, corner, line = ("|", "+", "-") if plain else ("┤", "└", "─")
    low, high = min(point.avgpp for point in points), max(point.avgpp for point in points)
    cheap, dear = min(point.cost for point in points), max(point.cost for point in points)
    cells = [[" "] * PLOT_WIDTH for _ in range(PLOT_ROWS)]
    for kind in ("other", "uniform", "front"):
        for point in points:
            own = "front" if point.on_front else "uniform" if point.uniform else "other"
            if own == kind:
                height = _cell(high - point.avgpp, high - low, PLOT_ROWS)
                cells[height][_cell(point.cost - cheap, dear - cheap, PLOT_WIDTH)] = marks[kind]
    rows = []
    for index, row in enumerate(cells):
        label = f"{high:.2f}" if index == 0 else f"{low:.2f}" if index == PLOT_ROWS - 1 and high > low else ""
        rows.append(Text(f"{'AvgPP ' + label if label else '':>12} {axis}{''.join(row)}"))
    rows.append(Text(f"{'':>12} {corner}{line * PLOT_WIDTH}"))
    left, right = f"cost {cheap:.3f}", f"{dear:.3f} of fp16"
    rows.append(Text(f"{'':>14}{left}{right:>{PLOT_WIDTH - len(left)}}"))
    legend = f"{marks['front']} front   {marks['uniform']} one format everywhere   {marks['other']} feasible"
    rows.append(Text(f"{'':>14}{legend}", style="dim"))
    return Group(*rows)


def _cell(distance: float, whole: float, cells: int) -> int:
    return 0 if whole <= 0 else min(cells - 1, int(distance / whole * cells))


def _table(standing: Standing) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("best", no_wrap=True)
    for heading in ("trial", "cost", "vs uniform", "layers at\n2/4/8/16 bit"):
        table.add_column(heading, no_wrap=True, justify="right")
    found: Mapping[str, Best] = {best.mode: best for best in standing.best}
    for mode in standing.modes:
        best = found.get(mode)
        if best is None:
            table.add_row(mode, "none", "", "", "")
            continue
        against = "n/a" if best.versus_uniform is None else f"{100 * best.versus_uniform:+.0f} %"
        layers = "/".join(str(count) for count in best.layers)
        table.add_row(mode, str(best.trial), f"{best.cost:.3f}", against, layers)
    return table
