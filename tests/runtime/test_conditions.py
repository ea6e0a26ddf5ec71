"""Contention and throttling: seen where they are, not where they are not, and unknown where nobody can look."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from toggle_runtime.conditions import disturbances, pass_conditions, snapshot, texts
from toggle_runtime.records import PassConditions
from toggle_runtime.tree import Tree

from toggle_edge.fleet.board_models import orin_nx
from toggle_edge.fleet.boards import PowerCurve, SimulatedClock, SimulatedTree

ROOT = Path(__file__).parents[2]
TICKS = os.sysconf("SC_CLK_TCK")


class Machine:
    """Two cores of a board, of which this process may use `allowed`; `busy` seconds have passed on each."""

    def __init__(self, allowed: str = "0-1", **more: str) -> None:
        self.clock = SimulatedClock()
        self.busy = [100.0, 100.0]
        self.own = 50.0
        self.tree = SimulatedTree(
            {
                **orin_nx(PowerCurve([(1.0, 5.0)], 5.0, 0.0)).tree.files,
                "proc/self/status": f"Cpus_allowed_list:\t{allowed}\n",
                "proc/stat": self.stat,
                "proc/loadavg": "0.10 0.20 0.30 1/100 999",
                **{key.replace("__", "/"): value for key, value in more.items()},
            },
            self.clock,
        )

    def stat(self) -> str:
        lines = [f"cpu{n} {round(self.busy[n] * TICKS)} 0 0 777 0 0 0 0 0 0" for n in (0, 1)]
        return "\n".join(["cpu 1 2 3 4 5 6 7 8", *lines, "intr 1 2 3"])

    def passing(self, change: Callable[[], None] = lambda: None, seconds: float = 10.0) -> PassConditions:
        before = snapshot(self.tree, self.clock.now, lambda: self.own)
        self.clock.sleep(seconds)
        change()
        return pass_conditions("latency", before, snapshot(self.tree, self.clock.now, lambda: self.own))


class TestContention:
    def work(self, machine: Machine, own: float, others: tuple[float, float]) -> Callable[[], None]:
        def change() -> None:
            machine.own += own
            machine.busy[0] += own + others[0]
            machine.busy[1] += others[1]

        return change

    def test_our_own_work_is_not_somebody_elses(self) -> None:
        machine = Machine()
        found = machine.passing(self.work(machine, 10.0, (0.0, 0.0)))
        assert found.contended is None
        assert found.others_share == pytest.approx(0.0, abs=0.01)

    def test_a_busy_process_is_told_with_its_share(self) -> None:
        machine = Machine()
        found = machine.passing(self.work(machine, 10.0, (0.0, 10.0)))
        assert found.others_share == pytest.approx(0.5, abs=0.01)
        assert found.contended == "other processes took 50 % of the 2 cores"

    def test_what_is_busy_elsewhere_does_not_matter(self) -> None:
        machine = Machine(allowed="0")
        assert machine.passing(self.work(machine, 10.0, (0.0, 10.0))).contended is None

    def test_a_little_is_always_there(self) -> None:
        machine = Machine()
        found = machine.passing(self.work(machine, 10.0, (0.5, 0.5)))
        assert (found.contended, found.others_share) == (None, pytest.approx(0.05, abs=0.01))

    def test_a_short_pass_cannot_be_judged(self) -> None:
        found = Machine().passing(seconds=0.1)
        assert (found.others_share, found.contended) == (None, None)
        assert "shorter than 0.5 s" in "; ".join(found.unknown)

    @pytest.mark.parametrize("stat", ["", "cpu0 1 2 3", "cpu0 a b c d e f g h i", "cpu1 1 1 1 1 1 1 1 1 1"])
    def test_what_the_kernel_does_not_tell_is_unknown(self, stat: str) -> None:
        machine = Machine()
        machine.tree.files["proc/stat"] = stat
        found = machine.passing()
        assert found.others_share is None
        assert "other processes: /proc/stat does not tell" in found.unknown

    def test_pressure_is_told_beside_it(self) -> None:
        machine = Machine(proc__pressure__cpu="some avg10=0.0 avg60=0.0 avg300=0.0 total=1000000")

        def change() -> None:
            self.work(machine, 10.0, (0.0, 10.0))()
            machine.tree.files["proc/pressure/cpu"] = "some avg10=0.0 avg60=0.0 avg300=0.0 total=4000000"

        assert "somebody waited for one 30 % of the time" in (machine.passing(change).contended or "")

    def test_a_real_busy_process_on_the_same_core(self) -> None:
        """This machine has other users, so a quiet moment is compared with a busy one, and both may be tried again."""
        code = (
            "import json, sys, time, os\n"
            "sys.path.insert(0, sys.argv[1])\n"
            "from toggle_runtime.conditions import pass_conditions, snapshot\n"
            "from toggle_runtime.tree import Tree\n"
            "before = snapshot(Tree())\n"
            "end = time.monotonic() + 1.5\n"
            "while time.monotonic() < end: pass\n"
            "print(json.dumps(vars(pass_conditions('latency', before, snapshot(Tree())))))\n"
        )
        core = {min(os.sched_getaffinity(0))}

        def measure() -> dict[str, Any]:
            done = subprocess.run(
                [sys.executable, "-I", "-S", "-c", code, str(ROOT / "runtime")],
                capture_output=True,
                check=True,
                timeout=60,
                preexec_fn=lambda: os.sched_setaffinity(0, core),
            )
            return dict(json.loads(done.stdout))

        for _ in range(3):
            alone = measure()
            busy = subprocess.Popen(
                [sys.executable, "-c", "while True: pass"], preexec_fn=lambda: os.sched_setaffinity(0, core)
            )
            try:
                beside = measure()
            finally:
                busy.kill()
                busy.wait()
            if beside["others_share"] >= 0.3 and beside["others_share"] > alone["others_share"]:
                break
        assert beside["others_share"] >= 0.3
        assert beside["others_share"] > alone["others_share"]
        assert "other processes took" in beside["contended"]


class TestThrottling:
    HOT = "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count"
    OVER = "sys/class/hwmon/hwmon9/oc2_event_cnt"
    COOLING = "sys/class/thermal/cooling_device0/cur_state"
    LIMIT = "sys/devices/system/cpu/cpu1/cpufreq/scaling_max_freq"
    FAN = "sys/class/thermal/cooling_device1/cur_state"
    FILES: ClassVar[dict[str, str]] = {
        HOT: "7",
        "sys/class/hwmon/hwmon9/name": "soctherm_oc",
        OVER: "0",
        "sys/class/thermal/cooling_device0/type": "cpufreq-cpu0",
        COOLING: "0",
        "sys/class/thermal/cooling_device1/type": "pwm-fan",
        FAN: "1",
        LIMIT: "1500000",
    }

    def throttled(self, **files: str) -> str | None:
        machine = Machine()
        machine.tree.files.update(self.FILES)
        found = machine.passing(lambda: machine.tree.files.update(files))
        assert not any("throttling" in each for each in found.unknown)
        return found.throttled

    def test_nothing_rose(self) -> None:
        assert self.throttled() is None

    @pytest.mark.parametrize(
        ("path", "value", "said"),
        [
            (HOT, "9", "cpu0 package_throttle_count rose by 2"),
            (OVER, "1", "soctherm oc2_event_cnt rose by 1"),
            (COOLING, "3", "cpufreq-cpu0 (0) was on (state 0, then 3)"),
            (LIMIT, "1200000", "cpu1 scaling_max_freq fell from 1500000 to 1200000"),
        ],
    )
    def test_each_sign_is_told(self, path: str, value: str, said: str) -> None:
        assert self.throttled(**{path: value}) == said

    def test_a_fan_is_no_throttling(self) -> None:
        assert self.throttled(**{self.FAN: "4"}) is None

    def test_a_limit_that_rises_is_none(self) -> None:
        assert self.throttled(**{self.LIMIT: "1800000"}) is None

    def test_without_any_counter_it_is_unknown(self) -> None:
        found = Machine().passing()
        assert found.throttled is None
        assert "throttling: this kernel shows no counter of it" in found.unknown


class TestTexts:
    def test_cores_that_differ_are_told_apart(self) -> None:
        governor = "sys/devices/system/cpu/cpu{}/cpufreq/scaling_governor"
        machine = Machine(**{governor.format(0): "schedutil", governor.format(1): "schedutil"})
        assert texts(machine.tree)["governor"] == "schedutil"
        machine.tree.files[governor.format(1)] = "performance"
        assert texts(machine.tree)["governor"] == "cpu0=schedutil cpu1=performance"

    def test_the_hottest_zone_and_the_power_source(self) -> None:
        machine = Machine(
            sys__class__thermal__thermal_zone0__temp="41000",
            sys__class__thermal__thermal_zone1__temp="62500",
            sys__class__power_supply__AC__type="Mains",
            sys__class__power_supply__AC__online="1",
            sys__class__power_supply__BAT0__type="Battery",
            sys__class__power_supply__BAT0__status="Charging",
        )
        told = texts(machine.tree)
        assert (told["temperature_millicelsius"], told["power_source"]) == (
            "62500",
            "Mains, battery Charging",
        )
        assert told["affinity"] == "0,1"
        assert told["load_average"] == "0.10 0.20 0.30"

    def test_what_is_not_there_says_so(self, tmp_path: Path) -> None:
        told = texts(Tree(tmp_path))
        assert all(told[key].startswith("unavailable: ") for key in told if key != "affinity")


def ran(name: str, **fields: Any) -> PassConditions:
    return PassConditions(name, {}, {}, **{"others_share": 0.0, **fields})


@pytest.mark.parametrize("name", ["capacity", "cold", "latency", "sustained", "energy"])
def test_a_disturbed_pass_is_named_with_the_reason(name: str) -> None:
    assert disturbances([ran(name, contended="others took half")]) == [
        f"{name} was contended: others took half"
    ]
    assert disturbances([ran(name, throttled="too hot")]) == [f"{name} was throttled: too hot"]


@pytest.mark.parametrize("name", ["parity", "verify", "memory"])
def test_what_is_not_timed_is_not_disturbed(name: str) -> None:
    assert disturbances([ran(name, contended="x", throttled="y", others_share=None)], strict=True) == []


def test_what_could_not_be_looked_at_counts_for_the_strict() -> None:
    blind = ran("latency", others_share=None, unknown=["emulated: it is not ours"])
    assert disturbances([blind]) == []
    assert disturbances([blind], strict=True) == ["latency: emulated: it is not ours"]
    silent = ran("latency", others_share=None)
    assert disturbances([silent], strict=True) == ["latency: other processes could not be looked at"]
    short = ran("energy", others_share=None)  # without a meter it is over at once
    assert disturbances([short], strict=True) == []


def test_nothing_seen_is_nothing() -> None:
    assert disturbances([], strict=True) == []
    assert disturbances([ran("latency"), ran("energy")], strict=True) == []
