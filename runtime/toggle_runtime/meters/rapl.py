"""CPU package energy from the kernel's powercap interface (Intel RAPL; current AMD too).

Each package counts microjoules up to its own range and starts again at zero. `psys` covers the packages,
so it is not summed with them; `intel-rapl-mmio` repeats a package under the same name, so it is counted once.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional

METHOD = "RAPL energy counters of the CPU packages"
SCOPE = "package"
SYS = Path("/sys")


@dataclass(frozen=True)
class Zone:
    """One CPU package: the file of its counter, and the value at which it wraps, in microjoules."""

    name: str
    path: Path
    range_uj: int


def zones(root: Path = SYS) -> List[Zone]:
    """The package zones by name. Raises OSError or ValueError when one cannot be understood."""
    found: Dict[str, Zone] = {}
    folders = (root / "class" / "powercap").glob("intel-rapl*:*")
    # The MSR interface goes before its mmio twin, since the first of a name stays.
    for folder in sorted(folders, key=lambda path: ("mmio" in path.name, path.name)):
        name = _text(folder / "name")
        if name.startswith("package") and name not in found:
            range_uj = int(_text(folder / "max_energy_range_uj"))
            found[name] = Zone(name, folder / "energy_uj", range_uj)
    return list(found.values())


def unavailable(root: Path = SYS) -> Optional[str]:
    """None when every package was read just now; otherwise why not, and what would help."""
    try:
        packages = zones(root)
        for zone in packages:
            read_uj(zone)
    except PermissionError as exc:
        return (
            f"permission: {exc.filename} is readable by root only; fix: give one group read access to it "
            "with a udev rule (this exposes a known side channel to that group)"
        )
    except (OSError, ValueError) as exc:
        return f"cannot read RAPL: {exc}"
    return None if packages else "no /sys/class/powercap/intel-rapl:* package zone on this device"


def read_uj(zone: Zone) -> int:
    """The counter now, in microjoules. Raises OSError or ValueError: a failed read is a gap, never zero."""
    return int(_text(zone.path))


def delta_uj(before: int, after: int, range_uj: int) -> int:
    """Microjoules from one reading to the next, over at most one wrap."""
    return after - before if after >= before else range_uj - before + after


class Counter:
    """Millijoules since it was opened, summed over packages. Read it more often than a package can wrap."""

    def __init__(self, root: Path = SYS) -> None:
        self._last = {zone: read_uj(zone) for zone in zones(root)}
        self._total_uj = 0

    def read_mj(self) -> float:
        """Raises OSError or ValueError when a package cannot be read."""
        now = {zone: read_uj(zone) for zone in self._last}
        self._total_uj += sum(delta_uj(self._last[zone], now[zone], zone.range_uj) for zone in now)
        self._last = now
        return self._total_uj / 1000.0


def _text(path: Path) -> str:
    return path.read_text(encoding="ascii").strip()
