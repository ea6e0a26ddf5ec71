"""What facts mean: a target and wheels for each Python, a finding with its command for everything that may be wrong."""

from __future__ import annotations

import dataclasses
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toggle_runtime.deployment import Deployed, Deployment
from toggle_runtime.meters.external import ExternalMeter

from toggle_edge.errors import AgentError, FleetError, HostKeyError, TransportError
from toggle_edge.fleet.capabilities import RUNTIME_TARGETS, capability_table, choose, labels_of
from toggle_edge.fleet.device import Device
from toggle_edge.fleet.device_files import device_text
from toggle_edge.fleet.doctor import STEPS, examine
from toggle_edge.fleet.environment import PINS, WheelFile
from toggle_edge.fleet.facts import DeviceFacts
from toggle_edge.fleet.fake import FakeTransport
from toggle_edge.fleet.findings import BROKEN, HERE, LIMITED, LOOKS, OK, THERE, UNKNOWN, Finding, Look
from toggle_edge.fleet.owner import this_process
from toggle_edge.targets import TARGETS

DEVICE = Device(name="pi", transport="local", user="edge")
FACTS = DeviceFacts(
    agent_version="0.1.0",
    protocol=2,
    manifest_versions=[4],
    record_version=3,
    trusted_keys={},
    python="3.11.7",
    implementation="CPython",
    machine="aarch64",
    libc="glibc",
    libc_version="2.36",
    system="Linux",
    release="6.1",
    hostname="pi",
    cpus=4,
    memory_bytes=4 << 30,
    free_disk_bytes=8 << 30,
    conditions={"governor": "performance"},
    board="Raspberry Pi 5 Model B Rev 1.0",
    clock_s=1000.0,
    energy_meters={"rapl": "RAPL; scope: package"},
    memory_meter="VmHWM of the worker process",
)
WHEELS = [WheelFile(Path("onnxruntime-1.31.1-cp311.whl"), "0" * 64, 20_000_000)]
OLD_TARGETS = {
    name: dataclasses.replace(TARGETS["onnx-cuda"], name=name)
    for name in ("onnx-cpu", "onnx-cpu-1.23", "onnx-cpu-1.19")
}
TERMUX = dataclasses.replace(DEVICE, python="/data/data/com.termux/files/usr/bin/python3")


def look(device: Device = DEVICE, **changed: Any) -> Look:
    of_look = {field.name for field in dataclasses.fields(Look)}
    rest = {key: changed.pop(key) for key in list(changed) if key in of_look}
    facts = dataclasses.replace(FACTS, **changed)
    usual: dict[str, Any] = {"wheels": WHEELS, "no_wheels": "", "skew_s": (-0.1, 0.1), "known_keys": {}}
    return Look(device=device, facts=facts, **{**usual, **rest})


def found(name: str, device: Device = DEVICE, **changed: Any) -> Finding:
    return LOOKS[name](look(device, **changed))


class TestChoice:
    @pytest.mark.parametrize(
        ("python", "runtime", "target"),
        [
            ("3.8.10", "1.19.2", "onnx-cpu-1.19"),
            ("3.9.2", "1.19.2", "onnx-cpu-1.19"),
            ("3.10.12", "1.23.2", "onnx-cpu-1.23"),
            ("3.11.2", "1.31.1", "onnx-cpu"),
            ("3.12.3", "1.31.1", "onnx-cpu"),
            ("3.13.0", "1.31.1", "onnx-cpu"),
        ],
    )
    def test_old_pythons_get_targets_of_old_runtimes(self, python: str, runtime: str, target: str) -> None:
        choice = choose(dataclasses.replace(FACTS, python=python), OLD_TARGETS)
        assert (choice.wheels["onnxruntime"], choice.target) == (runtime, target)
        assert (choice.note is None) == (target == "onnx-cpu")

    def test_its_targets_are_there(self) -> None:
        assert {name for _, name in RUNTIME_TARGETS} <= set(TARGETS)

    def test_every_pinned_runtime_has_a_line(self) -> None:
        for python in PINS:
            assert choose(dataclasses.replace(FACTS, python=f"{python}.0"), OLD_TARGETS).wheels

    def test_where_there_is_no_such_target_it_says_so(self) -> None:
        choice = choose(dataclasses.replace(FACTS, python="3.8.10"), {"onnx-cpu": TARGETS["onnx-cpu"]})
        assert choice.target == "onnx-cpu"
        assert "has no target for it: choose formats of 4 bits and floats" in str(choice.note)

    @pytest.mark.parametrize(
        "change", [{"python": "3.7.1"}, {"libc": ""}, {"system": "Darwin"}, {"machine": "../x"}]
    )
    def test_without_wheels_the_table_says_why(self, change: dict[str, Any]) -> None:
        facts = dataclasses.replace(FACTS, **change)
        choice = choose(facts)
        assert (choice.target, choice.wheels) == ("onnx-cpu", {})
        table = capability_table(facts, choice)
        assert str(table["onnxruntime"]).startswith("unavailable: worker wheels: ")
        assert str(table["formats"]).startswith("unavailable: ")

    def test_labels(self) -> None:
        assert labels_of(FACTS) == {
            "arch": "aarch64",
            "libc": "glibc 2.36",
            "python": "3.11",
            "board": "Raspberry Pi 5 Model B Rev 1.0",
        }
        assert "board" not in labels_of(dataclasses.replace(FACTS, board="unavailable: no name"))

    @settings(max_examples=100, deadline=None)
    @given(text=st.text(max_size=400))
    def test_whatever_a_device_says_becomes_plain_lines_of_a_file(self, text: str) -> None:
        facts = dataclasses.replace(
            FACTS, board=text, release=text, memory_meter=text, conditions={"governor": text}
        )
        choice = choose(facts)
        device = Device(
            name="x", transport="local", labels=labels_of(facts), capabilities=capability_table(facts, choice)
        )
        data = tomllib.loads(device_text(device))
        values = [*data["labels"].values(), *data["capabilities"].values()]
        assert all(value.isprintable() and len(value) <= 200 for value in values if isinstance(value, str))


