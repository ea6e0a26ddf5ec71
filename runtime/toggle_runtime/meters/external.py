"""A meter outside of the device (a plug, a laboratory instrument): a command on the device that prints a number, or a
CSV that something else appends to. The device file names it and says what its numbers are.
"""

import math
import os
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Dict, List, Optional, Tuple

from toggle_runtime.codec import RecordError
from toggle_runtime.meters.meter import Channel, Meter, Taken

NAME = "external"
COMMAND_TIMEOUT_S = 5.0
LEAST_READINGS = 10
_TAIL_BYTES = 4096
_OUTPUT_BYTES = 4096

POWERS: Dict[str, float] = {"mW": 1.0, "W": 1e3}
ENERGIES: Dict[str, float] = {"mJ": 1.0, "J": 1e3, "Wh": 3.6e6}


@dataclass(frozen=True)
class ExternalMeter:
    """What a device file says of it: `command`, whose output is one number, or `csv`, a file on the device whose lines
    are seconds since 1970 by the device's clock and a number. `unit` is a power's (mW, W) or an energy counter's (mJ,
    J, Wh); `scope` is what it covers; `step` the least change that it shows, in that unit; `period_s` how often it is
    renewed."""

    unit: str
    scope: str
    command: List[str] = field(default_factory=list)
    csv: Optional[str] = None
    period_s: float = 1.0
    step: Optional[float] = None

    def __post_init__(self) -> None:
        if bool(self.command) == (self.csv is not None):
            raise RecordError("meter: expected either command or csv")
        if self.unit not in POWERS and self.unit not in ENERGIES:
            raise RecordError(f"meter.unit: expected one of {[*POWERS, *ENERGIES]}, got {self.unit!r}")
        if not 0.01 <= self.period_s <= 60:
            raise RecordError(f"meter.period_s: expected 0.01 to 60 s, got {self.period_s}")
        if not self.scope:
            raise RecordError("meter.scope: expected what the meter covers, such as 'board'")
        if self.step is not None and not 0 < self.step < math.inf:
            raise RecordError(f"meter.step: expected more than 0, got {self.step}")


def open_external(told: ExternalMeter, wall: Callable[[], float] = time.time) -> Meter:
    """The meter that a device file names. Raises UnavailableError, OSError or ValueError when it gives no number."""
    counts = told.unit in ENERGIES
    factor = ENERGIES[told.unit] if counts else POWERS[told.unit]
    source = _command(told.command) if told.csv is None else _csv(Path(told.csv), told.period_s, wall)

    def read() -> Taken:
        value, age_s = source()
        # A counter's differences are multiplied by its unit later.
        return Taken((value if counts else value * factor,), age_s)

    read()
    name = Path(told.command[0]).name if told.command else Path(str(told.csv)).name
    return Meter(
        name=NAME,
        method=f"external meter, by {'the output of' if told.command else 'the file'} {name}",
        scope=told.scope,
        channels=(Channel(NAME, step=None if told.step is None else told.step * factor),),
        read=read,
        period_s=told.period_s,
        least_window_s=max(LEAST_READINGS * told.period_s, 1.0),
        plausible_mw=(10.0, 1e7),
        counts=counts,
        unit_mj=factor if counts else 1.0,
        averages=counts,
    )


def _command(command: List[str]) -> Callable[[], Tuple[float, float]]:
    def source() -> Tuple[float, float]:
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=COMMAND_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise ValueError(f"{command[0]} gave no number within {COMMAND_TIMEOUT_S:g} s") from None
        if done.returncode:
            tail = done.stderr[-200:].decode("utf-8", "replace").strip()
            raise ValueError(f"{command[0]} ended with status {done.returncode}: {tail or 'no message'}")
        text = done.stdout[:_OUTPUT_BYTES].decode("utf-8", "replace").strip()
        # The number is of some moment while the command ran: the recording takes the middle.
        return _finite(text, command[0]), 0.0

    return source


def _csv(path: Path, period_s: float, wall: Callable[[], float]) -> Callable[[], Tuple[float, float]]:
    def source() -> Tuple[float, float]:
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - _TAIL_BYTES))
            # What follows the last line's end is still being written.
            lines = stream.read(_TAIL_BYTES).decode("utf-8", "replace").split("\n")[:-1]
        row = lines[-1].split(",") if lines else []
        if len(row) < 2:
            raise ValueError(
                f"{path}: expected a last line 'seconds,number', got {(lines or [''])[-1][:40]!r}"
            )
        at_s, value = _finite(row[0], str(path)), _finite(row[1], str(path))
        age_s = wall() - at_s
        if not -period_s <= age_s <= 5 * period_s:
            raise ValueError(
                f"{path}: its last line is {age_s:.1f} s old: nothing appends to it, or by another clock"
            )
        return value, age_s

    return source


def _finite(text: str, source: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{source}: expected a number, got {text[:40]!r}")
    if value < 0:
        raise ValueError(f"{source}: expected 0 or more, got {text[:40]!r}")
    return value
