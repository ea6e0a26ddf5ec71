"""The boards that are simulated, built from what the kernel documents of their sensors: units, resolutions, wraps.

Each is a function of a power curve. The curve is what the board takes; how it is divided among rails is fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from toggle_edge.fleet.boards import PowerCurve, SimulatedBoard, SimulatedClock, SimulatedTree, Source

SHUNT_STEP_UV, BUS_STEP_MV = 40.0, 8.0
RAPL_STEP_UJ = 61.035

_INA = "sys/bus/i2c/drivers/ina3221"


@dataclass(frozen=True)
class SimulatedRail:
    """A rail of an INA3221: its share of the board's power, millivolts, and the shunt in micro-ohms."""

    label: str
    share: float
    millivolts: float
    shunt: int


ORIN_NX = ("nvidia,p3768-0000+p3767-0000", "nvidia,p3767-0000", "nvidia,tegra234")
AGX_ORIN = ("nvidia,p3737-0000+p3701-0000", "nvidia,p3701-0000", "nvidia,tegra234")
THOR = ("nvidia,p3971-0000+p3834-0008", "nvidia,tegra264")
NANO = ("nvidia,p3450-0000", "nvidia,p3448-0000", "nvidia,tegra210")


def orin_nx(curve: PowerCurve) -> SimulatedBoard:
    """VDD_IN is the module; the two others are parts of it."""
    rails = (
        SimulatedRail("VDD_IN", 1.0, 5000.0, 5000),
        SimulatedRail("VDD_CPU_GPU_CV", 0.55, 5000.0, 5000),
        SimulatedRail("VDD_SOC", 0.2, 5000.0, 5000),
    )
    return _board(
        "orin-nx", curve, lambda board: {**_tegra(ORIN_NX), **_ina3221(board, "1-0040/hwmon/hwmon3", rails)}
    )


def agx_orin(curve: PowerCurve) -> SimulatedBoard:
    """Three rails make up the module; a second chip's fourth one is fed by them."""
    first = (
        SimulatedRail("VDD_GPU_SOC", 0.5, 12000.0, 2000),
        SimulatedRail("VDD_CPU_CV", 0.3, 12000.0, 2000),
        SimulatedRail("VIN_SYS_5V0", 0.2, 5000.0, 2000),
    )
    second = (
        SimulatedRail("NC", 0.0, 0.0, 2000),
        SimulatedRail("VDDQ_VDD2_1V8AO", 0.1, 5000.0, 2000),
        SimulatedRail("NC", 0.0, 0.0, 2000),
    )
    return _board(
        "agx-orin",
        curve,
        lambda board: {
            **_tegra(AGX_ORIN),
            **_ina3221(board, "1-0040/hwmon/hwmon3", first),
            **_ina3221(board, "1-0041/hwmon/hwmon4", second),
        },
    )


def nano_jetpack4(curve: PowerCurve) -> SimulatedBoard:
    """The same kind of chip through iio, as JetPack 4 has it."""
    rails = (
        SimulatedRail("POM_5V_IN", 1.0, 5000.0, 5000),
        SimulatedRail("POM_5V_GPU", 0.2, 5000.0, 5000),
        SimulatedRail("POM_5V_CPU", 0.4, 5000.0, 5000),
    )
    return _board("nano-jetpack4", curve, lambda board: {**_tegra(NANO), **_iio(board, rails)})


def thor(curve: PowerCurve) -> SimulatedBoard:
    """One INA238 that computes power, in microwatts."""

    def files(board: _Sensors) -> dict[str, Source]:
        folder = "sys/class/hwmon/hwmon2"
        return {
            **_tegra(THOR),
            f"{folder}/name": "ina238",
            f"{folder}/in1_label": "VIN",
            f"{folder}/in1_input": "20000",
            f"{folder}/curr1_input": lambda: str(round(board.watts(0.05) / 20.0 * 1000)),
            f"{folder}/power1_input": lambda: str(round(board.watts(0.05) / 0.025) * 25000),
            f"{folder}/update_interval": "50",
        }

    return _board("thor", curve, files)


