"""From readings to energy: trapezoids over power at its actual times, differences of counters across their wraps.

Everything here is a pure function of readings, so that a record of them gives the same numbers anywhere.
"""

import bisect
import math
from dataclasses import dataclass, field
from typing import Dict, List, Optional, Sequence, Tuple

from toggle_runtime.meters.meter import MOST_MW, Channel, Meter, Reading, UnavailableError
from toggle_runtime.meters.sampling import Recording

MOST_PERIODS = 5
"""Readings that are further apart are a gap, which is flagged; one of more than MOST_GAP of the window spoils it."""

MOST_GAP = 0.05
MOST_SPREAD = 0.01
STANDSTILL_S = 2.0
"""Counters are renewed within milliseconds to a tenth of a second: one that stands still so long has stopped."""

BLOCKS = 5


@dataclass(frozen=True)
class Energy:
    """Of one window: millijoules (of the total, and of each channel), its length, how it was read, and what is doubtful
    about it. `deviation_mw` is the standard deviation of the mean power, from its changes within the window."""

    total_mj: float
    by_channel: Dict[str, float]
    seconds: float
    readings: int
    largest_gap_s: float
    deviation_mw: float
    flags: List[str] = field(default_factory=list)

    @property
    def mean_mw(self) -> float:
        """Millijoules per second are milliwatts."""
        return self.total_mj / self.seconds


def energy_between(recording: Recording, start_s: float, end_s: float, *, loaded: bool = True) -> Energy:
    """Energy between two moments. `loaded`: the device worked, so that its power can be judged.

    Raises UnavailableError with the reason when the readings do not determine it: too short, a gap, a counter that
    stands still or jumps, a power that nothing of the kind takes.
    """
    meter = recording.meter
    if recording.spoiled is not None:
        raise UnavailableError(recording.spoiled)
    seconds = end_s - start_s
    if loaded and seconds < meter.least_window_s * 0.99:  # a worker's clock ends a window a little early
        raise UnavailableError(
            f"needs at least {meter.least_window_s:g} s with {meter.name}, the window has {seconds:.1f} s"
        )
    failures = [each for each in recording.failures if start_s <= each.at_s <= end_s]
    inside = [each for each in recording.readings if start_s <= each.at_s <= end_s]
    if len(inside) < 2:
        raise UnavailableError(
            failures[0].reason if failures else f"{meter.name} gave no readings in the window"
        )
    readings = meter.calibrated(recording.readings)
    inside = [each for each in readings if start_s <= each.at_s <= end_s]
    gap_s = _largest_gap(inside, start_s, end_s)
    flags = _gaps(meter, inside, gap_s, seconds, [each.reason for each in failures])
    curve = _cumulated(meter, _spanning(readings, start_s, end_s))
    if meter.counts and loaded:
        _require_moving(meter, inside)
    by_channel = {
        channel.name: _at(curve, end_s, index) - _at(curve, start_s, index)
        for index, channel in enumerate(meter.channels)
    }
    counted = [index for index, channel in enumerate(meter.channels) if channel.counted]
    total = sum(by_channel[meter.channels[index].name] for index in counted)
    if loaded:
        _require_plausible(meter, total / seconds)
    spread = 0.0 if meter.counts else _unseen_mw(inside, counted)
    if not meter.averages and total > 0 and spread > MOST_SPREAD * total / seconds:
        flags.append(
            f"power changes faster than {meter.name} is read: the mean is uncertain by {2 * spread:.0f} mW"
        )
    edges = [start_s + seconds * block / BLOCKS for block in range(BLOCKS + 1)]
    sums = [sum(_at(curve, edge, index) for index in counted) for edge in edges]
    blocks = [(after - before) * BLOCKS / seconds for before, after in zip(sums, sums[1:])]
    deviation = math.hypot(_deviation(blocks) / math.sqrt(BLOCKS), _rounding_mw(meter, seconds))
    return Energy(total, by_channel, seconds, len(inside), gap_s, deviation, flags)


def step_mw(meter: Meter, seconds: float) -> Optional[float]:
    """The least power that the total can show: of rails their steps together, of counters one step in the window. None
    where a source does not tell."""
    steps = [channel.step for channel in meter.channels if channel.counted]
    if any(step is None for step in steps):
        return None
    total = sum(step for step in steps if step is not None)
    return total / seconds if meter.counts else total


def wrapped_difference(before: float, after: float, wraps_at: Optional[float]) -> float:
    """A counter's progress from one reading to the next, over at most one wrap. Raises UnavailableError where a counter
    that never wraps went back."""
    if after >= before:
        return after - before
    if wraps_at is None or before > wraps_at:
        raise UnavailableError(f"the counter went back from {before:.0f} to {after:.0f}: it was reset")
    return wraps_at - before + after


