"""CPU package energy from the kernel's powercap interface (Intel RAPL; current AMD too).

Each zone counts microjoules up to its own range and starts again at zero. `psys` covers the packages and `core`,
`uncore` are parts of one, so they are not summed with them; `intel-rapl-mmio` repeats a package under the same name.
"""

import re
from typing import Dict, Tuple

from toggle_runtime.meters.meter import Channel, Meter, Taken, UnavailableError, denied
from toggle_runtime.tree import Tree

NAME = "rapl"
METHOD = "RAPL energy counters of the CPU packages"

_FIX = (
    "give one group read access to it with a udev rule (this exposes a known side channel to that group); the kernel "
    "lets root only read it"
)
_PACKAGE = re.compile(r"package-\d+")
_DIE = re.compile(r"(package-\d+)-die-\d+")


def open_meter(tree: Tree) -> Meter:
    """All packages together, and `psys` beside them. Raises UnavailableError, OSError or ValueError."""
    zones = _zones(tree)
    names = [name for name in zones if _is_package(name, zones)]
    if not names:
        raise UnavailableError("no /sys/class/powercap/intel-rapl:* package zone on this device")
    names += [name for name in zones if name == "psys"]
    channels, paths = [], []
    for name in names:
        path = f"{zones[name]}/energy_uj"
        wraps_at = tree.integer(f"{zones[name]}/max_energy_range_uj")
        if wraps_at <= 0:
            raise ValueError(f"/{zones[name]}/max_energy_range_uj: expected more than 0, got {wraps_at}")
        # The coarsest unit in use, 2^-14 J: the kernel does not tell this part's own.
        channels.append(Channel(name, counted=name != "psys", step=0.061, wraps_at=float(wraps_at)))
        paths.append(path)

    def read() -> Taken:
        try:
            return Taken(tuple(float(tree.integer(path, again=True)) for path in paths))
        except PermissionError as exc:
            raise denied(paths[0], _FIX) from exc

    return Meter(
        name=NAME,
        method=METHOD,
        scope="package",
        channels=tuple(channels),
        read=read,
        period_s=0.5,
        least_window_s=1.0,
        plausible_mw=(200.0, 2e6),
        counts=True,
        unit_mj=1e-3,
    )


def _zones(tree: Tree) -> Dict[str, str]:
    """Folders by what the zones call themselves. The MSR interface goes before its mmio twin: the first one stays."""
    found: Dict[str, str] = {}
    for folder in sorted(tree.glob("sys/class/powercap/intel-rapl*:*"), key=_mmio_last):
        name = tree.text(f"{folder}/name")
        if name == "psys" or name.startswith("package"):
            found.setdefault(name, folder)
    return found


def _mmio_last(folder: str) -> Tuple[bool, str]:
    return "mmio" in folder, folder


def _is_package(name: str, zones: Dict[str, str]) -> bool:
    die = _DIE.fullmatch(name)
    # Where a package has a zone of its own, its dies are in it.
    return bool(_PACKAGE.fullmatch(name)) or (die is not None and die.group(1) not in zones)
