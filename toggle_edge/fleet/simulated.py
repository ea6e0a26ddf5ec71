"""A backend on a simulated clock, for whoever must know what a measurement should come to: nothing waits, nothing runs.

It stands where an inference engine does (`toggle_runtime.backends`), so passes and statistics are the real ones. Its
noise is that of a real machine: what was recorded of it, replayed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from toggle_runtime.records import Generation, ModelShape

from toggle_edge.errors import InputError


@dataclass
class SimulatedClock:
    """Nanoseconds that pass when something is done, and never by themselves."""

    now_ns: int = 0

    def seconds(self) -> float:
        return self.now_ns / 1e9


@dataclass(frozen=True)
class RecordedNoise:
    """Token times of real processes in the order in which they ran: of each its generations, over the median of all."""

    processes: tuple[tuple[NDArray[np.float64], ...], ...]


def read_noise(path: Path) -> RecordedNoise:
    """Noise from a JSON file: a list of processes, each a list of generations, each a list of token times.

    Raises InputError for anything else, or fewer than two processes.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        processes = [[np.asarray(made, dtype=np.float64) for made in process] for process in data]
    except (OSError, ValueError, TypeError) as exc:
        raise InputError(f"{path}: expected recorded token times: {exc}") from exc
    every = [made for process in processes for made in process]
    if len(processes) < 2 or not all(processes) or any(made.ndim != 1 or not made.size for made in every):
        raise InputError(f"{path}: expected at least two processes, each of generations of token times")
    middle = float(np.median(np.concatenate(every)))
    if not all(np.isfinite(made).all() and (made > 0).all() for made in every):
        raise InputError(f"{path}: expected token times above 0")
    return RecordedNoise(tuple(tuple(made / middle for made in process) for process in processes))


@dataclass
class SimulatedMachine:
    """What two backends share when they take turns on one machine: its clock, and its noise.

    Processes that start one after the other get what such processes had in the recording: the first of two a process at
    random, the second the next. So what slows both is as common to both as it really was.
    """

    noise: RecordedNoise
    seed: int
    clock: SimulatedClock = field(default_factory=SimulatedClock)
    _started: int = 0
    _place: int = 0

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)

    def start(self) -> tuple[NDArray[np.float64], ...]:
        """The generations of the recorded process whose noise the next one has."""
        if self._started % 2 == 0:
            self._place = int(self.random.integers(len(self.noise.processes) - 1))
        else:
            self._place += 1
        self._started += 1
        return self.noise.processes[self._place]


@dataclass(frozen=True)
class SimulatedModel:
    """An opened model: its shape, what opening took, and the noise of its process."""

    shape: ModelShape
    load_ns: int
    noise: tuple[NDArray[np.float64], ...]


@dataclass(frozen=True)
class SimulatedBackend:
    """A backend whose token takes `token_ns` without noise, later ones `drift_per_s` more with each second.

    A prompt's token takes a tenth of that. `slowdown` 1.05 makes everything 5 % slower.
    """

    machine: SimulatedMachine
    token_ns: float = 5e6
    load_ns: int = 50_000_000
    slowdown: float = 1.0
    drift_per_s: float = 0.0
    GRAPH: str = "model.onnx"

    def open_model(self, folder: Path, shape: ModelShape, graph: str, threads: int) -> SimulatedModel:
        self.machine.clock.now_ns += self.load_ns
        return SimulatedModel(shape, self.load_ns, self.machine.start())

    def generate(self, model: SimulatedModel, prompt: Sequence[int], tokens: int) -> Generation:
        recorded = model.noise[int(self.machine.random.integers(len(model.noise)))]
        noise = np.resize(recorded, tokens)
        first = self._take(len(prompt) / 10 * float(noise[0]))
        return Generation(first, [self._take(float(each)) for each in noise[1:]], len(prompt))

    def _take(self, tokens: float) -> int:
        clock = self.machine.clock
        pace = self.token_ns * self.slowdown * (1.0 + self.drift_per_s * clock.seconds())
        passed = max(1, round(tokens * pace))
        clock.now_ns += passed
        return passed
