"""Progress of long work, on stderr: bars on a terminal, one plain line per finished stage elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class Reporter(Protocol):
    """Hears how far a stage is. `note` is what a person would want to know at this moment."""

    def __call__(self, stage: str, done: int, of: int, note: str = "") -> None: ...


def silent(stage: str, done: int, of: int, note: str = "") -> None:
    """A reporter that says nothing."""


@contextmanager
def on_stderr() -> Iterator[Reporter]:
    """A reporter for people: bars where stderr is a terminal, else a line when a stage is done."""
    console = Console(stderr=True)
    if console.is_terminal:
        with _bars(console) as reporter:
            yield reporter
    else:
        yield _lines(console)


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
    with Progress(*columns, console=console) as progress:

        def report(stage: str, done: int, of: int, note: str = "") -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=of, note=note)
            task = tasks[stage]
            # A finished stage keeps its last note: it is the summary of what was done.
            fields = {"note": note} if note else {}
            progress.update(task, completed=done, total=of, **fields)  # type: ignore[arg-type]
            if done >= of:
                progress.stop_task(task)

        yield report


def _lines(console: Console) -> Reporter:
    started: dict[str, float] = {}

    def report(stage: str, done: int, of: int, note: str = "") -> None:
        begun = started.setdefault(stage, time.monotonic())
        if done >= of:
            console.print(
                f"{stage:<12} {done}/{of}  {time.monotonic() - begun:5.1f} s  {note}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )

    return report
