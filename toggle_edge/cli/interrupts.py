"""Ctrl-C that cannot get lost: a library that swallows the interrupt only delays it to the next line of progress."""

from __future__ import annotations

import signal
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toggle_edge.report.progress import Reporter
    from toggle_edge.report.standing import Standing

_asked = False


def watch() -> None:
    """Remember every interrupt from now on, beside raising KeyboardInterrupt for it, as Python does."""
    global _asked
    _asked = False
    signal.signal(signal.SIGINT, _remember)


def checked(report: Reporter) -> Reporter:
    """`report`, but raising KeyboardInterrupt when one was asked for and somebody caught it."""

    def report_unless_asked(
        stage: str, done: int, of: int, note: str = "", standing: Standing | None = None
    ) -> None:
        if _asked:
            raise KeyboardInterrupt
        report(stage, done, of, note, standing)

    return report_unless_asked


def _remember(number: int, frame: FrameType | None) -> None:
    global _asked
    _asked = True
    raise KeyboardInterrupt
