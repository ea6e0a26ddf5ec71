"""What every energy meter is: channels that are read together, and what their numbers mean.

A meter is opened by reading it; one that cannot be read is unavailable with its reason. Nothing is ever estimated.
"""

from dataclasses import dataclass, field
from typing import Callable, List, Optional, Sequence, Tuple


class UnavailableError(Exception):
    """Why a quantity cannot be measured: the message is the reason that people see."""


@dataclass(frozen=True)
class Reading:
    """All channels at one moment of the monotonic clock: milliwatts, or the counters' own units."""

    at_s: float
    values: Tuple[float, ...]


@dataclass(frozen=True)
class Failure:
    """A read that gave nothing: when, and why."""

    at_s: float
    reason: str


@dataclass(frozen=True)
class Taken:
    """What one read gives. `age_s` is how long ago the values were true, for sources that tell."""

    values: Tuple[float, ...]
    age_s: float = 0.0


@dataclass(frozen=True)
class Channel:
    """One rail, package or cell.

    `counted`: part of the total (others are reported beside it). `step` is the least change that it can show, in mW for
    power and in mJ for a counter, None where the source does not tell. `wraps_at` is the value, in the counter's unit,
    at which it starts again; None for power and for counters that never do.
    """

    name: str
    counted: bool = True
    step: Optional[float] = None
    wraps_at: Optional[float] = None


def _as_read(readings: Sequence[Reading]) -> List[Reading]:
    return list(readings)


@dataclass(frozen=True)
class Meter:
    """An open meter.

    `counts`: its values are energy counters, `unit_mj` millijoules each, rather than powers in mW. `period_s` is how
    often it is read, `least_window_s` below which its resolution tells nothing, `plausible_mw` what the mean power of a
    window can be: outside, the unit or the sign is wrong. `averages`: a reading covers all the time since the one
    before, so that bursts are not missed in between. `calibrated` turns raw readings into those that are integrated,
    and raises UnavailableError where they contradict each other.
    """

    name: str
    method: str
    scope: str
    channels: Tuple[Channel, ...]
    read: Callable[[], Taken]
    period_s: float
    least_window_s: float
    plausible_mw: Tuple[float, float]
    counts: bool = False
    unit_mj: float = 1.0
    averages: bool = True
    calibrated: Callable[[Sequence[Reading]], List[Reading]] = field(default=_as_read)


MOST_MW = 1e6
"""No channel of anything that we measure takes a kilowatt: a counter that rises faster has jumped."""


def denied(path: str, fix: str) -> UnavailableError:
    """A file that only others may read, and what would help."""
    return UnavailableError(f"permission: /{path} may not be read by this user; fix: {fix}")
