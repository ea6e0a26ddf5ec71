"""What an agent says of its device beyond its interpreter: sensors in a fake sysfs, the lease, the clock, its root."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
from toggle_runtime import facts as runtime_facts
from toggle_runtime.facts import board, gather
from toggle_runtime.lease import hold
from toggle_runtime.power_sources import power_sources


def tree(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def jetson(root: Path) -> Path:
    """An Orin's INA3221: two rails, one channel that leads nowhere, sums that are no rails."""
    at = "class__hwmon__hwmon3__"
    files = {
        "name": "ina3221",
        "in1_label": "VDD_IN",
        "in2_label": "NC",
        "in3_label": "VDD_SOC",
        "in7_label": "sum",
    }
    files |= {f"in{n}_input": "5000" for n in (1, 2, 3, 7)} | {f"curr{n}_input": "700" for n in (1, 2, 3)}
    return tree(
        root, **{at + name: text for name, text in files.items()}, class__hwmon__hwmon0__name="cpu_thermal"
    )


class TestPowerSources:
    def test_rails_have_their_labels(self, tmp_path: Path) -> None:
        expected = {"ina3221 VDD_IN": "readable", "ina3221 VDD_SOC": "readable"}
        assert power_sources(jetson(tmp_path)) == expected

    def test_a_rail_that_cannot_be_read_says_why(self, tmp_path: Path) -> None:
        (jetson(tmp_path) / "class/hwmon/hwmon3/curr1_input").unlink()
        told = power_sources(tmp_path)["ina3221 VDD_IN"]
        assert told.startswith("unavailable: ")
        assert told.endswith("curr1_input: No such file or directory")

    def test_a_power_file_and_a_battery(self, tmp_path: Path) -> None:
        tree(
            tmp_path,
            class__hwmon__hwmon1__name="ina238",
            class__hwmon__hwmon1__power1_input="9000000",
            class__power_supply__BAT0__type="Battery",
            class__power_supply__BAT0__voltage_now="3800000",
            class__power_supply__BAT0__current_now="-200000",
            class__power_supply__AC__type="Mains",
        )
        assert power_sources(tmp_path) == {"battery BAT0": "readable", "ina238 VIN": "readable"}

    def test_nothing_there_is_nothing(self, tmp_path: Path) -> None:
        assert power_sources(tmp_path / "absent") == {}


class TestFacts:
    def test_the_lease_is_seen_from_outside(self, tmp_path: Path) -> None:
        assert gather(tmp_path)["lease"] == {}
        with hold(tmp_path, "me@desk:1:2", "run-1"):
            held = gather(tmp_path)["lease"]
        assert (held["owner"], held["run_id"], held["pid"]) == ("me@desk:1:2", "run-1", str(os.getpid()))
        assert gather(tmp_path)["lease"] == {}

    def test_a_lease_that_cannot_be_opened_is_unavailable(self, tmp_path: Path) -> None:
        (tmp_path / "lease").mkdir()
        assert "Is a directory" in gather(tmp_path)["lease"]["unavailable"]

    def test_the_clock_is_this_clock(self, tmp_path: Path) -> None:
        before = time.time()
        assert before <= gather(tmp_path)["clock_s"] <= time.time()

    def test_what_else_is_in_the_root(self, tmp_path: Path) -> None:
        for name in ("agent", "thesis", "layout", ".hidden"):
            (tmp_path / name).mkdir()
        assert gather(tmp_path)["root_foreign"] == [".hidden", "thesis"]
        assert gather(tmp_path / "absent")["root_foreign"] == []
        for number in range(40):
            (tmp_path / f"photo{number}").touch()
        assert len(gather(tmp_path)["root_foreign"]) == 20

    def test_a_file_system_that_runs_nothing(self, tmp_path: Path) -> None:
        assert (gather(tmp_path)["root_writable"], gather(tmp_path)["root_executable"]) == (True, True)
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "noexec,size=1m", "tmpfs", str(tmp_path)], check=False
        )
        if done.returncode != 0:
            pytest.skip("mounting is denied here")
        try:
            told = gather(tmp_path / "toggle-edge")
            assert (told["root_writable"], told["root_executable"]) == (True, False)
        finally:
            subprocess.run(["umount", "-l", str(tmp_path)], check=True)

    def test_meters_say_how_they_read_or_why_not(self, tmp_path: Path) -> None:
        facts = gather(tmp_path)
        assert set(facts["energy_meters"]) == {"ina3221", "ina238", "rapl", "battery", "nvml"}
        assert facts["energy_meters"]["rapl"].startswith(("RAPL energy counters", "unavailable: "))
        assert facts["memory_meter"] == "VmHWM of the worker process"

    def test_the_board_is_named_by_the_device_tree_first(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        texts = {"/proc/device-tree/model": "Jetson Orin NX\0", "/sys/class/dmi/id/product_name": "Laptop"}
        monkeypatch.setattr(runtime_facts, "_read", lambda path: texts.get(path, "unavailable: no"))
        assert board() == "Jetson Orin NX"
        del texts["/proc/device-tree/model"]
        assert board() == "Laptop"
        texts.clear()
        assert board().startswith("unavailable: ")
