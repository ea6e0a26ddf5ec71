"""Signs that a processor was slowed down, by where the kernel shows them. A new one is a function in `THROTTLING`.

Names that begin with `state ` are conditions (above 0: on), with `limit ` allowed frequencies (falling: slowed down),
all others are counters of events.
"""

import re
from typing import Callable, Dict, Optional, Tuple

from toggle_runtime.tree import Tree

_CPU = "sys/devices/system/cpu"
_PROCESSOR = re.compile("processor|cpu|gpu|devfreq", re.IGNORECASE)


def heat_counters(tree: Tree) -> Dict[str, int]:
    """x86: how often a core or its package became too hot since boot."""
    found = {}
    for path in tree.glob(f"{_CPU}/cpu[0-9]*/thermal_throttle/*_throttle_count"):
        value = _integer(tree, path)
        if value is not None:
            parts = path.split("/")
            found[f"{parts[4]} {parts[-1]}"] = value
    return found


def over_current(tree: Tree) -> Dict[str, int]:
    """Jetson: events of too little voltage or too much current, which slow it down even when it is cool."""
    found = {}
    for folder in tree.glob("sys/class/hwmon/hwmon*"):
        if tree.known(f"{folder}/name") != "soctherm_oc":
            continue
        for path in tree.glob(f"{folder}/oc*_event_cnt"):
            value = _integer(tree, path)
            if value is not None:
                found[f"soctherm {path.rpartition('/')[2]}"] = value
    return found


def cooling(tree: Tree) -> Dict[str, int]:
    """Processors and GPUs as cooling devices: they cool by being slow. Fans, screens and radios are none of these."""
    found = {}
    for folder in tree.glob("sys/class/thermal/cooling_device*"):
        kind, value = tree.known(f"{folder}/type") or "", _integer(tree, f"{folder}/cur_state")
        if value is not None and _PROCESSOR.search(kind):
            found[f"state {kind} ({folder.rpartition('cooling_device')[2]})"] = value
    return found


def allowed_frequencies(tree: Tree) -> Dict[str, int]:
    """The highest frequency that each core may have: it falls where heat or power takes some of it away."""
    found = {}
    for path in tree.glob(f"{_CPU}/cpu[0-9]*/cpufreq/scaling_max_freq"):
        value = _integer(tree, path)
        if value is not None:
            found[f"limit {path.split('/')[4]} scaling_max_freq"] = value
    return found


THROTTLING: Tuple[Callable[[Tree], Dict[str, int]], ...] = (
    heat_counters,
    over_current,
    cooling,
    allowed_frequencies,
)


def _integer(tree: Tree, path: str) -> Optional[int]:
    try:
        return tree.integer(path)
    except (OSError, ValueError):
        return None
