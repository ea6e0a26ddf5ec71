"""What a device's facts mean for measuring there: one finding each, with the command that would mend it.

Pure functions of facts. Whatever a device says is quoted or checked before it becomes part of a command.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from toggle_runtime.meters import ON_GPU, nvml

from toggle_edge.errors import FleetError
from toggle_edge.fleet.capabilities import UNAVAILABLE, choose, is_by_runtime, readable_meters
from toggle_edge.fleet.device import Device
from toggle_edge.fleet.environment import PINS, WheelFile, wheel_platform
from toggle_edge.fleet.facts import DeviceFacts
from toggle_edge.fleet.owner import is_gone

OK, LIMITED, BROKEN, UNKNOWN = "OK", "LIMITED", "BROKEN", "UNKNOWN"
"""Fine; a run works, but something is not measured or not steady; no run works; not looked at."""

HERE, THERE = "host", "device"

MIN_FREE_BYTES = 256 << 20
WHEELS_TO_DISK = 5
"""A wheel unpacks to about three times its size and stays beside that; as much again is for a bundle."""

MAX_SKEW_S = 60.0


@dataclass(frozen=True, slots=True)
class Fix:
    """A command, and the machine that it is for: `host` or `device`."""

    where: str
    command: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: its state, what was found, and what would mend it, None where nothing has to or
    no command does."""

    name: str
    state: str
    found: str
    fix: Fix | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """What findings are made of. `wheels` is None with `no_wheels` saying why; `skew_s` are the bounds of the device's
    clock minus ours; `known_keys` are those that this host signs with or believes, hex to name; `own` are the versions
    of the device's own packages, None where it has wheels."""

    device: Device
    facts: DeviceFacts
    wheels: list[WheelFile] | None
    no_wheels: str
    skew_s: tuple[float, float] | None
    known_keys: Mapping[str, str]
    own: Mapping[str, str] | None = None


def wheels(look: Look) -> Finding:
    if look.device.packages:
        folder = look.device.packages
        if look.own is None:
            missing = Fix(THERE, f"ls -d {shlex.quote(folder)}/numpy {shlex.quote(folder)}/onnxruntime")
            return Finding("wheels", BROKEN, look.no_wheels, missing)
        if look.no_wheels:
            return Finding("wheels", BROKEN, look.no_wheels)
        named = " and ".join(f"{name} {version}" for name, version in look.own.items())
        return Finding("wheels", OK, f"the device's own {named} in {folder}")
    if look.wheels is not None:
        size = sum(wheel.size for wheel in look.wheels) / 1e6
        named = " and ".join("-".join(wheel.name.split("-")[:2]) for wheel in look.wheels)
        return Finding("wheels", OK, f"{named}, {size:.0f} MB")
    return Finding("wheels", BROKEN, look.no_wheels, _wheels_fix(look))


def _wheels_fix(look: Look) -> Fix | None:
    try:
        version, machine, minor = wheel_platform(look.facts)
    except FleetError:
        return Fix(THERE, _PROOT) if is_termux(look.device) else None
    pins = " ".join(PINS[version])
    return Fix(
        HERE,
        f"python3 -m pip download --no-deps --only-binary=:all: --python-version {version} "
        f"--platform manylinux_2_{min(minor, 28)}_{machine} --platform manylinux_2_27_{machine} {pins}",
    )


_PROOT = (
    "pkg install proot-distro && proot-distro install debian "
    "&& proot-distro login debian -- apt-get install -y python3 "
    "&& printf '#!%s/bin/sh\\nexec proot-distro login debian -- python3 \"$@\"\\n' $PREFIX > ~/debian-python "
    "&& chmod 755 ~/debian-python # then `python` in the device file is the path of ~/debian-python"
)


def target(look: Look) -> Finding:
    choice = choose(look.facts, own=look.own)
    if not is_by_runtime(look.device.target):
        return Finding("target", OK, f"{look.device.target}, as the device file says")
    if choice.wheels and choice.target != look.device.target:
        return Finding(
            "target",
            LIMITED,
            f"the device file says {look.device.target}, its onnxruntime {choice.wheels['onnxruntime']} is what "
            f"{choice.target} is for; set `target` in the device file",
        )
    return Finding("target", LIMITED if choice.note else OK, choice.note or look.device.target)


def root(look: Look) -> Finding:
    device, facts = look.device, look.facts
    if not facts.root_writable:
        return Finding("root", BROKEN, f"{device.root} cannot be written", _owning(device))
    if not facts.root_executable:
        return Finding(
            "root",
            BROKEN,
            f"{device.root} is mounted noexec: no library can be loaded from there; choose another root",
        )
    if facts.root_foreign:
        shown = ", ".join(facts.root_foreign[:3])[:80]
        return Finding(
            "root", LIMITED, f"{device.root} also holds what is not ours: {shown!r}; `remove` leaves it there"
        )
    return Finding("root", OK, f"{device.root} is ours, can be written and run from")


def disk(look: Look) -> Finding:
    free, device = look.facts.free_disk_bytes, look.device
    needed = MIN_FREE_BYTES
    if look.wheels is not None:
        needed = max(needed, WHEELS_TO_DISK * sum(wheel.size for wheel in look.wheels))
    found = f"{free / 1e9:.2f} GB free, about {needed / 1e9:.2f} GB wanted for a first run"
    biggest = Fix(THERE, f"du -xhd1 {shlex.quote(device.root)} ~ | sort -h | tail")
    return Finding("disk", OK, found) if free >= needed else Finding("disk", BROKEN, found, biggest)


