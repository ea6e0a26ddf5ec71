"""What a pass ran under, seen before and after it: clocks, temperatures, throttling, other processes, power source.

Everything comes from the kernel's files. What they do not tell is said to be unknown; nothing is taken for quiet
because it could not be looked at.
"""

import os
import time
from dataclasses import dataclass, field
from typing import Callable, Dict, List, Optional, Sequence, Tuple

from toggle_runtime.emulation import emulated
from toggle_runtime.records import PassConditions
from toggle_runtime.throttling import THROTTLING
from toggle_runtime.tree import Tree

MOST_OTHERS = 0.10
"""Share of the cores that others may take: half a core of five moves medians by less than runs differ anyway."""

LEAST_S = 0.5
"""The kernel counts CPU time in hundredths of a second: below this their share is too coarse."""

LATENCY = "latency"
TIMED = ("capacity", "cold", LATENCY, "sustained", "energy")
"""Passes whose numbers another process or a slow clock would change; verdicts and memory stay what they are."""

_CPU = "sys/devices/system/cpu"


@dataclass(frozen=True)
class Snapshot:
    """One moment: texts for people, counters for comparing. `busy_s` is CPU time of everybody on the cores that we may
    use, `own_s` ours with ended children; None where the kernel does not tell. `signs` are counters and states of
    throttling by what they are."""

    at_s: float
    texts: Dict[str, str]
    cores: int
    busy_s: Optional[float]
    own_s: float
    pressure_s: Optional[float]
    signs: Dict[str, int] = field(default_factory=dict)
    unknown: List[str] = field(default_factory=list)


def own_cpu_s() -> float:
    """CPU time of this process and of its children that have ended and were waited for, in seconds."""
    return sum(os.times()[:4])


def snapshot(
    tree: Tree, now: Callable[[], float] = time.monotonic, own: Callable[[], float] = own_cpu_s
) -> Snapshot:
    """Look now. Reads some dozens of files; it is never done while something is timed."""
    unknown: List[str] = []
    reason = emulated(tree)
    if reason is not None:
        unknown.append(reason)
    cores = _affinity(tree)
    busy = None if reason is not None else _busy_s(tree, cores)
    if busy is None and reason is None:
        unknown.append("other processes: /proc/stat does not tell")
    pressure = _pressure_s(tree)
    signs: Dict[str, int] = {}
    for look in THROTTLING:
        signs.update(look(tree))
    if not signs:
        unknown.append("throttling: this kernel shows no counter of it")
    return Snapshot(now(), texts(tree), len(cores), busy, own(), pressure, signs, unknown)


def pass_conditions(name: str, before: Snapshot, after: Snapshot) -> PassConditions:
    """What changed between two snapshots, and whether it spoils what was measured."""
    others, contended = _contended(before, after)
    unknown = list(dict.fromkeys([*before.unknown, *after.unknown]))
    if others is None and before.busy_s is not None:
        unknown.append(f"other processes: the pass was shorter than {LEAST_S:g} s")
    return PassConditions(
        name=name,
        before=before.texts,
        after=after.texts,
        others_share=others,
        contended=contended,
        throttled=_throttled(before.signs, after.signs),
        unknown=unknown,
    )


def disturbances(passes: Sequence[PassConditions], *, strict: bool = False) -> List[str]:
    """Why times or energy are not those of a device of its own at its full speed, empty where nothing was seen.

    `strict`: that other processes could not be looked at during the latency pass counts too. Other passes may be too
    short for it, as an energy pass without a meter is.
    """
    found: List[str] = []
    for each in passes:
        if each.name not in TIMED:
            continue
        for what, why in (("contended", each.contended), ("throttled", each.throttled)):
            if why is not None:
                found.append(f"{each.name} was {what}: {why}")
        if strict and each.name == LATENCY and each.others_share is None:
            found.append(
                f"{each.name}: {'; '.join(each.unknown) or 'other processes could not be looked at'}"
            )
    return found


def _contended(before: Snapshot, after: Snapshot) -> Tuple[Optional[float], Optional[str]]:
    seconds = after.at_s - before.at_s
    if before.busy_s is None or after.busy_s is None or seconds < LEAST_S:
        return None, None
    busy, own = after.busy_s - before.busy_s, after.own_s - before.own_s
    others = max(0.0, busy - own) / (seconds * after.cores)
    if others <= MOST_OTHERS:
        return others, None
    reason = f"other processes took {100 * others:.0f} % of the {after.cores} cores"
    if before.pressure_s is not None and after.pressure_s is not None:
        waited = (after.pressure_s - before.pressure_s) / seconds
        reason += f"; somebody waited for one {100 * waited:.0f} % of the time"
    return others, reason


