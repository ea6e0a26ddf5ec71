"""Commands called in this process, through the same entry as the script."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Ended:
    """The exit code and what was printed."""

    code: int
    out: str
    err: str


Call = Callable[..., Ended]
