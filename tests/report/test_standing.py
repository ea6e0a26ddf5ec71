"""What a running search says of itself: on a terminal, in plain lines, and as events."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console
from toggle_runtime.records import ModeSpecification

from toggle_edge.config import Config, Format
from toggle_edge.pipeline.standing import standing_of
from toggle_edge.report.progress import _events, _lines
from toggle_edge.report.standing import Standing, drawn, duration, news, standing_json
from toggle_edge.search.trial import Observation, Trial

MODES = {
    "strict": ModeSpecification({"coherence": "always (jsd <= 0.1)"}, 1.0, 99.0),
    "relaxed": ModeSpecification({"coherence": "always (jsd <= 0.2)"}, 0.9, 80.0),
}
LAYERS = ("a", "b", "c", "d")


def trial(index: int, formats: str, avgpp: float, feasible: str = "strict relaxed") -> Trial:
    """`formats` is one for each layer, or one for all."""
    parsed = [Format.parse(text) for text in formats.split()]
    config = Config.of(dict(zip(LAYERS, parsed * (4 // len(parsed)), strict=True)))
    holds = {mode: mode in feasible for mode in MODES}
    robustness = {mode: 0.1 if holds[mode] else -0.1 for mode in MODES}
    cost = sum(fmt.bits for _, fmt in config) / 64 * 1000
    return Trial(index, config, "test", Observation(cost, avgpp, robustness, holds, refuted=feasible == ""))


TRIALS = (
    trial(0, "fp16", 100.0),
    trial(1, "int8-g32", 99.5),
    trial(2, "int2-g64", 40.0, ""),
    trial(3, "int8-g32 int4-g32", 95.0, "relaxed"),
    trial(4, "int8-g32 int8-g32 int8-g32 fp16", 99.2),
)


def standing(count: int, seconds: tuple[float, ...] = ()) -> Standing:
    return standing_of(MODES, TRIALS[:count], 10, seconds=seconds, baseline_flops=1000.0)


def test_it_says_what_each_mode_would_select_beside_the_best_uniform_config() -> None:
    found = standing(5, (1.0, 3.0))
    strict, relaxed = found.best
    assert (strict.mode, strict.trial, strict.cost, strict.versus_uniform) == ("strict", 1, 0.5, 0.0)
    assert (relaxed.trial, relaxed.cost) == (3, 0.375)
    assert relaxed.versus_uniform == pytest.approx(-0.25)
    assert (strict.layers, relaxed.layers) == ((0, 0, 4, 0), (0, 2, 2, 0))
    assert (found.refuted, found.feasible) == (1, 4)
    assert (found.seconds_per_trial, found.seconds_left) == (2.0, 10.0)
    assert found.note == "1 refuted early · 4 feasible · 2.0 s/trial · 10 s left"
    assert [(p.cost, p.on_front, p.uniform) for p in found.points] == [
        (1.0, True, True),
        (0.5, True, True),
        (0.375, True, False),
        (0.625, False, False),
    ]


def test_hypervolume_is_a_share_of_what_could_be_covered() -> None:
    # Worse than costing nothing and losing nothing by the steps of a staircase: 0.375, 0.5 and 1 wide.
    lost = 0.375 * 1 + (0.5 - 0.375) * 5 / 20 + (1 - 0.5) * 0.5 / 20
    assert standing(5).hypervolume == pytest.approx(1 - lost)
    assert standing(1).hypervolume == 0.0  # the baseline's own cost saves nothing
    assert standing(0).hypervolume == 0.0


def test_a_search_that_found_nothing_says_so() -> None:
    empty = standing(0)
    assert (empty.best, empty.seconds_left, empty.note) == ((), None, "0 refuted early · 0 feasible")
    assert "no trial is feasible yet" in text_of(empty)
    assert text_of(empty).count("none") == 2


def text_of(found: Standing, *, ascii_only: bool = False) -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii" if ascii_only else "utf-8")
    console = Console(file=stream, width=100)
    console.print(drawn(found, console))
    stream.flush()
    return stream.buffer.getvalue().decode()  # type: ignore[attr-defined]


@pytest.mark.parametrize("ascii_only", [False, True])
def test_the_plot_has_the_front_and_its_ends(ascii_only: bool) -> None:
    text = text_of(standing(5), ascii_only=ascii_only)
    assert all(len(line) <= 100 for line in text.splitlines())
    front, uniform = ("*", "u") if ascii_only else ("●", "○")
    plot = text.splitlines()[:6]
    cells = [line.split("|" if ascii_only else "┤")[1] for line in plot]
    assert cells[0].rstrip()[-1] == front  # the baseline: the dearest, and the best
    assert cells[-1].strip() == front  # the cheapest: at the left, and the worst
    assert cells[-1].index(front) == 0
    assert sum(row.count(front) for row in cells) == 3
    assert sum(row.count(uniform) for row in cells) == 0, "both uniform configs are on the front"
    assert "AvgPP 100.00" in plot[0]
    assert "AvgPP 95.00" in plot[-1]
    assert "cost 0.375" in text
    assert "-25 %" in text
    assert text.isascii() == ascii_only


def test_news_are_what_changed_for_a_mode() -> None:
    first, second, third = standing(2), standing(4), standing(5)
    assert news(None, first) == "strict 0.500 of fp16 (trial 1); relaxed 0.500 of fp16 (trial 1)"
    assert news(first, second) == "relaxed 0.375 of fp16 (trial 3)"
    assert news(second, third) is None


def test_without_a_terminal_lines_say_what_is_new_and_what_is_done() -> None:
    stream = io.StringIO()
    report = _lines(Console(file=stream, width=100))
    for count in range(6):
        found = standing(count)
        report("search", count, 5, found.note, found)
    lines = [line.split("s  ")[1] for line in stream.getvalue().splitlines()]
    assert lines == [
        "strict 1.000 of fp16 (trial 0); relaxed 1.000 of fp16 (trial 0)",
        "strict 0.500 of fp16 (trial 1); relaxed 0.500 of fp16 (trial 1)",
        "relaxed 0.375 of fp16 (trial 3)",
        standing(5).note,
    ]


def test_events_are_one_object_a_line() -> None:
    stream = io.StringIO()
    report = _events(Console(file=stream))
    report("baseline", 1, 2, "search probes")
    report("search", 5, 10, "so far", standing(5))
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert first == {"stage": "baseline", "done": 1, "of": 2, "note": "search probes"}
    assert second["search"] == json.loads(json.dumps(standing_json(standing(5))))
    assert second["search"]["best"][1]["cost"] == 0.375
    assert {"hypervolume", "seconds_left", "refuted", "feasible", "trials", "of"} <= set(second["search"])


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.2, "4 s"), (89, "89 s"), (240, "4 min"), (7500, "2 h 5 min")]
)
def test_durations_are_read_at_a_glance(seconds: float, text: str) -> None:
    assert duration(seconds) == text