def energy(look: Look) -> Finding:
    device, facts = look.device, look.facts
    if device.meter is not None:
        return Finding("energy", OK, f"the external meter of the device file; scope: {device.meter.scope}")
    readable = [name for name in readable_meters(facts) if name != nvml.NAME or device.target in ON_GPU]
    if readable:
        return Finding("energy", OK, "; ".join(f"{name}: {facts.energy_meters[name]}" for name in readable))
    reasons = {name: told.removeprefix(f"{UNAVAILABLE}: ") for name, told in facts.energy_meters.items()}
    reasons |= {name: "this version has no meter for it" for name in device.meters if name not in reasons}
    told = [f"{name}: {reason}" for name, reason in reasons.items()]
    told += [f"{name} is {state}" for name, state in facts.power_sources.items()]
    fix = None
    if reasons.get("rapl", "").startswith("permission"):
        fix = Fix(THERE, _RAPL)
    elif any("Permission denied" in state for state in facts.power_sources.values()):
        fix = Fix(THERE, f"sudo usermod -aG i2c {shlex.quote(device.user or '$USER')}")
    return Finding("energy", LIMITED, f"{UNAVAILABLE}: {'; '.join(told) or 'the agent has no meter'}", fix)


_RAPL = (
    "g=$(id -gn); for f in /sys/class/powercap/intel-rapl:*/energy_uj; do sudo chgrp $g $f; sudo chmod g+r $f; done "
    "# until the next boot; opens a known side channel to that group"
)


def memory(look: Look) -> Finding:
    told = look.facts.memory_meter
    return Finding("memory", LIMITED if told.startswith(UNAVAILABLE) else OK, told)


def governor(look: Look) -> Finding:
    told = look.facts.conditions.get("governor", f"{UNAVAILABLE}: the agent does not tell")
    if told == "performance":
        return Finding("governor", OK, told)
    if told.startswith(UNAVAILABLE):
        return Finding("governor", LIMITED, told)
    fix = Fix(THERE, "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor")
    found = f"{told[:40]}: clocks follow the load, and times with them"
    return Finding("governor", LIMITED, found, None if is_termux(look.device) else fix)


def lease(look: Look) -> Finding:
    held = look.facts.lease
    if not held:
        return Finding("lease", OK, "free")
    if UNAVAILABLE in held:
        return Finding("lease", LIMITED, f"{UNAVAILABLE}: {held[UNAVAILABLE]}")
    owner, pid = held.get("owner", "somebody"), held.get("pid", "")
    if is_gone(owner):
        return Finding("lease", OK, f"held for {owner}, which has ended: the next run takes it over")
    fix = Fix(THERE, f"kill {pid} # ends that run, ABORTED") if pid.isascii() and pid.isdigit() else None
    found = f"in use by {owner[:80]}, run {held.get('run_id', '?')[:80]}"
    if "expires_in_s" in held:
        found += f", told {held.get('silent_s', '?')[:20]} s ago, expires in {held['expires_in_s'][:20]} s without word"
    return Finding("lease", BROKEN, f"{found}; wait for it", fix)


def clock(look: Look) -> Finding:
    if look.skew_s is None:
        return Finding("clock", LIMITED, f"{UNAVAILABLE}: the agent does not tell its time")
    least, most = look.skew_s
    off = 0.0 if least <= 0 <= most else min(abs(least), abs(most))
    if off <= MAX_SKEW_S:
        return Finding("clock", OK, f"within {max(abs(least), abs(most)):.1f} s of this host's")
    side = "ahead of" if least > 0 else "behind"
    found = f"{off:.0f} s {side} this host's: its records are dated by it"
    return Finding("clock", LIMITED, found, Fix(THERE, "sudo timedatectl set-ntp true"))


def keys(look: Look) -> Finding:
    trusted, revoked = look.facts.trusted_keys, look.facts.revoked_keys
    if not trusted and revoked:
        return Finding(
            "keys",
            BROKEN,
            f"trusts nobody any more, {len(revoked)} revoked: {', '.join(sorted(revoked.values()))[:120]}",
            Fix(HERE, f"toggle-edge device trust {look.device.name}"),
        )
    if not trusted:
        return Finding("keys", OK, "trusts nobody yet: the first bundle's signer will be trusted")
    ours = [name for key, name in trusted.items() if key in look.known_keys]
    if ours:
        return Finding("keys", OK, f"trusts {', '.join(sorted(trusted.values()))[:120]}")
    others = ", ".join(sorted(trusted.values()))[:120]
    return Finding(
        "keys",
        BROKEN,
        f"trusts only {others}, none of whom this host knows",
        Fix(HERE, f"toggle-edge device trust {look.device.name}"),
    )


def deployed(look: Look) -> Finding:
    problem, deployment = look.facts.deployment_problem, look.facts.deployed
    if problem is not None:
        again = Fix(HERE, f"toggle-edge deploy --device {look.device.name} --bundle DIR")
        return Finding("deployed", LIMITED, problem, again)
    if deployment is None:
        return Finding("deployed", OK, "nothing yet")
    before = deployment.previous
    back = f", {before.bundle[:12]} before it" if before is not None else ""
    return Finding("deployed", OK, f"{deployment.active.bundle[:12]}{back}")


LOOKS: Mapping[str, Callable[[Look], Finding]] = {
    look.__name__: look
    for look in (wheels, target, root, disk, memory, energy, governor, lease, clock, keys, deployed)
}
"""What is looked at once the agent has answered, in the order in which it is shown."""


def is_termux(device: Device) -> bool:
    """Whether it is Android's Termux: another prefix, no root, another package manager."""
    return "com.termux" in device.python + device.root


def _owning(device: Device) -> Fix:
    quoted = shlex.quote(device.root)
    return Fix(THERE, f"sudo mkdir -p {quoted} && sudo chown -R $(id -u):$(id -g) {quoted}")
