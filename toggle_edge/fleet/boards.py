"""Simulated boards: files that a kernel would show, moved by a known power curve on a clock of their own.

They stand in for hardware at the one place where meters touch it, the tree of the kernel's files, so that every meter
can be held against joules that are known without it, in milliseconds. What they say, the kernel documents.
"""

from __future__ import annotations

import fnmatch
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

from toggle_runtime.energy import SETTLED_PERIODS, Spans, energy_sample, no_energy
from toggle_runtime.meters import open_energy
from toggle_runtime.meters.external import ExternalMeter
from toggle_runtime.meters.sampling import Recording
from toggle_runtime.records import EnergySample
from toggle_runtime.tree import Tree

Source = str | Callable[[], str]
"""What a file holds: a text, or what it is at the moment of reading."""

TAKES_S = 2e-4
"""An I2C transfer: reading a file takes this much of the board's time."""


class SimulatedClock:
    """Seconds that pass only when somebody waits."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def now(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@dataclass(frozen=True)
class PowerCurve:
    """Watts by time: pieces of (seconds, watts), one after the other from `start_s` on; before and after them
    `idle_w`."""

    pieces: Sequence[tuple[float, float]]
    idle_w: float
    start_s: float
    _ends: list[float] = field(init=False, repr=False)
    _joules: list[float] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        lengths = [seconds for seconds, _ in self.pieces]
        object.__setattr__(self, "_ends", list(accumulate(lengths, initial=self.start_s)))
        object.__setattr__(self, "_joules", list(accumulate((s * w for s, w in self.pieces), initial=0.0)))

    @property
    def end_s(self) -> float:
        return self._ends[-1]

    def joules(self, from_s: float, to_s: float) -> float:
        """Exactly: the curve is constant by pieces."""
        return self._since_start(to_s) - self._since_start(from_s)

    def _since_start(self, moment_s: float) -> float:
        if moment_s <= self.start_s:
            return (moment_s - self.start_s) * self.idle_w
        if moment_s >= self.end_s:
            return self._joules[-1] + (moment_s - self.end_s) * self.idle_w
        piece = bisect_right(self._ends, moment_s) - 1
        return self._joules[piece] + (moment_s - self._ends[piece]) * self.pieces[piece][1]


@dataclass
class Fault:
    """What goes wrong with files that match a pattern, from a moment of the work on, and for how long."""

    pattern: str
    what: Callable[[str, str], str]
    from_s: float = 0.0
    until_s: float = float("inf")


class SimulatedTree(Tree):
    """The kernel's files of a board, as `Tree` shows those of a real one. Faults are applied where a file is read."""

    def __init__(self, files: Mapping[str, Source], clock: SimulatedClock) -> None:
        super().__init__(Path("/nonexistent"))
        self.files = dict(files)
        self.faults: list[Fault] = []
        self._clock = clock

    def text(self, path: str) -> str:
        if path not in self.files:
            raise FileNotFoundError(2, "No such file or directory", f"/{path}")
        self._clock.sleep(TAKES_S)
        source = self.files[path]
        text = source if isinstance(source, str) else source()
        for fault in self.faults:
            if fault.from_s <= self._clock.now_s < fault.until_s and fnmatch.fnmatch(path, fault.pattern):
                text = fault.what(path, text)
        return text.strip()

    def reread(self, path: str) -> str:
        return self.text(path)

    def head(self, path: str, size: int) -> bytes:
        return b""

    def glob(self, pattern: str) -> list[str]:
        """Files and folders whose path has the pattern's parts, as a shell would match them."""
        parts = pattern.split("/")
        found = set()
        for path in self.files:
            names = path.split("/")[: len(parts)]
            if len(names) == len(parts) and all(map(fnmatch.fnmatchcase, names, parts)):
                found.add("/".join(names))
        return sorted(found)

    def write(self, path: str, text: str) -> None:
        if path not in self.files:
            raise FileNotFoundError(2, "No such file or directory", f"/{path}")
        self.files[path] = text


@dataclass
class SimulatedBoard:
    """A board at work: `curve` is what all of it takes, `target` what runs there."""

    name: str
    tree: SimulatedTree
    clock: SimulatedClock
    curve: PowerCurve
    target: str = "onnx-cpu"

    def measure(
        self, idle_s: float, tokens: int = 1000, external: ExternalMeter | None = None
    ) -> EnergySample:
        """The energy pass: idle, the curve's work, idle. What no meter could read has the meters' reasons."""
        meter, reason = open_energy(self.tree, self.target, external)
        if meter is None:
            return no_energy(reason)
        recording = Recording(meter, self.clock.now)
        spans = Spans(before=self._recorded(recording, self.curve.start_s - idle_s, self.curve.start_s))
        spans.work = self._recorded(recording, self.curve.start_s, self.curve.end_s)
        after_s = self.clock.now_s + SETTLED_PERIODS * meter.period_s
        spans.after = self._recorded(recording, after_s, after_s + idle_s)
        return energy_sample(recording, spans, tokens)

    def joules(self, sample: EnergySample) -> float:
        """What the board took in the sample's window, by the curve alone."""
        seconds = sample.window_s or 0.0
        return self.curve.joules(self.curve.start_s, self.curve.start_s + seconds)

    def _recorded(self, recording: Recording, from_s: float, until_s: float) -> tuple[float, float] | None:
        if until_s <= from_s:
            return None
        self.clock.now_s = max(self.clock.now_s, from_s)
        begun = recording.take()
        while (left := until_s - self.clock.now_s) > 0:
            self.clock.sleep(min(left, recording.pause_s()))
            if self.clock.now_s < until_s:
                recording.take()
        return begun, recording.take()


def refused(path: str, text: str) -> str:
    raise PermissionError(13, "Permission denied", f"/{path}")


def broken(path: str, text: str) -> str:
    raise OSError(5, "Input/output error", f"/{path}")


def missing(path: str, text: str) -> str:
    raise FileNotFoundError(2, "No such file or directory", f"/{path}")


def garbled(path: str, text: str) -> str:
    return "\n"


def scaled(factor: float) -> Callable[[str, str], str]:
    """Another unit, or another sign."""
    return lambda path, text: str(round(int(text) * factor))


def saying(text: str) -> Callable[[str, str], str]:
    return lambda path, old: text


def frozen() -> Callable[[str, str], str]:
    """Every file goes on saying what it said when the fault began."""
    first: dict[str, str] = {}
    return lambda path, text: first.setdefault(path, text)
