"""What a run is to measure, and what the worker must answer in each pass."""

from dataclasses import dataclass
from typing import Dict, List, Optional

from toggle_runtime.meters.external import ExternalMeter
from toggle_runtime.records import LatencySample, MemorySample, ModeVerdict, ParitySample, RecordError

PASS_NAMES = ("parity", "verify", "latency", "memory", "energy")

LOADED = "loaded"
"""The step that the worker reports when its model is warm: the energy window opens there."""


@dataclass(frozen=True)
class Plan:
    """What to measure. `restarts` is the number of fresh processes of the latency pass; times in seconds.
    `meter` is the external one that the device file names, None for what the device has itself;
    `pin_clocks` holds the clocks at their highest meanwhile."""

    passes: List[str]
    restarts: int = 3
    generations: int = 10
    warmups: int = 2
    tokens: int = 48
    threads: int = 1
    pass_timeout_s: float = 300.0
    energy_window_s: float = 10.0
    idle_s: float = 3.0
    meter: Optional[ExternalMeter] = None
    pin_clocks: bool = False

    def __post_init__(self) -> None:
        for name in self.passes:
            if name not in PASS_NAMES:
                raise RecordError(f"plan.passes: expected some of {PASS_NAMES}, got {name!r}")
        for name in ("restarts", "generations", "tokens", "threads", "pass_timeout_s", "energy_window_s"):
            if getattr(self, name) <= 0:
                raise RecordError(f"plan.{name}: expected more than 0, got {getattr(self, name)}")
        if self.warmups < 0 or self.idle_s < 0:
            raise RecordError("plan.warmups and plan.idle_s: expected 0 or more")


@dataclass(frozen=True)
class ParityResult:
    sample: ParitySample
    modules: List[str]


@dataclass(frozen=True)
class VerifyResult:
    """What the verify pass must answer. `traces` is the name of a file in the pass's output folder."""

    modes: List[ModeVerdict]
    noise_floor: Dict[str, float]
    traces: str
    modules: List[str]
    environment: Dict[str, str]


@dataclass(frozen=True)
class LatencyResult:
    sample: LatencySample
    modules: List[str]


@dataclass(frozen=True)
class MemoryResult:
    sample: MemorySample
    modules: List[str]


@dataclass(frozen=True)
class EnergyResult:
    tokens: int
    modules: List[str]
