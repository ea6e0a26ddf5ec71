"""Heat maps of sensitivities: blocks beside each other, roles below each other, one map per format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from toggle_edge.report.sensitivity import Sensed

OUTSIDE = "–"
"""The column of layers that are in no block: embedding and head."""

_COLOURS = "YlOrRd"
_LEAST = 1e-3
"""Losses are drawn on a logarithmic scale from here on: they span orders of magnitude."""


def grid_of(entries: Sequence[Sensed], fmt: str) -> tuple[list[str], list[str], NDArray[np.float64]]:
    """Roles, blocks, and AvgPP lost as roles x blocks; NaN where there is no such layer or no value.

    Where a block has several layers of one role (experts), the greatest loss.
    """
    own = [each for each in entries if each.format == fmt]
    roles = list(dict.fromkeys(each.role for each in own))
    numbers = sorted({each.block for each in own if each.block is not None})
    blocks = [*([OUTSIDE] if any(each.block is None for each in own) else []), *map(str, numbers)]
    grid = np.full((len(roles), len(blocks)), np.nan)
    for each in own:
        place = roles.index(each.role), blocks.index(OUTSIDE if each.block is None else str(each.block))
        if each.avgpp_lost is not None:
            grid[place] = np.fmax(grid[place], each.avgpp_lost)
    return roles, blocks, grid


def write_picture(path: Path, title: str, entries: Sequence[Sensed]) -> None:
    """Write the maps as one PNG, on one scale."""
    # Not pyplot: it keeps every figure, and picks a window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    formats = list(dict.fromkeys(each.format for each in entries))
    grids = [grid_of(entries, fmt) for fmt in formats]
    most = max([_LEAST * 10, *(float(np.nanmax(grid, initial=0.0)) for _, _, grid in grids)])
    roles, blocks, _ = grids[0]
    figure = Figure(
        figsize=(3.0 + 0.45 * len(blocks), 0.8 + len(formats) * (0.8 + 0.32 * len(roles))), dpi=150
    )
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained")
    axes = figure.subplots(len(formats), 1, squeeze=False)[:, 0]
    norm = LogNorm(_LEAST, most)
    for axis, fmt, (roles, blocks, grid) in zip(axes, formats, grids, strict=True):
        image = axis.imshow(np.maximum(grid, _LEAST), cmap=_COLOURS, norm=norm, aspect="auto")
        axis.set_yticks(range(len(roles)), roles)
        axis.set_xticks(range(len(blocks)), blocks)
        axis.set_title(fmt, loc="left")
        axis.set_facecolor("#eeeeee")
    axes[-1].set_xlabel("block")
    figure.suptitle(title)
    figure.colorbar(image, ax=list(axes), label="percentage points of AvgPP", format="%g")
    partial = path.with_suffix(".png.partial")
    figure.savefig(partial, format="png", bbox_inches="tight")
    partial.replace(path)


def write_page(path: Path, title: str, entries: Sequence[Sensed]) -> None:
    """Write the maps as one HTML page that needs no network; the numbers appear under the pointer."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    formats = list(dict.fromkeys(each.format for each in entries))
    figure = make_subplots(
        rows=len(formats), cols=1, subplot_titles=formats, vertical_spacing=0.3 / len(formats)
    )
    for row, fmt in enumerate(formats, start=1):
        roles, blocks, grid = grid_of(entries, fmt)
        known = [[None if np.isnan(value) else float(value) for value in line] for line in grid]
        figure.add_trace(
            go.Heatmap(
                z=np.log10(np.maximum(grid, _LEAST)).tolist(),
                x=[f"block {block}" if block != OUTSIDE else "no block" for block in blocks],
                y=roles,
                customdata=known,
                hovertemplate="%{y}, %{x}: %{customdata:.3f} points of AvgPP<extra>" + fmt + "</extra>",
                colorscale=_COLOURS,
                coloraxis="coloraxis",
            ),
            row=row,
            col=1,
        )
        figure.update_yaxes(autorange="reversed", row=row, col=1)
    ticks = [-3, -2, -1, 0, 1, 2]
    figure.update_layout(
        title=title,
        height=160 + 240 * len(formats),
        coloraxis={
            "colorscale": _COLOURS,
            "colorbar": {
                "title": "points of AvgPP",
                "tickvals": ticks,
                "ticktext": [f"{10.0**tick:g}" for tick in ticks],
            },
        },
    )
    partial = path.with_suffix(".html.partial")
    figure.write_html(partial, include_plotlyjs=True, full_html=True)
    partial.replace(path)