class TestFindings:
    def test_a_device_without_faults_has_none(self) -> None:
        assert {name: each(look()).state for name, each in LOOKS.items()} == dict.fromkeys(LOOKS, OK)
        assert [each(look()).name for each in LOOKS.values()] == list(LOOKS)
        assert not any(each(look()).fix for each in LOOKS.values())

    @pytest.mark.parametrize(
        ("name", "changed", "state", "expected", "where", "command"),
        [
            ("wheels", {"wheels": None, "no_wheels": "no network"}, BROKEN, "no network", HERE, "-version 3.11"),
            ("wheels", {"wheels": None, "libc": ""}, BROKEN, "", None, ""),
            ("target", {"python": "3.8.10"}, LIMITED, "1.19.2", None, ""),
            ("root", {"root_writable": False}, BROKEN, "cannot be written", THERE, "sudo chown -R"),
            ("root", {"root_executable": False}, BROKEN, "noexec", None, ""),
            ("root", {"root_foreign": ["thesis"]}, LIMITED, "'thesis'", None, ""),
            ("disk", {"free_disk_bytes": 200 << 20}, BROKEN, "0.21 GB free, about 0.27 GB wanted", THERE, "du -xhd1"),
            ("memory", {"memory_meter": "unavailable: no /proc"}, LIMITED, "no /proc", None, ""),
            ("governor", {"conditions": {"governor": "schedutil"}}, LIMITED, "schedutil", THERE, "| sudo tee"),
            ("governor", {"conditions": {}}, LIMITED, "does not tell", None, ""),
            ("clock", {"skew_s": (99.0, 101.0)}, LIMITED, "99 s ahead of", THERE, "timedatectl set-ntp"),
            ("clock", {"skew_s": (-7201.0, -7200.0)}, LIMITED, "7200 s behind", THERE, "timedatectl"),
            ("clock", {"skew_s": None}, LIMITED, "unavailable", None, ""),
            ("lease", {"lease": {"owner": "a", "pid": "77", "run_id": "r"}}, BROKEN, "by a, run r", THERE, "kill 77 "),
            ("lease", {"lease": {"owner": "a", "pid": "1; rm -rf /"}}, BROKEN, "in use", None, ""),
            ("lease", {"lease": {"unavailable": "read-only"}}, LIMITED, "read-only", None, ""),
            ("keys", {"trusted_keys": {"ab": "her"}}, BROKEN, "only her", HERE, "toggle-edge device trust pi"),
            ("deployed", {"deployment_problem": "damaged"}, LIMITED, "damaged", HERE, "toggle-edge deploy --device pi"),
            ("energy", {"energy_meters": {}}, LIMITED, "no meter", None, ""),
            ("energy", {"energy_meters": {"rapl": "unavailable: none here"}}, LIMITED, "rapl: none here", None, ""),
            (
                "energy",
                {"energy_meters": {"rapl": "unavailable: permission: energy_uj is readable by root only"}},
                LIMITED,
                "readable by root only",
                THERE,
                "sudo chgrp",
            ),
            (
                "energy",
                {"energy_meters": {}, "power_sources": {"ina3221 VDD_IN": "unavailable: x: Permission denied"}},
                LIMITED,
                "ina3221 VDD_IN is unavailable",
                THERE,
                "sudo usermod -aG i2c edge",
            ),
        ],
    )  # fmt: skip
    def test_a_fault_is_found_with_what_mends_it(
        self, name: str, changed: dict[str, Any], state: str, expected: str, where: str | None, command: str
    ) -> None:
        finding = found(name, **changed)
        assert (finding.name, finding.state) == (name, state)
        assert expected in finding.found
        assert (finding.fix.where if finding.fix else None) == where
        assert finding.fix is None or command in finding.fix.command

    def test_a_phone_is_told_about_proot_and_nothing_about_sudo(self) -> None:
        wheels = found("wheels", TERMUX, wheels=None, no_wheels="glibc only", libc="")
        assert wheels.fix is not None
        assert "proot-distro install debian" in wheels.fix.command
        assert found("governor", TERMUX, conditions={"governor": "schedutil"}).fix is None

    def test_a_gpus_meter_says_nothing_of_work_on_the_processor(self) -> None:
        meters = {"rapl": "unavailable: none", "nvml": "NVML; scope: gpu"}
        assert found("energy", energy_meters=meters).state == LIMITED
        assert (
            found("energy", dataclasses.replace(DEVICE, target="onnx-cuda"), energy_meters=meters).state == OK
        )

    def test_an_external_meter_is_enough(self) -> None:
        plugged = dataclasses.replace(DEVICE, meter=ExternalMeter("W", "plug", csv="power.csv"))
        assert "scope: plug" in found("energy", plugged, energy_meters={}).found

    def test_a_meter_that_a_board_should_have_is_missed(self) -> None:
        jetson = dataclasses.replace(DEVICE, meters=("ina3221",))
        finding = found("energy", jetson, energy_meters={"rapl": "unavailable: x"})
        assert "ina3221: this version has no meter for it" in finding.found

    def test_a_lease_of_a_command_that_has_ended_is_no_fault(self) -> None:
        who = this_process().rsplit(":", 2)[0]
        assert found("lease", lease={"owner": f"{who}:1:5", "pid": "3"}).state == OK
        assert found("lease", lease={"owner": this_process(), "pid": "3"}).state == BROKEN

    def test_a_known_key_among_others_is_enough(self) -> None:
        assert found("keys", trusted_keys={"ab": "her", "cd": "me"}, known_keys={"cd": "me"}).state == OK

    def test_what_is_deployed_is_named(self) -> None:
        one, two = (Deployed(digit * 64, "e" * 64, 1, 0.0) for digit in "ab")
        assert found("deployed").found == "nothing yet"
        assert found("deployed", deployed=Deployment(1, two)).found == "b" * 12
        assert (
            found("deployed", deployed=Deployment(1, two, one)).found == f"{'b' * 12}, {'a' * 12} before it"
        )

    def test_a_device_file_of_another_runtime_is_noticed(self) -> None:
        assert found("target", dataclasses.replace(DEVICE, target="onnx-cpu-1.19")).state == LIMITED
        assert found("target", dataclasses.replace(DEVICE, target="executorch-xnnpack")).state == OK


