"""Meters: one module per physical quantity and source. An energy meter is found by reading it.

An energy meter module offers `METHOD`, `SCOPE`, `unavailable(root) -> reason or None`, and `Counter(root)`
with `read_mj()`. A meter that cannot be read is unavailable with its reason; nothing is ever estimated.
"""

from pathlib import Path
from types import ModuleType
from typing import Dict, List, Optional, Tuple

from toggle_runtime.meters import rapl

ENERGY: Dict[str, ModuleType] = {"rapl": rapl}
"""Energy meters by name, the preferred one first."""


def find_energy(root: Path = rapl.SYS) -> Tuple[Optional[ModuleType], str]:
    """The first energy meter that could be read, and an empty reason; or None, and every meter's reason."""
    reasons: List[str] = []
    for name, meter in ENERGY.items():
        reason = meter.unavailable(root)
        if reason is None:
            return meter, ""
        reasons.append(f"{name}: {reason}")
    return None, "; ".join(reasons)
