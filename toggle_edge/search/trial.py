"""What the search knows of one evaluation, and where that is remembered. Pure data, torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from toggle_edge.config import Config
from toggle_edge.errors import SearchError


@dataclass(frozen=True)
class Observation:
    """What one evaluation yields to the search.

    - `proxy_flops`: predicted cost, minimised.
    - `avgpp`: average preservation in percent, maximised; None when a signal it needs is missing.
    - `robustness`: by mode, the joint robustness at that mode's coverage; `>= 0` is satisfied, None is UNSET.
    - `feasible`: by mode, whether robustness, coverage and the AvgPP target all hold.
    - `properties`: by mode and property, the robustness of that property alone; empty where it was not noted.
    - `refuted`: the evaluation stopped before its last probe, when no mode could be satisfied any more. Then every
      robustness is an upper bound of what all probes would give, none is feasible, and `avgpp` is of the probes read.

    Raises SearchError on a number that is not finite, on modes that differ between the two mappings, and on a
    mode called feasible although its robustness is UNSET or negative, or the trial was refuted: nothing unknown may
    pass.
    """

    proxy_flops: float
    avgpp: float | None
    robustness: Mapping[str, float | None]
    feasible: Mapping[str, bool]
    properties: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    refuted: bool = False

    def __post_init__(self) -> None:
        numbers = {"proxy_flops": self.proxy_flops, "avgpp": self.avgpp, **self.robustness}
        for mode, properties in self.properties.items():
            numbers |= {f"{mode}: {name}": value for name, value in properties.items()}
        for name, value in numbers.items():
            if value is not None and not math.isfinite(value):
                raise SearchError(f"observation: {name}: expected a finite number or None, got {value!r}")
        if set(self.robustness) != set(self.feasible):
            raise SearchError(
                f"observation: robustness has the modes {sorted(self.robustness)}, "
                f"feasible has {sorted(self.feasible)}; expected the same"
            )
        if self.refuted and any(self.feasible.values()):
            raise SearchError("observation: a refuted trial is called feasible")
        for mode, feasible in self.feasible.items():
            robustness = self.robustness[mode]
            if feasible and (robustness is None or robustness < 0 or self.avgpp is None):
                raise SearchError(
                    f"observation: mode {mode!r} is called feasible with robustness {robustness} "
                    f"and AvgPP {self.avgpp}"
                )


@dataclass(frozen=True)
class Trial:
    """One evaluated config. `origin` says who proposed it; `payload` holds JSON-able extras for the store."""

    index: int
    config: Config
    origin: str
    observation: Observation
    payload: Mapping[str, object] = field(default_factory=dict)


class Ledger(Protocol):
    """Where trials are remembered: the search appends, and on resuming reads them back."""

    def trials(self) -> Sequence[Trial]:
        """All recorded trials by ascending index, from 0 without a gap."""
        ...

    def record(self, trial: Trial) -> None:
        """Remember a trial durably before returning; an index that is taken is an error."""
        ...
