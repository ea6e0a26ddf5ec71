"""What a run is to measure, and what the worker must answer in each pass."""

from dataclasses import dataclass, field
from typing import Dict, List, Optional

from toggle_runtime.meters.external import ExternalMeter
from toggle_runtime.records import (
    CapacitySample,
    ColdLoad,
    LatencySample,
    MemorySample,
    ModeVerdict,
    ParitySample,
    RecordError,
    SustainedSample,
)

PASS_NAMES = ("parity", "verify", "capacity", "cold", "latency", "sustained", "memory", "energy")

ONLY_IF_ASKED = frozenset({"sustained"})
"""Passes that take long, and that no plan has by itself."""

CONTEXT_RESTARTS = 10
"""Restarts that go on with long prompts, which take longest. No tail of these is told, so they need no more."""

LOADED = "loaded"
"""The step that the worker reports when its model is warm: the energy window opens there."""


@dataclass(frozen=True)
class Plan:
    """What to measure. `restarts` is the number of fresh processes of the latency pass, `colds` of the cold one; times
    in seconds. Many restarts of few generations say more than the reverse: what differs between processes is not seen
    within one. `contexts` are lengths of prompts in tokens, for the first CONTEXT_RESTARTS; those without room in the
    model's context are left out.
    `meter` is the external one that the device file names, None for what the device has itself;
    `pin_clocks` holds the clocks at their highest meanwhile."""

    passes: List[str]
    restarts: int = 24
    generations: int = 2
    warmups: int = 1
    tokens: int = 48
    threads: int = 1
    pass_timeout_s: float = 300.0
    energy_window_s: float = 10.0
    idle_s: float = 3.0
    meter: Optional[ExternalMeter] = None
    pin_clocks: bool = False
    contexts: List[int] = field(default_factory=lambda: [128, 384])
    colds: int = 3
    sustained_s: float = 30.0

    def __post_init__(self) -> None:
        for name in self.passes:
            if name not in PASS_NAMES:
                raise RecordError(f"plan.passes: expected some of {PASS_NAMES}, got {name!r}")
        for name in ("restarts", "generations", "tokens", "threads", "colds"):
            if getattr(self, name) <= 0:
                raise RecordError(f"plan.{name}: expected more than 0, got {getattr(self, name)}")
        for name in ("pass_timeout_s", "energy_window_s", "sustained_s"):
            # Written so that no number that is not one passes.
            if not getattr(self, name) > 0:
                raise RecordError(f"plan.{name}: expected more than 0, got {getattr(self, name)}")
        if self.warmups < 0 or self.idle_s < 0:
            raise RecordError("plan.warmups and plan.idle_s: expected 0 or more")
        if any(length < 1 for length in self.contexts):
            raise RecordError(f"plan.contexts: expected lengths of at least 1 token, got {self.contexts}")


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
class ColdResult:
    sample: ColdLoad
    modules: List[str]


@dataclass(frozen=True)
class SustainedResult:
    sample: SustainedSample
    modules: List[str]


@dataclass(frozen=True)
class CapacityResult:
    sample: CapacitySample
    modules: List[str]


@dataclass(frozen=True)
class MemoryResult:
    sample: MemorySample
    modules: List[str]


@dataclass(frozen=True)
class EnergyResult:
    tokens: int
    modules: List[str]