def _spanning(readings: Sequence[Reading], start_s: float, end_s: float) -> Sequence[Reading]:
    """Those of a window, and the nearest one on either side of it: what came before and after is not its matter."""
    moments = [each.at_s for each in readings]
    first = max(0, bisect.bisect_right(moments, start_s) - 1)
    return readings[first : bisect.bisect_left(moments, end_s) + 1]


def _cumulated(meter: Meter, readings: Sequence[Reading]) -> List[Tuple[float, Tuple[float, ...]]]:
    """Millijoules since the first reading, at each reading, by channel."""
    sums = [0.0] * len(meter.channels)
    curve = [(readings[0].at_s, tuple(sums))]
    for before, after in zip(readings, readings[1:]):
        seconds = after.at_s - before.at_s
        for index, channel in enumerate(meter.channels):
            if meter.counts:
                sums[index] += _counted_mj(meter, channel, before.values[index], after.values[index], seconds)
            else:
                sums[index] += (before.values[index] + after.values[index]) / 2 * seconds
        curve.append((after.at_s, tuple(sums)))
    return curve


def _counted_mj(meter: Meter, channel: Channel, before: float, after: float, seconds: float) -> float:
    if channel.wraps_at is not None and MOST_MW * seconds > channel.wraps_at * meter.unit_mj:
        raise UnavailableError(
            f"{channel.name} was not read for {seconds:.1f} s: its counter may have wrapped more than once"
        )
    spent = wrapped_difference(before, after, channel.wraps_at) * meter.unit_mj
    # Some counters are renewed a little late, so what is credited at once may be of a tenth of a second.
    if spent > MOST_MW * (seconds + 0.1):
        raise UnavailableError(
            f"{channel.name} jumped by {spent / 1000:.0f} J in {seconds:.2f} s: it was reset"
        )
    return spent


def _at(curve: Sequence[Tuple[float, Tuple[float, ...]]], moment_s: float, index: int) -> float:
    """Between readings, and a little beyond them, energy is taken to grow evenly."""
    right = min(max(bisect.bisect_left(curve, (moment_s,)), 1), len(curve) - 1)
    (earlier, before), (later, after) = curve[right - 1], curve[right]
    share = (moment_s - earlier) / (later - earlier)
    return before[index] + share * (after[index] - before[index])


def _largest_gap(inside: Sequence[Reading], start_s: float, end_s: float) -> float:
    moments = [start_s, *(each.at_s for each in inside), end_s]
    return max(later - earlier for earlier, later in zip(moments, moments[1:]))


def _gaps(
    meter: Meter, inside: Sequence[Reading], gap_s: float, seconds: float, failures: Sequence[str]
) -> List[str]:
    most = MOST_PERIODS * meter.period_s
    because = f": {failures[0]}" if failures else ""
    # A counter goes on while nobody looks; whether it could wrap meanwhile is judged where it is read.
    if not meter.counts and gap_s > max(most, MOST_GAP * seconds):
        raise UnavailableError(f"{meter.name} was not read for {gap_s:.2f} s of the window{because}")
    flags = []
    if failures:
        flags.append(
            f"{len(failures)} of {len(inside) + len(failures)} reads of {meter.name} failed{because}"
        )
    if gap_s > most and not (meter.counts and not failures):
        flags.append(f"{meter.name} was not read for {gap_s:.2f} s")
    return flags


def _require_moving(meter: Meter, inside: Sequence[Reading]) -> None:
    for index, channel in enumerate(meter.channels):
        if not channel.counted:
            continue
        since, value = inside[0].at_s, inside[0].values[index]
        for each in inside[1:]:
            if each.values[index] != value:
                since, value = each.at_s, each.values[index]
            elif each.at_s - since > STANDSTILL_S:
                raise UnavailableError(
                    f"{channel.name} stood still for {each.at_s - since:.1f} s while the device worked: frozen counter"
                )


def _require_plausible(meter: Meter, mean_mw: float) -> None:
    least, most = meter.plausible_mw
    if not least <= mean_mw <= most:
        raise UnavailableError(
            f"a mean power of {mean_mw / 1000:.4g} W is not what {meter.scope} can take under load "
            f"({least / 1000:g} to {most / 1000:g} W): wrong unit or sign"
        )


def _unseen_mw(inside: Sequence[Reading], counted: Sequence[int]) -> float:
    """Standard deviation of the mean that changes from one reading to the next leave (von Neumann's estimator): small
    when the readings follow the power, large when they only hit it here and there."""
    sums = [sum(each.values[index] for index in counted) for each in inside]
    squares = [(later - earlier) ** 2 for earlier, later in zip(sums, sums[1:])]
    return math.sqrt(sum(squares) / (2 * len(squares)) / len(sums))


def _deviation(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _rounding_mw(meter: Meter, seconds: float) -> float:
    steps = [channel.step or 0.0 for channel in meter.channels if channel.counted]
    together = math.sqrt(sum(step * step for step in steps) / 12)  # each rounds evenly within one step
    return together / seconds if meter.counts else together
