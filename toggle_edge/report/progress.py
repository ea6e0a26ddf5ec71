"""Progress of long work, on stderr: bars on a terminal, plain lines elsewhere, one JSON object a line for programs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from toggle_edge.report.standing import Standing, drawn, news, standing_json


class Reporter(Protocol):
    """Hears how far a stage is. `note` is what a person would want to know at this moment; a search also says how it
    stands."""

    def __call__(
        self, stage: str, done: int, of: int, note: str = "", standing: Standing | None = None
    ) -> None: ...


def silent(stage: str, done: int, of: int, note: str = "", standing: Standing | None = None) -> None:
    """A reporter that says nothing."""


@contextmanager
def on_stderr(*, as_json: bool = False) -> Iterator[Reporter]:
    """A reporter for people: bars where stderr is a terminal, else a line when a stage is done or a search found a
    better config. With `as_json` every step is an object on a line of its own: stage, done, of, note, search."""
    console = Console(stderr=True)
    if as_json:
        yield _events(console)
    elif console.is_terminal:
        with _bars(console) as reporter:
            yield reporter
    else:
        yield _lines(console)


class _WithStanding(Progress):
    """Bars, and below them how the search stands."""

    standing: Standing | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.standing is not None:
            yield drawn(self.standing, self.console)


@contextmanager
def _bars(console: Console) -> Iterator[Reporter]:
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    tasks: dict[str, TaskID] = {}
    with _WithStanding(*columns, console=console) as progress:

        def report(stage: str, done: int, of: int, note: str = "", standing: Standing | None = None) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=of, note=note)
            task = tasks[stage]
            # The results say it again, and better, once the search is over.
            progress.standing = standing if done < of else None
            # A finished stage keeps its last note: it is the summary of what was done.
            fields = {"note": note} if note else {}
            progress.update(task, completed=done, total=of, **fields)  # type: ignore[arg-type]
            if done >= of:
                progress.stop_task(task)

        yield report


def _lines(console: Console) -> Reporter:
    started: dict[str, float] = {}
    known: list[Standing] = []

    def report(stage: str, done: int, of: int, note: str = "", standing: Standing | None = None) -> None:
        begun = started.setdefault(stage, time.monotonic())
        told = news(known[-1] if known else None, standing) if standing is not None else None
        if standing is not None:
            known[:] = [standing]
        if done >= of:
            told = note
        if told is not None:
            console.print(
                f"{stage:<12} {done}/{of}  {time.monotonic() - begun:5.1f} s  {told}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )

    return report


def _events(console: Console) -> Reporter:
    def report(stage: str, done: int, of: int, note: str = "", standing: Standing | None = None) -> None:
        event: dict[str, object] = {"stage": stage, "done": done, "of": of, "note": note}
        if standing is not None:
            event["search"] = standing_json(standing)
        console.file.write(json.dumps(event, allow_nan=False) + "\n")
        console.file.flush()

    return report
