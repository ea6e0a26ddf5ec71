"""From a recording and its borders to the energy of a window: gross, idle, and all that may be wrong with it."""

import math
from dataclasses import dataclass
from typing import List, Optional, Tuple

from toggle_runtime.meters.integration import Energy, energy_between, step_mw
from toggle_runtime.meters.meter import UnavailableError
from toggle_runtime.meters.sampling import Recording
from toggle_runtime.records import EnergySample

Span = Tuple[float, float]
"""From and to, in seconds of the recording's clock."""

MOST_IDLE_CHANGE = 0.05
SETTLED_PERIODS = 2
"""Sensors show the mean of what just was: idle begins this many readings after the load has gone."""

LEAST_STEPS = 3
LEAST_TOKENS = 64


@dataclass
class Spans:
    """Which part of a recording is what; None for what was not recorded. `work` is from a warm model to its answer."""

    before: Optional[Span] = None
    work: Optional[Span] = None
    after: Optional[Span] = None


def no_energy(reason: str, method: str = "none", scope: Optional[str] = None) -> EnergySample:
    """A window that was not measured, and why."""
    return EnergySample(None, None, None, 0, method, scope, reason)


def energy_sample(recording: Recording, spans: Spans, tokens: int) -> EnergySample:
    """The window's energy. What spoils it leaves no number, what makes it doubtful is a flag."""
    meter = recording.meter
    try:
        if spans.work is None:
            raise UnavailableError("the worker did not say when it began and ended")
        if tokens <= 0:
            raise UnavailableError("the worker generated no token in the window")
        work = energy_between(recording, *spans.work)
        idle = [_idle(recording, span) for span in (spans.before, spans.after)]
        _require_alive(recording, spans)
    except UnavailableError as exc:
        return no_energy(str(exc), meter.method, meter.scope)
    before, after = idle
    known = [each for each in idle if each is not None]
    idle_mw = sum(each.mean_mw for each in known) / len(known) if known else None
    step = step_mw(meter, work.seconds)
    flags = [*work.flags, *_doubts(before, after, work, idle_mw, step)]
    if tokens < LEAST_TOKENS:
        flags.append(f"{tokens} tokens in the window, at least {LEAST_TOKENS} are wanted")
    return EnergySample(
        gross_mj=work.total_mj,
        idle_mw=idle_mw,
        window_s=work.seconds,
        tokens=tokens,
        method=meter.method,
        scope=meter.scope,
        reason=None if known else "idle power was not asked for",
        idle_before_mw=None if before is None else before.mean_mw,
        idle_after_mw=None if after is None else after.mean_mw,
        step_mw=step,
        readings=work.readings,
        largest_gap_s=work.largest_gap_s,
        rails=work.by_channel,
        flags=flags,
    )


def _idle(recording: Recording, span: Optional[Span]) -> Optional[Energy]:
    return None if span is None else energy_between(recording, *span, loaded=False)


def _require_alive(recording: Recording, spans: Spans) -> None:
    """Raises UnavailableError for a meter whose values stopped changing before the work ended, and did not change when
    the load went away either. Constant power alone looks the same, so without idle after it nothing is said."""
    if spans.after is None or spans.work is None or not recording.readings:
        return
    last = recording.readings[-1].values
    since = next((each.at_s for each in reversed(recording.readings) if each.values != last), -math.inf)
    if since < spans.work[1] - recording.meter.period_s * 2:
        told = "all the time" if since == -math.inf else f"from {max(0.0, since - spans.work[0]):.1f} s on"
        raise UnavailableError(
            f"{recording.meter.name} gave the same reading {told}, loaded and idle: it is frozen"
        )


def _doubts(
    before: Optional[Energy],
    after: Optional[Energy],
    work: Energy,
    idle_mw: Optional[float],
    step: Optional[float],
) -> List[str]:
    doubts = []
    if before is not None and after is not None and idle_mw is not None:
        apart = abs(before.mean_mw - after.mean_mw)
        if apart > max(
            3 * math.hypot(before.deviation_mw, after.deviation_mw), MOST_IDLE_CHANGE * abs(idle_mw)
        ):
            doubts.append(
                f"idle power was {before.mean_mw / 1000:.3g} W before and {after.mean_mw / 1000:.3g} W after: "
                "something else changed meanwhile"
            )
    if idle_mw is not None:
        net = work.mean_mw - idle_mw
        if net <= 0:
            doubts.append(f"the window took {-net:.0f} mW less than idle")
        elif step is not None and net < LEAST_STEPS * step:
            doubts.append(f"the load took {net:.0f} mW, the meter shows steps of {step:.0f} mW only")
    return doubts