class TestExamination:
    def examined(self, transport: Any, wheels: Any = lambda facts: WHEELS) -> Any:
        return examine(DEVICE, {}, connect=lambda device: transport, wheels_for=wheels)

    def answering(self, **changed: Any) -> FakeTransport:
        facts = {**dataclasses.asdict(FACTS), **changed}
        return FakeTransport(lambda question: [{"event": "result", "facts": facts}])

    def test_all_findings_in_their_order(self) -> None:
        transport = self.answering(clock_s=time.time())
        examination = self.examined(transport)
        assert [each.name for each in examination.findings] == [*STEPS, *LOOKS]
        assert examination.outcome == "PASS"
        assert transport.closed

    def test_a_clock_that_is_off_is_measured_against_ours(self) -> None:
        finding = {each.name: each for each in self.examined(self.answering()).findings}["clock"]
        assert "behind" in finding.found

    @pytest.mark.parametrize("error", [TransportError("refused"), HostKeyError("another key")])
    def test_what_cannot_be_reached_is_a_finding(self, error: TransportError) -> None:
        def connect(device: Device) -> Any:
            raise error

        examination = examine(DEVICE, {}, connect=connect)
        assert examination.outcome == "ERROR"
        states = {each.name: each.state for each in examination.findings}
        assert states["login"] == BROKEN
        assert states["agent"] == states["keys"] == UNKNOWN

    @pytest.mark.parametrize("facts", [None, {}, "x", {**dataclasses.asdict(FACTS), "clock_s": "late"}])
    def test_nonsense_is_a_finding(self, facts: Any) -> None:
        transport = FakeTransport(lambda question: [{"event": "result", "facts": facts}])
        examination = self.examined(transport)
        states = {each.name: each.state for each in examination.findings}
        assert (states["agent"], states["wheels"], examination.outcome) == (BROKEN, UNKNOWN, "ERROR")
        assert transport.closed

    def test_wheels_that_cannot_be_fetched_are_a_finding(self) -> None:
        def none(facts: DeviceFacts) -> list[WheelFile]:
            raise FleetError("no network")

        states = {each.name: each.state for each in self.examined(self.answering(), none).findings}
        assert (states["wheels"], states["keys"]) == (BROKEN, OK)

    def test_an_agent_that_is_missing_names_the_interpreter(self) -> None:
        def refuse(*_: object) -> Any:
            raise AgentError("status 127")

        finding = self.examined(FakeTransport(refuse)).findings[-len(LOOKS) - 1]
        assert (finding.name, finding.state) == ("agent", BROKEN)
        assert finding.fix is not None
        assert finding.fix.command.startswith("sudo apt-get install -y python3 && command -v python3")

    def test_what_a_device_says_cannot_command_a_terminal(self) -> None:
        said = self.answering(memory_meter="unavailable: \x1b[2J\x9b2J\nfine " + "x" * 5000)
        finding = {each.name: each for each in self.examined(said).findings}["memory"]
        assert finding.found.isprintable()
        assert len(finding.found) <= 600
