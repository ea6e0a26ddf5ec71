"""A battery's discharge, from `/sys/class/power_supply`.

Makers disagree with the kernel's documentation about sign and unit of the current, so both are taken from the charge
that the battery lost meanwhile, and only while it discharges from the first reading to the last.
"""

from dataclasses import dataclass
from typing import List, Optional, Sequence, Tuple

from toggle_runtime.meters.meter import Channel, Meter, Reading, Taken, UnavailableError, denied
from toggle_runtime.tree import Tree

NAME = "battery"
METHOD = "battery voltage times current, sign and unit by the charge lost meanwhile"

WINDOW_S = 300.0
PERIOD_S = 1.0
MOST_APART = 0.30
"""What is integrated and what was lost may differ by this share: charge is shown coarsely."""

LEAST_STEPS = 4
"""So often the charge has to change for that: a change by one step may be of any energy up to it."""

_HOURS_MJ = 3600.0
"""A milliwatt-hour in millijoules."""


@dataclass(frozen=True)
class Cell:
    """The files of one battery. `power` where it shows power (µW); else current (µA). `left` is the charge (µAh), or
    the energy (µWh) where `left_is_energy`."""

    folder: str
    power: Optional[str]
    left: str
    left_is_energy: bool


def open_meter(tree: Tree) -> Meter:
    """The only battery. Raises UnavailableError, OSError or ValueError."""
    folders = [
        each for each in tree.glob("sys/class/power_supply/*") if tree.known(f"{each}/type") == "Battery"
    ]
    # A mouse's battery is one too; the system's say nothing of a scope, or that they are the system's.
    folders = [each for each in folders if tree.known(f"{each}/scope") in (None, "System")]
    if not folders:
        raise UnavailableError("no battery below /sys/class/power_supply on this device")
    if len(folders) > 1:
        raise UnavailableError(f"{len(folders)} batteries: which of them is used changes while it runs")
    cell = _cell(tree, folders[0])

    def read() -> Taken:
        try:
            return Taken(_values(tree, cell))
        except PermissionError as exc:
            raise denied(
                f"{cell.folder}/status", "read it with other rights, or use an external meter"
            ) from exc

    return Meter(
        name=NAME,
        method=METHOD,
        scope="battery",
        channels=(Channel(cell.folder.rpartition("/")[2]),),
        read=read,
        period_s=PERIOD_S,
        least_window_s=WINDOW_S,
        plausible_mw=(200.0, 200e3),
        calibrated=calibrated,
    )


def calibrated(readings: Sequence[Reading]) -> List[Reading]:
    """From raw power (mW as documented), what is left, and the millijoules of one unit of that, to power with the right
    sign and unit.

    Raises UnavailableError where the charge did not fall far enough to tell, or contradicts the current.
    """
    if len(readings) < 2:
        raise UnavailableError("uncalibrated: too few readings")
    raw = sum(
        (before.values[0] + after.values[0]) / 2 * (after.at_s - before.at_s)
        for before, after in zip(readings, readings[1:])
    )
    left = [each.values[1] for each in readings]
    # The voltage follows the load: only the mean of it belongs to the whole fall.
    unit_mj = sum(each.values[2] for each in readings) / len(readings)
    fallen, seconds = (left[0] - left[-1]) * unit_mj, readings[-1].at_s - readings[0].at_s
    steps = sum(1 for before, after in zip(left, left[1:]) if after < before)
    if steps < LEAST_STEPS:
        longer = seconds * (LEAST_STEPS + 1) / max(steps, 1)
        raise UnavailableError(
            f"uncalibrated: the charge fell {steps} times in {seconds:.0f} s, {LEAST_STEPS} are needed to check the "
            f"current and its unit; needs at least {longer:.0f} s"
        )
    if not _same_sign(readings):
        raise UnavailableError("uncalibrated: the current changed its sign while the battery discharged")
    factor = _factor(abs(raw), fallen) * (-1 if raw < 0 else 1)
    return [Reading(each.at_s, (each.values[0] * factor,)) for each in readings]


def _factor(raw_mj: float, fallen_mj: float) -> float:
    for factor in (1.0, 1000.0):  # documented in µA; some show mA
        if abs(raw_mj * factor - fallen_mj) <= MOST_APART * fallen_mj:
            return factor
    raise UnavailableError(
        f"uncalibrated: current and voltage say {raw_mj / 1000:.4g} J, the charge fell by {fallen_mj / 1000:.4g} J"
    )


def _same_sign(readings: Sequence[Reading]) -> bool:
    powers = [each.values[0] for each in readings]
    return all(power >= 0 for power in powers) or all(power <= 0 for power in powers)


def _cell(tree: Tree, folder: str) -> Cell:
    power = f"{folder}/power_now"
    for name, is_energy in (("energy_now", True), ("charge_now", False), ("charge_counter", False)):
        if tree.known(f"{folder}/{name}") is not None:
            shown = power if tree.known(power) is not None else None
            return Cell(folder, shown, f"{folder}/{name}", is_energy)
    raise UnavailableError(f"uncalibrated: {folder.rpartition('/')[2]} does not tell what charge is left")


def _values(tree: Tree, cell: Cell) -> Tuple[float, float, float]:
    status = tree.reread(f"{cell.folder}/status")
    if status != "Discharging":
        raise UnavailableError(f"the battery's status is {status!r}: it is measured only while it discharges")
    volts_uv = tree.integer(f"{cell.folder}/voltage_now", again=True)
    if not 1e6 <= volts_uv <= 1e8:
        raise ValueError(f"/{cell.folder}/voltage_now: expected 1 to 100 V in microvolts, got {volts_uv}")
    if cell.power is not None:
        power_mw = tree.integer(cell.power, again=True) / 1000
    else:
        power_mw = tree.integer(f"{cell.folder}/current_now", again=True) * volts_uv / 1e9
    unit_mwh = 1e-3 if cell.left_is_energy else volts_uv / 1e9
    return power_mw, float(tree.integer(cell.left, again=True)), unit_mwh * _HOURS_MJ
