"""Watches an energy counter from a thread, often enough that it cannot wrap twice unseen."""

import threading
import time
from dataclasses import dataclass
from typing import Any, Optional

INTERVAL_S = 0.5


@dataclass(frozen=True)
class Mark:
    """Millijoules counted up to a moment of the monotonic clock."""

    at_s: float
    energy_mj: float


class Sampler:
    """Open it around everything that is to be measured; `mark` the borders of each window.

    `gap` is why the counter could not be read at some moment, else None. One gap spoils all windows: the
    energy in it is unknown.
    """

    def __init__(self, counter: Any) -> None:
        self.gap: Optional[str] = None
        self._counter = counter
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def mark(self) -> Optional[Mark]:
        """Read now. None, and a `gap`, when the counter cannot be read."""
        with self._lock:
            try:
                return Mark(time.monotonic(), self._counter.read_mj())
            except (OSError, ValueError) as exc:
                self.gap = f"the meter could not be read during the window: {exc}"
                return None

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL_S):
            self.mark()


def power_mw(start: Mark, end: Mark) -> float:
    """Mean power between two marks (millijoules per second are milliwatts)."""
    return (end.energy_mj - start.energy_mj) / (end.at_s - start.at_s)
