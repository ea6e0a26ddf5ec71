"""Power rails of Jetson boards: INA3221 chips, three rails each, a shunt of known resistance in each rail.

Through hwmon (JetPack 5 and later) or iio (JetPack 4). Which rails make up the module differs between modules, so a map
says it for each, by what the device tree says of the board and by the labels that are there; an unknown board has no
total, and nothing is guessed from a rail's name.
"""

from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple

from toggle_runtime.meters.meter import Channel, Meter, Taken, UnavailableError, denied
from toggle_runtime.tree import Tree

NAME = "ina3221"
METHOD = "INA3221 rails, voltage times current, trapezoids over the readings' times"

FASTEST_S = 0.02
WINDOW_S = 10.0

_CHANNELS = (1, 2, 3)
"""Further ones are shunt voltages and sums, not rails."""

_SHUNT_STEP_UV = 40.0
_VOLTS_MV = (1000.0, 60000.0)
_HWMON = ("sys/bus/i2c/drivers/ina3221*/*/hwmon/hwmon*", "sys/class/hwmon/hwmon*")
_IIO = ("sys/bus/i2c/drivers/ina3221*/*/iio:device*", "sys/bus/iio/devices/iio:device*")


@dataclass(frozen=True)
class Module:
    """A Jetson module: the part in its device tree, its rails, and which of them are all that it takes."""

    part: str
    name: str
    total: Tuple[str, ...]
    rails: Tuple[str, ...]


MODULES = (
    Module("p3767", "Orin NX/Nano", ("VDD_IN",), ("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC")),
    # Its second chip's VDDQ_VDD2_1V8AO is fed from these: adding it would count it twice.
    Module(
        "p3701",
        "AGX Orin",
        ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
        ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    ),
    Module("p3668", "Xavier NX", ("VDD_IN",), ("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC")),
    Module("p3448", "Nano", ("POM_5V_IN",), ("POM_5V_IN", "POM_5V_GPU", "POM_5V_CPU")),
)


@dataclass(frozen=True)
class Rail:
    """One rail: the files of its voltage (mV) and current (mA), and of its shunt (µΩ) where the kernel tells."""

    label: str
    volts: str
    amperes: str
    shunt: Optional[str] = None


def open_meter(tree: Tree) -> Meter:
    """All rails that are connected, and the module's sum. Raises UnavailableError, OSError or ValueError."""
    rails = _rails(tree)
    if not rails:
        raise UnavailableError("no ina3221 below /sys/class/hwmon or /sys/bus/iio on this device")
    module = _module_of(tree.compatible(), list(rails))
    chosen = [rails[label] for label in sorted(rails)]
    first = _read(tree, chosen)
    channels = []
    for rail, (volts, _) in zip(chosen, first):
        shunt = tree.known(rail.shunt) if rail.shunt else None
        ampere_step = _SHUNT_STEP_UV * 1000 / int(shunt) if shunt and shunt.isdigit() and int(shunt) else None
        step = None if ampere_step is None else ampere_step * volts / 1000
        channels.append(Channel(rail.label, counted=rail.label in module.total, step=step))
    update_s = _update_s(tree, chosen)

    def read() -> Taken:
        return Taken(tuple(volts * amperes / 1000 for volts, amperes in _read(tree, chosen)))

    return Meter(
        name=NAME,
        method=METHOD,
        scope=f"module ({' + '.join(module.total)})",
        channels=tuple(channels),
        read=read,
        period_s=max(FASTEST_S, update_s),
        least_window_s=WINDOW_S,
        plausible_mw=(500.0, 300e3),
        averages=update_s >= FASTEST_S,
    )


def _rails(tree: Tree) -> Dict[str, Rail]:
    found: Dict[str, Rail] = {}
    for pattern in _HWMON:
        for folder in tree.glob(pattern):
            if tree.known(f"{folder}/name") != NAME:
                continue
            for n in _CHANNELS:
                files = [f"{folder}/in{n}_input", f"{folder}/curr{n}_input", f"{folder}/shunt{n}_resistor"]
                _add(found, tree.known(f"{folder}/in{n}_label"), files)
    for pattern in _IIO:
        for folder in tree.glob(pattern):
            for n in _CHANNELS:
                number = n - 1
                files = [f"{folder}/in_voltage{number}_input", f"{folder}/in_current{number}_input"]
                _add(found, tree.known(f"{folder}/rail_name_{number}"), files)
    return found


def _add(found: Dict[str, Rail], label: Optional[str], files: Sequence[str]) -> None:
    # NC: the board has nothing connected there. A chip is found by its driver and by its class: the first one stays.
    if label and "NC" not in label.split():
        found.setdefault(label, Rail(label, *files))


def _module_of(compatible: Sequence[str], labels: List[str]) -> Module:
    parts = " ".join(compatible)
    module = next((each for each in MODULES if each.part in parts), None)
    seen = ", ".join(sorted(labels))
    if module is None:
        board = compatible[0] if compatible else "a board without device tree"
        raise UnavailableError(f"which of the rails {seen} make up {board} is not known")
    missing = [label for label in module.rails if label not in labels]
    if missing:
        raise UnavailableError(f"{module.name} lacks the rail {', '.join(missing)}; there are {seen}")
    return module


def _read(tree: Tree, rails: Sequence[Rail]) -> List[Tuple[float, float]]:
    """Millivolts and milliamperes of each rail. A supply gives neither less than nothing nor an unknown voltage."""
    read = []
    for rail in rails:
        try:
            volts = float(tree.integer(rail.volts, again=True))
            amperes = float(tree.integer(rail.amperes, again=True))
        except PermissionError as exc:
            raise denied(rail.amperes, "sudo usermod -aG i2c $USER, then log in again") from exc
        if amperes < 0:
            raise ValueError(f"{rail.label}: expected a current of 0 mA or more, got {amperes:.0f}")
        low, high = _VOLTS_MV
        # A rail that is switched off stands near zero, and takes nothing.
        if volts > high or (volts < low and amperes * volts > low * 100):
            raise ValueError(f"{rail.label}: expected {low:.0f} to {high:.0f} mV, got {volts:.0f}")
        read.append((volts, amperes))
    return read


def _update_s(tree: Tree, rails: Sequence[Rail]) -> float:
    """How long the chip takes for a reading, over which it averages; 0 where the kernel does not tell."""
    folder = rails[0].volts.rpartition("/")[0]
    text = tree.known(f"{folder}/update_interval")
    return int(text) / 1000 if text and text.isdigit() else 0.0
