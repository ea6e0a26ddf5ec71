"""Reads a meter again and again, from a thread of the control plane, and keeps every reading and every failure."""

import random
import threading
import time
from typing import Any, Callable, List, Optional

from toggle_runtime.meters.meter import Failure, Meter, Reading, UnavailableError


class Recording:
    """Readings of one meter in order of time. `spoiled` is why nothing of it can be used, None while it can.

    `now` is the clock, in seconds; a simulated board has its own.
    """

    def __init__(self, meter: Meter, now: Callable[[], float] = time.monotonic) -> None:
        self.meter = meter
        self.readings: List[Reading] = []
        self.failures: List[Failure] = []
        self.spoiled: Optional[str] = None
        self._now = now
        self._lock = threading.Lock()
        self._random = random.Random(0)  # noqa: S311 - spreads reads in time, hides nothing

    def take(self) -> float:
        """Read now. Returns the moment that the reading stands for, also when it failed: a gap, never a zero."""
        with self._lock:
            before = self._now()
            try:
                taken = self.meter.read()
            except UnavailableError as exc:
                self.spoiled = self.spoiled or str(exc)
                return before
            except (OSError, ValueError) as exc:
                self.failures.append(Failure(before, _why(exc)))
                return before
            # Rails are read one after the other: the middle is nearest to all of them.
            moment = (before + self._now()) / 2
            at_s = moment - taken.age_s
            if not self.readings or at_s > self.readings[-1].at_s:
                self.readings.append(Reading(at_s, taken.values))
            return moment

    def pause_s(self) -> float:
        """How long to wait before the next read. Sources that show a moment only are read at irregular times, so that
        no rhythm of the load can hide between them."""
        spread = 0.0 if self.meter.averages else self._random.uniform(-0.4, 0.4)
        return self.meter.period_s * (1 + spread)


class Sampler:
    """Takes readings from a thread while it is open."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Sampler":
        self._recording.take()
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(self._recording.pause_s()):
            self._recording.take()


def _why(exc: Exception) -> str:
    if isinstance(exc, OSError) and exc.strerror:
        return f"{exc.filename}: {exc.strerror}" if exc.filename else exc.strerror
    return str(exc)