def laptop(curve: PowerCurve, range_uj: int = 262_143_328_850, left: float = 0.3) -> SimulatedBoard:
    """Two packages, their sub-zones, psys, the mmio twin of one, and a battery on mains. `range_uj` is where the
    packages wrap, `left` the share of it that is left before the first one does."""

    def files(board: _Sensors) -> dict[str, Source]:
        start = round(range_uj * (1 - left))

        def zone(
            number: str, name: str, share: float, begin: int = 0, wraps: int = range_uj
        ) -> dict[str, Source]:
            folder = f"sys/class/powercap/intel-rapl{number}"
            counter = lambda: str((begin + board.counted_uj(share)) % wraps)  # noqa: E731
            return {
                f"{folder}/name": name,
                f"{folder}/max_energy_range_uj": str(wraps),
                f"{folder}/energy_uj": counter,
            }

        return {
            **zone(":0", "package-0", 0.6, start),
            **zone(":0:0", "core", 0.3),
            **zone(":0:1", "dram", 0.1),
            **zone(":1", "package-1", 0.4, start // 2),
            **zone(":2", "psys", 1.5),
            **zone("-mmio:0", "package-0", 0.6, start // 3),
            **_cell(board, "sys/class/power_supply/BAT0", "Charging", watts=True),
        }

    return _board("laptop", curve, files)


def laptop_on_battery(curve: PowerCurve) -> SimulatedBoard:
    """No RAPL that this kernel would show; the battery tells power and energy, as laptops do."""
    return _board(
        "laptop-on-battery",
        curve,
        lambda board: _cell(board, "sys/class/power_supply/BAT0", "Discharging", watts=True),
    )


def phone(curve: PowerCurve, sign: int = 1, unit: float = 1.0) -> SimulatedBoard:
    """A battery that shows its discharge with `sign`, and the current in `unit` of a microampere: the kernel documents
    -1 and 1, makers do otherwise."""
    return _board(
        "phone",
        curve,
        lambda board: _cell(
            board, "sys/class/power_supply/battery", "Discharging", watts=False, sign=sign, unit=unit
        ),
    )


BOARDS: Mapping[str, Callable[[PowerCurve], SimulatedBoard]] = {
    "orin-nx": orin_nx,
    "agx-orin": agx_orin,
    "nano-jetpack4": nano_jetpack4,
    "thor": thor,
    "laptop": laptop,
    "laptop-on-battery": laptop_on_battery,
    "phone": phone,
}


@dataclass(frozen=True)
class _Sensors:
    """What a sensor sees of the curve."""

    curve: PowerCurve
    clock: SimulatedClock

    def watts(self, update_s: float) -> float:
        """The mean of the last completed conversion: sensors average over their conversion time."""
        end_s = self.clock.now_s // update_s * update_s
        return self.curve.joules(end_s - update_s, end_s) / update_s

    def counted_uj(self, share: float) -> int:
        """A counter since the clock's beginning, in whole steps, renewed every millisecond."""
        moment_s = self.clock.now_s // 1e-3 * 1e-3
        steps = int(self.curve.joules(0.0, moment_s) * share * 1e6 / RAPL_STEP_UJ)
        return int(steps * RAPL_STEP_UJ)


def _board(name: str, curve: PowerCurve, files: Callable[[_Sensors], Mapping[str, Source]]) -> SimulatedBoard:
    clock = SimulatedClock()
    return SimulatedBoard(name, SimulatedTree(files(_Sensors(curve, clock)), clock), clock, curve)


def _tegra(compatible: tuple[str, ...]) -> dict[str, Source]:
    return {"proc/device-tree/compatible": "\0".join(compatible) + "\0"}


def _amperes_mv(board: _Sensors, rail: SimulatedRail, update_s: float) -> tuple[float, float]:
    """Millivolts and milliamperes as the registers hold them: in whole steps of the shunt's and the bus's voltage."""
    millivolts = round(rail.millivolts / BUS_STEP_MV) * BUS_STEP_MV
    amperes = board.watts(update_s) * rail.share / (rail.millivolts / 1000)
    shunt_uv = round(amperes * rail.shunt / SHUNT_STEP_UV) * SHUNT_STEP_UV
    return millivolts, shunt_uv / rail.shunt * 1000


def _ina3221(board: _Sensors, place: str, rails: tuple[SimulatedRail, ...]) -> dict[str, Source]:
    folder = f"{_INA}/{place}"
    files: dict[str, Source] = {f"{folder}/name": "ina3221", f"{folder}/update_interval": "50"}
    for n, rail in enumerate(rails, 1):
        files[f"{folder}/in{n}_label"] = rail.label
        files[f"{folder}/shunt{n}_resistor"] = str(rail.shunt)
        if rail.millivolts:
            files[f"{folder}/in{n}_input"] = _shown(board, rail, 0)
            files[f"{folder}/curr{n}_input"] = _shown(board, rail, 1)
    # Not rails, though they look like some: shunt voltages and their sum.
    return {**files, f"{folder}/in4_input": "12345", f"{folder}/in7_label": "sum of shunt voltages"}


def _iio(board: _Sensors, rails: tuple[SimulatedRail, ...]) -> dict[str, Source]:
    folder = f"{_INA}x/6-0040/iio:device0"
    files: dict[str, Source] = {}
    for n, rail in enumerate(rails):
        files[f"{folder}/rail_name_{n}"] = rail.label
        files[f"{folder}/in_voltage{n}_input"] = _shown(board, rail, 0)
        files[f"{folder}/in_current{n}_input"] = _shown(board, rail, 1)
    return files


def _shown(board: _Sensors, rail: SimulatedRail, which: int) -> Source:
    return lambda: str(round(_amperes_mv(board, rail, 0.05)[which]))


def _cell(
    board: _Sensors, folder: str, status: str, *, watts: bool, sign: int = -1, unit: float = 1.0
) -> dict[str, Source]:
    """A cell whose voltage sags with the load; charge in steps of 1 mAh, or energy in steps of 10 mWh."""

    def volts() -> float:
        return 3.85 - 0.02 * board.watts(1.0)

    def spent_mwh() -> float:
        return board.curve.joules(0.0, board.clock.now_s) / 3.6

    files: dict[str, Source] = {f"{folder}/type": "Battery", f"{folder}/status": status}
    if watts:
        return {
            **files,
            f"{folder}/voltage_now": "11400000",
            f"{folder}/power_now": lambda: str(round(board.watts(1.0) * 1e6)),
            f"{folder}/energy_now": lambda: str(int((50_000 - spent_mwh()) / 10) * 10_000),
        }
    return {
        **files,
        f"{folder}/voltage_now": lambda: str(round(volts() * 1e6)),
        f"{folder}/current_now": lambda: str(round(sign * board.watts(1.0) / volts() * 1e6 * unit)),
        f"{folder}/charge_counter": lambda: str(int(4000 - spent_mwh() / 3.8) * 1000),
    }
