"""Meters: one module per physical quantity and source. An energy meter is chosen by reading it.

A module of an energy meter offers `NAME`, `METHOD` and `open_meter(tree)`, which raises `UnavailableError`, OSError or
ValueError where it cannot be read. A new one is a line in `ENERGY`.
"""

import math
from types import ModuleType
from typing import Callable, Dict, List, Optional, Tuple, Union

from toggle_runtime.emulation import emulated
from toggle_runtime.meters import battery, ina238, ina3221, nvml, rapl
from toggle_runtime.meters.external import NAME as EXTERNAL
from toggle_runtime.meters.external import ExternalMeter, open_external
from toggle_runtime.meters.meter import Meter, UnavailableError
from toggle_runtime.tree import Tree

ENERGY: Dict[str, ModuleType] = {each.NAME: each for each in (ina3221, ina238, rapl, battery, nvml)}
"""Energy meters by name, the preferred one first: what covers more of the device, and is read more often."""

ON_GPU = frozenset({"onnx-cuda"})
"""Targets whose work a GPU does: for others its energy says nothing, for these it says most."""


def open_energy(
    tree: Tree, target: str, external: Optional[ExternalMeter] = None, window_s: float = math.inf
) -> Tuple[Optional[Meter], str]:
    """The meter for runs of a target, opened, and an empty reason; or None, and every meter's reason: one of them is
    that it needs a longer window than `window_s`."""
    if external is not None:
        # Somebody has wired it up and said so: another meter in its place would be of another scope.
        found = _long_enough(_opened(lambda: open_external(external)), window_s)
        return (found, "") if isinstance(found, Meter) else (None, f"{EXTERNAL}: {found}")
    reason = emulated(tree)
    if reason is not None:
        return None, reason
    reasons: List[str] = []
    for name in sorted(ENERGY, key=lambda each: (each == nvml.NAME) != (target in ON_GPU)):
        if name == nvml.NAME and target not in ON_GPU:
            reasons.append(f"{name}: the target {target} does not compute on the GPU")
            continue
        found = _long_enough(open_named(name, tree), window_s)
        if isinstance(found, Meter):
            return found, ""
        reasons.append(f"{name}: {found}")
    return None, "; ".join(reasons)


def open_named(name: str, tree: Tree) -> Union[Meter, str]:
    """One meter of `ENERGY`, opened and read once; or why that cannot be done."""
    return _opened(lambda: ENERGY[name].open_meter(tree))


def told(tree: Tree) -> Dict[str, str]:
    """What each meter would measure here, by name: its method and scope, or `unavailable: why`."""
    said = {}
    reason = emulated(tree)
    for name in ENERGY:
        found = reason or open_named(name, tree)
        said[name] = (
            f"{found.method}; scope: {found.scope}" if isinstance(found, Meter) else f"unavailable: {found}"
        )
    return said


def _long_enough(found: Union[Meter, str], window_s: float) -> Union[Meter, str]:
    if isinstance(found, Meter) and window_s < found.least_window_s:
        return f"needs a window of at least {found.least_window_s:g} s, this one has {window_s:g} s"
    return found


def _opened(opening: Callable[[], Meter]) -> Union[Meter, str]:
    try:
        meter = opening()
        meter.read()
        return meter
    except (UnavailableError, ValueError) as exc:
        return str(exc)
    except OSError as exc:
        return f"{exc.filename}: {exc.strerror}" if exc.filename else str(exc)
