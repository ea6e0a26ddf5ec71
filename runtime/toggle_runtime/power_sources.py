"""Where a board tells what power it takes, whether or not a meter reads it yet: so that people learn what is there.

Looked for in sysfs by what the kernel's drivers say of themselves; the numbers of hwmon folders change between boots.
"""

from pathlib import Path
from typing import Dict, List, Tuple

SYS = Path("/sys")
READABLE = "readable"

_RAIL_CHIPS = ("ina3221", "ina238")
_CHANNELS = (1, 2, 3)
"""Of an INA3221: further ones are shunt voltages and sums, not rails."""


def power_sources(sys: Path = SYS) -> Dict[str, str]:
    """Rails and batteries by name (`ina3221 VDD_IN`, `battery BAT0`): `readable`, or `unavailable: why`."""
    found: Dict[str, str] = {}
    for name, files in sorted(_rails(sys) + _batteries(sys)):
        found[name] = _state(files)
    return found


def _rails(sys: Path) -> List[Tuple[str, List[Path]]]:
    rails: List[Tuple[str, List[Path]]] = []
    for folder in (sys / "class" / "hwmon").glob("*"):
        chip = _text(folder / "name")
        if chip not in _RAIL_CHIPS:
            continue
        if (folder / "power1_input").exists():
            rails.append((f"{chip} {_text(folder / 'power1_label') or 'VIN'}", [folder / "power1_input"]))
        for channel in _CHANNELS:
            label = _text(folder / f"in{channel}_label")
            # NC: the board has nothing connected there.
            if label and "NC" not in label.split():
                files = [folder / f"in{channel}_input", folder / f"curr{channel}_input"]
                rails.append((f"{chip} {label}", files))
    return rails


def _batteries(sys: Path) -> List[Tuple[str, List[Path]]]:
    folders = (sys / "class" / "power_supply").glob("*")
    return [
        (f"battery {folder.name}", [folder / "voltage_now", folder / "current_now"])
        for folder in folders
        if _text(folder / "type") == "Battery"
    ]


def _state(files: List[Path]) -> str:
    for path in files:
        try:
            path.read_text(encoding="ascii")
        except (OSError, ValueError) as exc:
            return f"unavailable: {path}: {getattr(exc, 'strerror', None) or exc}"
    return READABLE


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
