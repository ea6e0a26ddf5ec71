"""Robustness over time in the terminal: what is violated can be told on any of them, and nothing is made up."""

from __future__ import annotations

import io
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from toggle_runtime.records import Argmin, Coverage, ModeVerdict, Verdict

from toggle_edge.report.series import ASCII, BLOCKS, GUTTER, Glyphs, Series, plot, print_series, series_json

values = st.one_of(
    st.floats(-2, 2), st.sampled_from([0.0, -0.0, math.nan, -1e-9, 1e-9, 25.0]), st.integers(-3, 3).map(float)
)


def parts(rows: list[str], glyphs: Glyphs) -> tuple[list[str], str, list[str], str]:
    """Rows above the line, the line, rows below it, the row of the mark; all without labels."""
    (zero,) = [index for index, row in enumerate(rows[:-1]) if row[GUTTER - 1] == glyphs.zero]
    bare = [row[GUTTER:] for row in rows]
    return bare[:zero], bare[zero], bare[zero + 1 : -1], bare[-1]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(values, min_size=1, max_size=300),
    st.integers(20, 130),
    st.data(),
    st.sampled_from([BLOCKS, ASCII]),
)
def test_every_column_says_on_which_side_its_steps_are(
    series: list[float], width: int, data: st.DataObject, glyphs: Glyphs
) -> None:
    step = data.draw(st.integers(0, len(series) - 1))
    rows = [row.plain for row in plot(series, step, width, glyphs)]
    if all(math.isnan(value) for value in series):
        assert rows == []
        return
    above, line, below, _ = parts(rows, glyphs)
    assert all(len(row) <= width for row in rows)
    per_column = -(-len(series) // (width - GUTTER))
    wide = 1 if per_column > 1 else min(2, (width - GUTTER) // len(series))
    for column, cell in enumerate(line):
        first = column // wide * per_column
        known = [value for value in series[first : first + per_column] if not math.isnan(value)]
        standing = "".join(row[column] for row in above).strip()
        hanging = "".join(row[column] for row in below).strip()
        assert (cell == " ") == (not known)
        assert bool(standing) == bool(known and min(known) >= 0)
        assert bool(hanging) == bool(known and min(known) < 0)
        assert set(standing) <= set(glyphs.rising)
        assert set(hanging) <= set(glyphs.hanging)
    assert len(line) == -(-len(series) // per_column) * wide
    assert rows[-1].index(glyphs.mark) - GUTTER == step // per_column * wide


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-2, 2), min_size=1, max_size=40), st.integers(0, 39))
def test_a_longer_bar_is_never_a_smaller_value(series: list[float], step: int) -> None:
    rows = [row.plain for row in plot(series, min(step, len(series) - 1), 60)]
    above, _, below, _ = parts(rows, BLOCKS)

    def height(column: int) -> int:
        standing = sum(BLOCKS.rising.find(row[column]) + 1 for row in above)
        return standing - sum(BLOCKS.hanging.find(row[column]) + 1 for row in below)

    wide = min(2, (60 - GUTTER) // len(series))
    heights = {value: height(index * wide) for index, value in enumerate(series)}
    ordered = sorted(heights)
    assert [heights[value] for value in ordered] == sorted(heights.values())


def test_the_extremes_are_labelled_in_the_rows_that_they_reach() -> None:
    rows = [row.plain for row in plot([0.2, 0.1, math.nan, -0.1, 0.2], 3, 40)]
    assert rows == [
        " +0.200 ┤██      ██",
        "        ┤████    ██",
        "      0 ┼────  ────",
        " -0.100 ┤      ██  ",
        "               ▲ step 3 of 5",
    ]
    assert [row.plain for row in plot([0.0], 0, 40)][:2] == [" +0.000 ┤▁▁", "      0 ┼──"]


def test_many_steps_share_a_column_which_shows_the_least_of_them() -> None:
    series = [0.25] * 200
    series[130] = -0.1
    rows = plot(series, 130, 60)
    assert max(len(row.plain) for row in rows) <= 60
    assert rows[-1].plain == "step 130 of 200, 4 to a column ▲".rjust(GUTTER + 130 // 4 + 1)


def judged(**robustness: tuple[str, float | None]) -> ModeVerdict:
    verdicts = [
        Verdict(name, verdict, least, Argmin(4, 1, 3) if least is not None else None, least, None)
        for name, (verdict, least) in robustness.items()
    ]
    return ModeVerdict("optimal", "UNSET", None, Coverage(0, 4, 4), None, verdicts)


SERIES = {
    "coherence": Series(
        Argmin(4, 1, 3), "jsd <= 0.25", (0.2, -0.1, math.nan, 0.2), "press the [val]ve — now"
    ),
    "factual_accuracy": None,
}
VERDICTS = judged(coherence=("VIOLATED", -0.1), factual_accuracy=("UNSET", None))


def printed(encoding: str, width: int = 80, **options: object) -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="replace", newline="")
    print_series(Console(file=stream, width=width, **options), SERIES, VERDICTS)
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)


def test_it_names_probe_step_and_block_and_marks_the_token() -> None:
    text = printed("utf-8")
    assert "coherence  VIOLATED -0.100  probe 4, step 1, block 3  jsd <= 0.25" in text
    assert "press the [val]ve — now" in text
    assert "▲ step 1 of 4" in text
    assert "factual" not in text, "what has no verdict has nothing to draw"
    assert "\x1b" not in text


@pytest.mark.parametrize("width", [50, 80, 120])
def test_it_fits_the_console(width: int) -> None:
    assert max(map(len, printed("utf-8", width).splitlines())) <= width


def test_an_encoding_without_blocks_gets_plain_ascii() -> None:
    text = printed("ascii")
    assert "|" in text
    assert "X" in text
    assert "^ step 1 of 4" in text
    assert "press the [val]ve ? now" in text
    assert text.count("?") == 1, "no part of the drawing was replaced"


def test_colour_is_added_where_there_is_some_and_only_red_hangs() -> None:
    text = printed("utf-8", force_terminal=True, color_system="standard")
    assert "\x1b[31m  ██" in text
    assert "\x1b[1;31m[val]\x1b[0m" in text


def test_a_satisfied_mode_says_which_violations_its_coverage_allows_for() -> None:
    def shown(robustness: float, worst: float) -> str:
        verdict = Verdict("coherence", "SATISFIED", robustness, Argmin(4, 1, 3), worst)
        stream = io.StringIO()
        mode = ModeVerdict("optimal", "SATISFIED", robustness, Coverage(9, 10, 9), 99.0, [verdict])
        print_series(Console(file=stream, width=80), SERIES, mode)
        return stream.getvalue()

    assert "coverage allows for worse probes, down to -0.300" in shown(0.1, -0.3)
    assert "allows" not in shown(0.1, 0.05)
    assert "allows" not in shown(-0.1, -0.1)


def test_json_has_null_where_there_is_no_value_or_no_verdict() -> None:
    data = json.loads(json.dumps(series_json(SERIES), allow_nan=False))
    assert data == {
        "coherence": {
            "probe": 4,
            "formula": "jsd <= 0.25",
            "steps": [0, 1, 2, 3],
            "robustness": [0.2, -0.1, None, 0.2],
            "text": "press the [val]ve — now",
        },
        "factual_accuracy": None,
    }