def _throttled(before: Dict[str, int], after: Dict[str, int]) -> Optional[str]:
    """Counters that rose, and cooling that was on at either end."""
    signs = []
    for name, value in sorted(after.items()):
        earlier = before.get(name, 0)
        if name.startswith("limit "):
            if value < before.get(name, value):
                signs.append(f"{name[6:]} fell from {earlier} to {value}")
        elif name.startswith("state "):
            if max(value, earlier) > 0:
                signs.append(f"{name[6:]} was on (state {earlier}, then {value})")
        elif value > earlier:
            signs.append(f"{name} rose by {value - earlier}")
    return "; ".join(signs) or None


def _affinity(tree: Tree) -> List[int]:
    """The cores that this process, and so its workers, may use."""
    for line in (tree.known("proc/self/status") or "").splitlines():
        key, _, value = line.partition(":")
        if key == "Cpus_allowed_list":
            return _numbers(value.strip())
    return list(range(os.cpu_count() or 1))


def _numbers(text: str) -> List[int]:
    """`0-2,5` as 0, 1, 2, 5."""
    found: List[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            found += range(int(first), int(last or first) + 1)
    return found


def _busy_s(tree: Tree, cores: List[int]) -> Optional[float]:
    """CPU time that the cores did not idle, stolen time of a virtual machine's neighbours included."""
    ticks = 0
    seen = 0
    wanted = {f"cpu{core}" for core in cores}
    for line in (tree.known("proc/stat") or "").splitlines():
        name, *values = line.split()
        if name in wanted and len(values) >= 8 and all(value.isdigit() for value in values[:8]):
            user, nice, system, _idle, _wait, irq, soft, steal = (int(value) for value in values[:8])
            ticks += user + nice + system + irq + soft + steal
            seen += 1
    return ticks / os.sysconf("SC_CLK_TCK") if seen == len(wanted) else None


def _pressure_s(tree: Tree) -> Optional[float]:
    """Seconds in which at least one task waited for a core, since boot. None without pressure stall information."""
    for line in (tree.known("proc/pressure/cpu") or "").splitlines():
        total = line.rpartition("total=")[2]
        if line.startswith("some ") and total.isdigit():
            return int(total) / 1e6
    return None


def texts(tree: Tree) -> Dict[str, str]:
    """What could spoil a measurement, for people; `unavailable: why` for what the kernel does not tell."""
    load = tree.known("proc/loadavg")
    return {
        "governor": _every(tree, "scaling_governor"),
        "frequency_khz": _every(tree, "scaling_cur_freq"),
        "load_average": " ".join(load.split()[:3]) if load else "unavailable: /proc/loadavg",
        "temperature_millicelsius": _hottest(tree),
        "affinity": ",".join(map(str, _affinity(tree))),
        "power_source": _power_source(tree),
    }


def _every(tree: Tree, name: str) -> str:
    """A property of all cores: one text where they agree, as on most boards, else one for each."""
    found = {}
    for path in tree.glob(f"{_CPU}/cpu[0-9]*/cpufreq/{name}"):
        found[path.split("/")[4]] = tree.known(path) or "unreadable"
    if not found:
        return f"unavailable: no /{_CPU}/cpu*/cpufreq/{name}"
    values = set(found.values())
    return values.pop() if len(values) == 1 else " ".join(f"{core}={found[core]}" for core in sorted(found))


def _hottest(tree: Tree) -> str:
    readings = [tree.known(path) or "" for path in tree.glob("sys/class/thermal/thermal_zone*/temp")]
    numbers = [int(each) for each in readings if each.lstrip("-").isdigit()]
    return str(max(numbers)) if numbers else "unavailable: no readable thermal zone"


def _power_source(tree: Tree) -> str:
    told = []
    for folder in tree.glob("sys/class/power_supply/*"):
        kind = tree.known(f"{folder}/type")
        if kind == "Battery":
            told.append(f"battery {tree.known(f'{folder}/status') or 'unreadable'}")
        elif kind is not None and tree.known(f"{folder}/online") == "1":
            told.append(kind)
    return ", ".join(told) or "unavailable: no /sys/class/power_supply"
