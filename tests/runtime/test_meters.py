"""Energy meters on simulated boards whose joules we know from the curve alone."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toggle_runtime import meters
from toggle_runtime.codec import RecordError
from toggle_runtime.energy import Spans, energy_sample
from toggle_runtime.meters import nvml
from toggle_runtime.meters.external import ExternalMeter, open_external
from toggle_runtime.meters.integration import wrapped_difference
from toggle_runtime.meters.meter import Channel, Meter, Taken, UnavailableError
from toggle_runtime.meters.sampling import Recording, Sampler
from toggle_runtime.records import EnergySample
from toggle_runtime.tree import Tree

from toggle_edge.fleet.board_models import BOARDS, laptop, phone
from toggle_edge.fleet.boards import (
    Fault,
    PowerCurve,
    SimulatedBoard,
    broken,
    frozen,
    garbled,
    missing,
    refused,
    saying,
    scaled,
)

START_S = 1040.0
IDLE_S = 30.0
WATTS = {
    "orin-nx": (5.0, 8.0, 15.0),
    "agx-orin": (12.0, 20.0, 40.0),
    "nano-jetpack4": (2.0, 4.0, 9.0),
    "thor": (20.0, 40.0, 90.0),
    "laptop": (6.0, 15.0, 45.0),
    "laptop-on-battery": (5.0, 9.0, 20.0),
    "phone": (0.8, 1.5, 4.0),
}
"""Idle, low and high of each board."""


def pieces(kind: str, low: float, high: float, seconds: float) -> list[tuple[float, float]]:
    if kind == "constant":
        return [(seconds, high)]
    if kind == "stepped":
        return [(seconds / 4, watts) for watts in (low, high, (low + high) / 2, high)]
    return [(0.13, high), (0.27, low)] * round(seconds / 0.4)


def board(
    name: str,
    kind: str = "constant",
    seconds: float | None = None,
    make: Callable[[PowerCurve], SimulatedBoard] | None = None,
) -> SimulatedBoard:
    idle, low, high = WATTS[name]
    seconds = seconds or (320.0 if name in ("phone", "laptop-on-battery") else 12.0)
    return (make or BOARDS[name])(PowerCurve(pieces(kind, low, high, seconds), idle, START_S))


def right(simulated: SimulatedBoard, sample: EnergySample) -> bool:
    """Within 2 % of the curve, gross and idle."""
    if sample.gross_mj is None or sample.idle_mw is None:
        return False
    gross = abs(sample.gross_mj / 1000 - simulated.joules(sample)) <= 0.02 * simulated.joules(sample)
    return gross and abs(sample.idle_mw / 1000 - simulated.curve.idle_w) <= 0.02 * simulated.curve.idle_w


class TestKnownPower:
    @pytest.mark.parametrize("kind", ["constant", "stepped", "bursty"])
    @pytest.mark.parametrize("name", BOARDS)
    def test_joules_are_the_curves_within_two_percent(self, name: str, kind: str) -> None:
        simulated = board(name, kind)
        sample = simulated.measure(IDLE_S)
        assert right(simulated, sample), sample
        assert sample.flags == []

    @pytest.mark.parametrize("kind", ["constant", "stepped", "bursty"])
    @pytest.mark.parametrize("range_j", [2_000, 10_000, 262_143])
    def test_counters_may_wrap(self, kind: str, range_j: int) -> None:
        """With 2 kJ, the package that takes 27 W of 45 W wraps every 74 s: 8 times in ten minutes."""

        def make(curve: PowerCurve) -> SimulatedBoard:
            return laptop(curve, range_uj=range_j * 1_000_000, left=0.001)

        simulated = board("laptop", kind, 600.0, make)
        assert right(simulated, simulated.measure(IDLE_S))

    @pytest.mark.parametrize(("sign", "unit"), [(-1, 1.0), (1, 1.0), (-1, 1e-3), (1, 1e-3)])
    def test_a_battery_may_mean_what_it_likes(self, sign: int, unit: float) -> None:
        simulated = board("phone", "stepped", make=lambda curve: phone(curve, sign, unit))
        assert right(simulated, simulated.measure(IDLE_S))

    def test_the_scope_names_what_is_in_the_sum_and_every_rail_is_told(self) -> None:
        simulated = board("agx-orin")
        sample = simulated.measure(IDLE_S)
        assert sample.scope == "module (VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0)"
        summed = sum(sample.rails[name] for name in ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"))
        assert sample.gross_mj == pytest.approx(summed)
        assert sample.rails["VDDQ_VDD2_1V8AO"] > 0  # told, and not in the sum

    def test_packages_count_each_once_and_psys_is_beside_them(self) -> None:
        sample = board("laptop").measure(IDLE_S)
        assert set(sample.rails) == {"package-0", "package-1", "psys"}
        assert sample.gross_mj == pytest.approx(sample.rails["package-0"] + sample.rails["package-1"])

    def test_a_rails_step_is_of_its_shunt(self) -> None:
        # 40 µV over 2 mOhm are 20 mA, at 12 V 240 mW, at 5 V 100 mW.
        assert board("agx-orin").measure(IDLE_S).step_mw == pytest.approx(240 + 240 + 100, rel=0.01)
        assert board("nano-jetpack4").measure(IDLE_S).step_mw is None  # iio tells no shunt

    def test_dies_stand_for_a_package_that_has_no_zone(self) -> None:
        simulated = board("laptop")
        simulated.tree.faults.append(Fault("*/intel-rapl:0/name", saying("package-0-die-0")))
        simulated.tree.faults.append(Fault("*/intel-rapl-mmio:0/name", saying("package-0-die-0")))
        simulated.tree.faults.append(Fault("*/intel-rapl:1/name", saying("package-0-die-1")))
        sample = simulated.measure(IDLE_S)
        assert right(simulated, sample)
        assert set(sample.rails) == {"package-0-die-0", "package-0-die-1", "psys"}

    def test_dies_are_in_a_package_that_has_one(self) -> None:
        simulated = board("laptop")
        simulated.tree.faults.append(Fault("*/intel-rapl:1/name", saying("package-0-die-1")))
        assert set(simulated.measure(IDLE_S).rails) == {"package-0", "psys"}


@dataclass(frozen=True)
class Case:
    """A fault on a board: files, what goes wrong, when in the work it begins and ends; and what must be said of it."""

    name: str
    board: str
    pattern: str
    what: Callable[[], Callable[[str, str], str]]
    said: str
    from_s: float = -2000.0
    until_s: float = 1e9
    kind: str = "stepped"
    seconds: float | None = None


FAULTS = [
    Case("missing rail", "orin-nx", "*/in1_label", lambda: missing, "lacks the rail VDD_IN"),
    Case(
        "missing rail of a sum",
        "agx-orin",
        "*/1-0040/*/in2_label",
        lambda: missing,
        "lacks the rail VDD_CPU_CV",
    ),
    Case("rail not connected", "orin-nx", "*/in1_label", lambda: saying("NC"), "lacks the rail VDD_IN"),
    Case(
        "unknown board",
        "orin-nx",
        "proc/device-tree/*",
        lambda: saying("acme,board"),
        "acme,board is not known",
    ),
    Case(
        "no device tree",
        "agx-orin",
        "proc/device-tree/*",
        lambda: missing,
        "without device tree is not known",
    ),
    Case("rail unreadable", "orin-nx", "*/curr1_input", lambda: refused, "permission: "),
    Case("rail garbled", "orin-nx", "*/curr1_input", lambda: garbled, "expected an integer"),
    Case("iio unreadable", "nano-jetpack4", "*/in_current0_input", lambda: refused, "permission: "),
    Case("iio rail missing", "nano-jetpack4", "*/rail_name_0", lambda: missing, "lacks the rail POM_5V_IN"),
    Case("sign flip", "orin-nx", "*/curr1_input", lambda: scaled(-1), "expected a current of 0 mA or more"),
    Case("sign flip mid-run", "orin-nx", "*/curr1_input", lambda: scaled(-1), "was not read for", 4.0),
    Case(
        "sign flip of a moment",
        "orin-nx",
        "*/curr1_input",
        lambda: scaled(-1),
        "reads of ina3221 failed",
        4.0,
        4.2,
    ),
    Case("µA for mA", "orin-nx", "*/curr1_input", lambda: scaled(1e3), "wrong unit or sign"),
    Case("A for mA", "orin-nx", "*/curr1_input", lambda: scaled(1e-3), "wrong unit or sign"),
    Case("µV for mV", "orin-nx", "*/in1_input", lambda: scaled(1e3), "expected 1000 to 60000 mV"),
    Case("read error", "orin-nx", "*/curr1_input", lambda: broken, "Input/output error"),
    Case("read error mid-run", "orin-nx", "*/curr1_input", lambda: broken, "was not read for", 4.0, 8.0),
    Case("read error to the end", "orin-nx", "*/curr1_input", lambda: broken, "was not read for", 4.0),
    Case("one read error", "orin-nx", "*/curr1_input", lambda: broken, "reads of ina3221 failed", 4.0, 4.1),
    Case("rail gone mid-run", "agx-orin", "*/curr2_input", lambda: missing, "was not read for", 4.0),
    Case("frozen rails", "orin-nx", "*_input", frozen, "it is frozen"),
    Case("frozen rails mid-run", "orin-nx", "*_input", frozen, "it is frozen", 4.0),
    Case("window too short", "orin-nx", "none", lambda: missing, "needs at least 10 s", seconds=6.0),
    Case("no rail labelled VIN", "thor", "*/power1_input", lambda: missing, "No such file"),
    Case("mW for µW", "thor", "*/power1_input", lambda: scaled(1e-3), "wrong unit"),
    Case("nW for µW", "thor", "*/power1_input", lambda: scaled(1e3), "wrong unit"),
    Case("power unreadable", "thor", "*/power1_input", lambda: refused, "permission: "),
    Case("power negative", "thor", "*/power1_input", lambda: scaled(-1), "expected a power of 0 or more"),
    Case("power error mid-run", "thor", "*/power1_input", lambda: broken, "was not read for", 4.0, 6.0),
    Case("power frozen", "thor", "*_input", frozen, "it is frozen"),
    Case("power frozen mid-run", "thor", "*_input", frozen, "it is frozen", 5.0),
    Case("counter unreadable", "laptop", "*/energy_uj", lambda: refused, "permission: "),
    Case("one package unreadable", "laptop", "*rapl:1/energy_uj", lambda: refused, "permission: "),
    Case("unreadable from mid-run on", "laptop", "*/energy_uj", lambda: refused, "permission: ", 4.0),
    Case("counter garbled", "laptop", "*rapl:1/energy_uj", lambda: garbled, "expected an integer"),
    Case("counter gone", "laptop", "*rapl:1/energy_uj", lambda: missing, "No such file"),
    Case("no range", "laptop", "*/max_energy_range_uj", lambda: saying("0"), "expected more than 0"),
    Case("counter error mid-run", "laptop", "*/energy_uj", lambda: broken, "reads of rapl failed", 4.0, 7.0),
    Case("counter in mJ", "laptop", "*/energy_uj", lambda: scaled(1e-3), "wrong unit or sign"),
    Case("counter frozen", "laptop", "*/energy_uj", frozen, "frozen"),
    Case("counter frozen mid-run", "laptop", "*/energy_uj", frozen, "frozen", 4.0),
    Case("one package frozen mid-run", "laptop", "*rapl:1/energy_uj", frozen, "frozen", 4.0),
    Case("counter frozen for a while", "laptop", "*/energy_uj", frozen, "frozen", 4.0, 8.0),
    Case("counter reset mid-run", "laptop", "*/energy_uj", lambda: saying("0"), "jumped by", 4.0),
    Case(
        "window too short for a counter", "laptop", "none", lambda: missing, "needs at least 1 s", seconds=0.6
    ),
    Case("charging", "phone", "*/status", lambda: saying("Charging"), "only while it discharges"),
    Case(
        "plugged in mid-run",
        "phone",
        "*/status",
        lambda: saying("Charging"),
        "only while it discharges",
        100.0,
    ),
    Case(
        "plugged in for a moment",
        "phone",
        "*/status",
        lambda: saying("Full"),
        "only while it disch",
        100.0,
        103.0,
    ),
    Case("no charge", "phone", "*/charge_counter", lambda: missing, "does not tell what charge is left"),
    Case("charge does not move", "phone", "*/charge_counter", frozen, "uncalibrated"),
    Case(
        "window too short for a battery",
        "phone",
        "none",
        lambda: missing,
        "needs at least 300 s",
        seconds=60.0,
    ),
    Case("tenth of the current", "phone", "*/current_now", lambda: scaled(0.1), "uncalibrated"),
    Case("twice the current", "phone", "*/current_now", lambda: scaled(2.0), "uncalibrated"),
    Case("sign flips mid-run", "phone", "*/current_now", lambda: scaled(-1), "changed its sign", 200.0),
    Case("current unreadable", "phone", "*/current_now", lambda: refused, "permission: "),
    Case("current and charge in mA", "phone", "*/battery/c*_*", lambda: scaled(1e-3), "wrong unit or sign"),
    Case("volts in mV", "phone", "*/voltage_now", lambda: scaled(1e-3), "expected 1 to 100 V"),
    Case("current frozen", "phone", "*/current_now", frozen, "uncalibrated"),
    Case("laptop battery in mW", "laptop-on-battery", "*/power_now", lambda: scaled(1e-2), "uncalibrated"),
    Case("mouse battery", "laptop-on-battery", "*/type", lambda: saying("Mains"), "no battery"),
]


class TestFaults:
    @pytest.mark.parametrize("case", FAULTS, ids=[case.name for case in FAULTS])
    def test_a_fault_leaves_no_wrong_number(self, case: Case) -> None:
        simulated = board(case.board, case.kind, case.seconds)
        simulated.tree.faults.append(
            Fault(case.pattern, case.what(), START_S + case.from_s, START_S + case.until_s)
        )
        sample = simulated.measure(IDLE_S)
        if sample.gross_mj is None:
            assert case.said in (sample.reason or "")
        else:
            assert sample.flags or right(simulated, sample), sample
            assert case.said in "; ".join(sample.flags)

    def test_there_are_many_of_them(self) -> None:
        assert len(FAULTS) >= 40
        assert len({case.name for case in FAULTS}) == len(FAULTS)

    def test_something_else_that_starts_meanwhile_is_flagged(self) -> None:
        simulated = board("laptop")
        idle, _, high = WATTS["laptop"]
        simulated = laptop(PowerCurve([(12.0, high), (60.0, idle * 1.5)], idle, START_S))
        meter, _ = meters.open_energy(simulated.tree, "onnx-cpu")
        assert meter is not None
        recording = Recording(meter, simulated.clock.now)
        spans = Spans()
        for name, begin, end in (("before", -30, 0), ("work", 0, 12), ("after", 13, 43)):
            setattr(spans, name, simulated._recorded(recording, START_S + begin, START_S + end))
        assert "something else changed" in "; ".join(energy_sample(recording, spans, 1000).flags)

    def test_a_load_below_the_meters_steps_is_flagged(self) -> None:
        simulated = BOARDS["agx-orin"](PowerCurve([(12.0, 13.0)], 12.0, START_S))
        assert "steps of" in "; ".join(simulated.measure(IDLE_S).flags)

    def test_few_tokens_are_flagged(self) -> None:
        assert "5 tokens" in "; ".join(board("laptop").measure(IDLE_S, tokens=5).flags)

    def test_no_token_is_no_energy(self) -> None:
        sample = board("laptop").measure(IDLE_S, tokens=0)
        assert (sample.gross_mj, sample.reason) == (None, "the worker generated no token in the window")

    def test_without_idle_there_is_no_net(self) -> None:
        sample = board("laptop").measure(0.0)
        assert sample.idle_mw is None
        assert sample.reason == "idle power was not asked for"

    def test_bursts_between_the_readings_of_a_fast_sensor_are_flagged(self) -> None:
        """A rail that shows a moment, not a mean, read every 20 ms, under bursts of 2 ms."""
        clock = board("thor").clock
        curve = PowerCurve([(0.002, 60.0), (0.006, 5.0)] * 1500, 5.0, START_S)

        def moment() -> Taken:
            return Taken((curve.joules(clock.now_s, clock.now_s + 1e-6) * 1e9,))

        meter = Meter(
            "rail", "m", "module", (Channel("VIN"),), moment, 0.02, 10.0, (500.0, 3e5), averages=False
        )
        recording = Recording(meter, clock.now)
        spans = Spans(
            work=SimulatedBoard("b", board("thor").tree, clock, curve)._recorded(recording, 1040.0, 1052.0)
        )
        sample = energy_sample(recording, spans, 1000)
        assert "changes faster than rail is read" in "; ".join(sample.flags)
        assert sample.gross_mj is not None
        assert sample.gross_mj / 1000 == pytest.approx(curve.joules(1040.0, 1052.0), rel=0.15)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 10**12), st.data())
def test_a_difference_is_the_energy_modulo_the_range(range_uj: int, data: st.DataObject) -> None:
    before = data.draw(st.integers(0, range_uj - 1))
    spent = data.draw(st.integers(0, range_uj - 1))
    assert wrapped_difference(before, (before + spent) % range_uj, range_uj) == spent


def test_a_counter_that_never_wraps_must_not_go_back() -> None:
    with pytest.raises(UnavailableError, match="it was reset"):
        wrapped_difference(5.0, 4.0, None)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.2, 8.0), st.floats(6.0, 60.0)), min_size=3, max_size=12),
    st.sampled_from(["laptop", "thor"]),
)
def test_any_curve_is_measured(curve: list[tuple[float, float]], name: str) -> None:
    lasting = [*curve, (12.0, 30.0)]
    simulated = BOARDS[name](PowerCurve(lasting, 5.0, START_S))
    sample = simulated.measure(IDLE_S)
    assert sample.gross_mj is not None, sample
    assert sample.gross_mj / 1000 == pytest.approx(simulated.joules(sample), rel=0.02)


class TestChoice:
    def test_nothing_here_is_every_meters_reason(self, tmp_path: Path) -> None:
        meter, reason = meters.open_energy(Tree(tmp_path), "onnx-cpu")
        assert meter is None
        for name in meters.ENERGY:
            assert f"{name}: " in reason

    def test_a_meter_that_needs_a_longer_window_is_passed_over(self) -> None:
        both = board("laptop-on-battery")
        both.tree.files.update(board("laptop").tree.files)
        both.tree.files["sys/class/power_supply/BAT0/status"] = "Discharging"
        both.tree.faults.append(Fault("*/energy_uj", refused))
        meter, _ = meters.open_energy(both.tree, "onnx-cpu", window_s=300.0)
        assert meter is not None
        assert meter.name == "battery"
        meter, reason = meters.open_energy(both.tree, "onnx-cpu", window_s=10.0)
        assert meter is None
        assert "battery: needs a window of at least 300 s, this one has 10 s" in reason
        assert "rapl: permission: " in reason

    def test_the_board_goes_before_its_processor(self) -> None:
        both = board("orin-nx")
        both.tree.files.update(board("laptop").tree.files)
        meter, _ = meters.open_energy(both.tree, "onnx-cpu")
        assert meter is not None
        assert meter.name == "ina3221"

    def test_a_mouse_is_no_battery(self) -> None:
        simulated = board("laptop-on-battery")
        simulated.tree.files["sys/class/power_supply/BAT0/scope"] = "Device"
        assert "no battery" in (simulated.measure(IDLE_S).reason or "")

    def test_real_files_are_read_like_simulated_ones(self, tmp_path: Path) -> None:
        for path, source in board("laptop").tree.files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(source if isinstance(source, str) else source())
        told = meters.told(Tree(tmp_path))
        assert told["rapl"] == "RAPL energy counters of the CPU packages; scope: package"
        assert told["ina3221"].startswith("unavailable: no ina3221")


class TestSampler:
    def test_it_reads_until_it_is_closed(self) -> None:
        count = iter(range(1_000_000))
        meter = Meter(
            "m", "m", "s", (Channel("c"),), lambda: Taken((float(next(count)),)), 0.005, 0.0, (0.0, 1e9)
        )
        recording = Recording(meter)
        with Sampler(recording):
            deadline = time.monotonic() + 20
            while len(recording.readings) < 5 and time.monotonic() < deadline:
                time.sleep(0.01)
        read = len(recording.readings)
        assert read >= 5
        time.sleep(0.05)
        assert len(recording.readings) == read
        moments = [each.at_s for each in recording.readings]
        assert moments == sorted(moments)


class TestExternal:
    def script(self, folder: Path, body: str) -> list[str]:
        path = folder / "meter.py"
        path.write_text(body)
        return [sys.executable, str(path)]

    def test_a_commands_number_is_converted(self, tmp_path: Path) -> None:
        meter = open_external(ExternalMeter("W", "board", command=self.script(tmp_path, "print(12.5)")))
        assert meter.read().values == (12500.0,)
        assert not meter.counts
        assert meter.scope == "board"

    def test_a_counters_unit_is_kept_apart(self, tmp_path: Path) -> None:
        meter = open_external(ExternalMeter("Wh", "plug", command=self.script(tmp_path, "print(2)")))
        assert (meter.read().values, meter.unit_mj, meter.counts) == ((2.0,), 3.6e6, True)

    @pytest.mark.parametrize(
        ("body", "said"),
        [
            ("print('twelve')", "expected a number"),
            ("print('nan')", "expected a number"),
            ("print(-3)", "expected 0 or more"),
            ("import sys; sys.exit('no meter found')", "no meter found"),
            ("", "expected a number"),
        ],
    )
    def test_a_command_without_a_number_is_unavailable(self, tmp_path: Path, body: str, said: str) -> None:
        told = ExternalMeter("W", "board", command=self.script(tmp_path, body))
        meter, reason = meters.open_energy(Tree(tmp_path), "onnx-cpu", told)
        assert meter is None
        assert said in reason

    def test_a_command_that_is_not_there_is_unavailable(self, tmp_path: Path) -> None:
        told = ExternalMeter("W", "board", command=[str(tmp_path / "none")])
        assert "No such file" in meters.open_energy(Tree(tmp_path), "onnx-cpu", told)[1]

    def test_a_csvs_rows_count_when_they_were_written(self, tmp_path: Path) -> None:
        path = tmp_path / "power.csv"
        path.write_text("time,watts\n100.0,3.5\n101.0,4.5\n102.0,9")  # the last line is still being written
        meter = open_external(ExternalMeter("W", "board", csv=str(path)), wall=lambda: 101.5)
        assert meter.read() == Taken((4500.0,), 0.5)

    @pytest.mark.parametrize("wall", [120.0, 90.0])
    def test_a_csv_that_nobody_writes_is_unavailable(self, tmp_path: Path, wall: float) -> None:
        path = tmp_path / "power.csv"
        path.write_text("100.0,3.5\n")
        with pytest.raises(ValueError, match="old: nothing appends"):
            open_external(ExternalMeter("W", "board", csv=str(path)), wall=lambda: wall)

    def test_a_csv_with_a_moving_meter_is_integrated_over_its_own_times(self, tmp_path: Path) -> None:
        path = tmp_path / "power.csv"
        path.write_text("")
        clock, curve = board("thor").clock, PowerCurve([(15.0, 8.0), (15.0, 20.0)], 3.0, START_S)

        def append() -> None:
            row = clock.now_s // 0.5 * 0.5  # a row every half second: the mean since the row before
            path.write_text(f"{row},{curve.joules(row - 0.5, row) / 0.5}\n")

        def read() -> Taken:
            append()
            return opened.read()

        append()
        opened = open_external(ExternalMeter("W", "board", csv=str(path), period_s=0.5), wall=clock.now)
        meter = dataclasses.replace(opened, read=read)
        simulated = SimulatedBoard("csv", board("thor").tree, clock, curve)
        recording = Recording(meter, clock.now)
        spans = Spans(work=simulated._recorded(recording, 1040.0, 1070.0))
        sample = energy_sample(recording, spans, 1000)
        assert sample.gross_mj is not None, sample
        assert sample.gross_mj / 1000 == pytest.approx(curve.joules(1040.0, 1070.0), rel=0.02)

    @pytest.mark.parametrize(
        ("fields", "said"),
        [
            ({"unit": "W", "scope": "board"}, "either command or csv"),
            ({"unit": "W", "scope": "board", "command": ["a"], "csv": "b"}, "either command or csv"),
            ({"unit": "V", "scope": "board", "csv": "b"}, "meter.unit"),
            ({"unit": "W", "scope": "", "csv": "b"}, "meter.scope"),
            ({"unit": "W", "scope": "board", "csv": "b", "period_s": 0.0}, "meter.period_s"),
            ({"unit": "W", "scope": "board", "csv": "b", "step": 0.0}, "meter.step"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, fields: dict[str, Any], said: str) -> None:
        with pytest.raises(RecordError, match=said):
            ExternalMeter(**fields)


class FakeLibrary:
    """NVML as ctypes would load it: `fields` by function name, each a status or the value that it writes."""

    def __init__(self, gpus: int = 1, **fields: Any) -> None:
        self.gpus, self.fields = gpus, fields
        self.reads = 0

    def __getattr__(self, name: str) -> Callable[..., int]:
        if name == "nvmlInit_v2":
            return lambda: int(self.fields.get("init", 0))
        if name == "nvmlDeviceGetCount_v2":
            return lambda count: self.write(count, self.gpus)
        if name == "nvmlDeviceGetHandleByIndex_v2":
            return lambda index, gpu: 0
        if name not in self.fields:
            raise AttributeError(name)
        value = self.fields[name]
        return lambda gpu, out: value if isinstance(value, int) else self.write(out, value())

    @staticmethod
    def write(pointer: Any, value: int) -> int:
        pointer._obj.value = value
        return 0


class TestNvml:
    ENERGY, POWER = "nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetPowerUsage"

    def test_the_energy_counter_is_preferred(self, tmp_path: Path) -> None:
        library = FakeLibrary(2, **{self.ENERGY: lambda: 12_345, self.POWER: lambda: 70_000})
        meter = nvml.open_meter(Tree(tmp_path), lambda name: library)
        assert (meter.counts, meter.read().values) == (True, (12_345.0, 12_345.0))

    def test_a_field_that_cannot_be_read_is_not_chosen(self, tmp_path: Path) -> None:
        library = FakeLibrary(**{self.ENERGY: 3, self.POWER: lambda: 70_000})
        meter = nvml.open_meter(Tree(tmp_path), lambda name: library)
        assert (meter.counts, meter.read().values) == (False, (70_000.0,))

    def test_a_library_that_loads_and_knows_nothing_is_unavailable(self, tmp_path: Path) -> None:
        library = FakeLibrary(**{self.ENERGY: 3, self.POWER: 3})
        with pytest.raises(UnavailableError, match="nvmlDeviceGetPowerUsage: not supported by this GPU"):
            nvml.open_meter(Tree(tmp_path), lambda name: library)

    @pytest.mark.parametrize(
        ("library", "said"),
        [
            (FakeLibrary(init=9), "driver is not loaded"),
            (FakeLibrary(0), "no GPU"),
            (FakeLibrary(1), "has no nvml"),
        ],
    )
    def test_no_driver_or_no_gpu_is_unavailable(
        self, tmp_path: Path, library: FakeLibrary, said: str
    ) -> None:
        with pytest.raises(UnavailableError, match=said):
            nvml.open_meter(Tree(tmp_path), lambda name: library)

    def test_it_is_never_chosen_on_a_tegra(self) -> None:
        library = FakeLibrary(**{self.ENERGY: lambda: 1})
        with pytest.raises(UnavailableError, match="Tegra"):
            nvml.open_meter(board("orin-nx").tree, lambda name: library)

    def test_nothing_is_loaded_where_there_is_no_driver(self, tmp_path: Path) -> None:
        assert meters.open_named("nvml", Tree(tmp_path)) == "no NVIDIA driver on this device"

    def test_it_says_nothing_of_work_on_the_processor(self, tmp_path: Path) -> None:
        assert (
            "nvml: the target onnx-cpu does not compute on the GPU"
            in meters.open_energy(Tree(tmp_path), "onnx-cpu")[1]
        )


def test_the_control_plane_reads_meters_without_ctypes(tmp_path: Path) -> None:
    """The agent has 25 MB to live in; a GPU's driver is asked only where there is one."""
    code = (
        "import sys; from toggle_runtime import meters, run; from toggle_runtime.tree import Tree\n"
        "from pathlib import Path; meters.told(Tree(Path(sys.argv[1]))); sys.exit('ctypes' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)
