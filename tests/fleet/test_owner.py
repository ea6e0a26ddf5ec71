"""A killed host's run is ended by the next command of the same host, and nobody else's is."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from scripted_workers import HONEST, PLAN, archive_with, make_bundle, make_wheel
from toggle_runtime.lease import holder

from toggle_edge.errors import AgentError
from toggle_edge.fleet import agent_client
from toggle_edge.fleet.deploy import run_bundle
from toggle_edge.fleet.device import Device
from toggle_edge.fleet.owner import is_gone, this_process

SLEEPY = "import time\ndef main():\n time.sleep(120)"
ONLY = dataclasses.replace(PLAN, passes=["memory"])


def test_this_process_is_alive() -> None:
    owner = this_process()
    assert owner.count(":") == 2
    assert not is_gone(owner)


def test_a_process_that_ended_is_gone() -> None:
    code = "from toggle_edge.fleet.owner import this_process; print(this_process())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert is_gone(done.stdout.strip())


def test_a_zombie_is_gone() -> None:
    code = "from toggle_edge.fleet.owner import this_process; print(this_process(), flush=True)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        owner = process.stdout.readline().strip()
        deadline = time.monotonic() + 20
        while not is_gone(owner):  # it has ended, and nobody has waited for it yet
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_another_process_with_the_same_number_is_not_it() -> None:
    who, pid, start = this_process().rsplit(":", 2)
    assert is_gone(f"{who}:{pid}:{int(start) + 1}")


@pytest.mark.parametrize(
    "owner",
    ["", "somebody@desk", "somebody@elsewhere:1:5", "a:b:c", ":", "x" * 10_000, "{who}:1:0", "{who}:-1:5"],
)
def test_when_in_doubt_nobody_is_gone(owner: str) -> None:
    who = this_process().rsplit(":", 2)[0]
    assert not is_gone(owner.replace("{who}", who))


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(name="here", transport="local", root=str(tmp_path / "device"), python=sys.executable)


def set_worker(monkeypatch: pytest.MonkeyPatch, worker: str) -> None:
    archive = archive_with(worker)
    monkeypatch.setattr(agent_client, "agent_archive", lambda: archive)


def holding(device: Device, folder: Path) -> subprocess.Popen[bytes]:
    """A host in a process of its own, in the middle of a run whose worker never ends."""
    code = (
        "import sys; from pathlib import Path\n"
        "sys.path[:0] = sys.argv[1].split(':')\n"
        "from scripted_workers import archive_with, make_bundle, make_wheel\n"
        "from toggle_edge.fleet import agent_client\n"
        "from toggle_edge.fleet.deploy import run_bundle\n"
        "from toggle_edge.fleet.device import Device\n"
        "from test_owner import ONLY, SLEEPY\n"
        "archive = archive_with(SLEEPY)\n"
        "agent_client.agent_archive = lambda: archive\n"
        "folder = Path(sys.argv[2])\n"
        "device = Device(name='here', transport='local', root=sys.argv[3], python=sys.executable)\n"
        "run_bundle(device, make_bundle(folder / 'held'), ONLY, folder / 'h', wheels=[make_wheel(folder)])\n"
    )
    folder.mkdir()
    paths = f"{Path(__file__).parents[1]}:{Path(__file__).parent}"
    process = subprocess.Popen([sys.executable, "-c", code, paths, str(folder), device.root])
    deadline = time.monotonic() + 90  # it imports and unpacks first, on a machine that may be busy
    while not holder(Path(device.root)).get("run_id"):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            process.wait()
            pytest.fail("the other host does not run")
        time.sleep(0.05)
    return process


def test_a_killed_hosts_run_is_ended_and_the_next_one_goes_on(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = holding(device, tmp_path / "other")
    orphan = str(holder(Path(device.root))["run_id"])
    process.kill()
    process.wait()
    assert holder(Path(device.root))["run_id"] == orphan, "the agent goes on without its host"
    set_worker(monkeypatch, HONEST)
    said: list[object] = []
    result = run_bundle(
        device,
        make_bundle(tmp_path / "bundle"),
        ONLY,
        tmp_path / "home",
        wheels=[make_wheel(tmp_path)],
        on_progress=lambda event: said.append(event.get("step")),
    )
    assert result.record.outcome == "PASS"
    assert "ending the run of a host that is gone" in said
    record = json.loads(Path(device.root, "runs", orphan, "record.json").read_text())
    assert record["outcome"] == "ABORTED"


def test_a_living_hosts_run_is_left_alone(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = holding(device, tmp_path / "other")
    try:
        set_worker(monkeypatch, HONEST)
        with pytest.raises(AgentError, match=rf"lease: the device is in use by .*:{process.pid}:"):
            run_bundle(
                device,
                make_bundle(tmp_path / "bundle"),
                ONLY,
                tmp_path / "home",
                wheels=[make_wheel(tmp_path)],
            )
        assert holder(Path(device.root))["owner"].split(":")[1] == str(process.pid)
    finally:
        held = holder(Path(device.root))
        process.kill()
        process.wait()
        os.kill(held["pid"], 9)
