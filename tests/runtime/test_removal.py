"""`remove` takes what is ours off a device: all of it, nothing else, never under somebody's feet."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from interpreters import interpreter
from scripted_workers import HONEST, PLAN, archive_with, make_bundle, make_wheel
from toggle_runtime.layout import OURS, is_ours
from toggle_runtime.lease import hold

from toggle_edge.errors import AgentError
from toggle_edge.fleet import agent_client
from toggle_edge.fleet.agent_client import Event, exchange, request
from toggle_edge.fleet.deploy import run_bundle
from toggle_edge.fleet.device import Device
from toggle_edge.fleet.local import LocalTransport

Ask = Callable[..., Event]


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(name="here", transport="local", root=str(tmp_path / "device"), python=sys.executable)


@pytest.fixture
def root(device: Device) -> Path:
    return Path(device.root)


@pytest.fixture
def ask(device: Device, tmp_path: Path) -> Ask:
    def send(command: str, **fields: object) -> Event:
        return exchange(LocalTransport(tmp_path), device, command, **fields)  # type: ignore[arg-type]

    return send


def test_nothing_stays_of_a_device_that_ran_something(
    device: Device, root: Path, tmp_path: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = archive_with(HONEST)
    monkeypatch.setattr(agent_client, "agent_archive", lambda: archive)
    plan = dataclasses.replace(PLAN, passes=["memory"])
    run_bundle(
        device, make_bundle(tmp_path / "bundle"), plan, tmp_path / "home", wheels=[make_wheel(tmp_path)]
    )
    (root / "layout.123.tmp").write_text("half")
    there = {path.name for path in root.iterdir()}
    assert there >= {"agent", "blobs", "environments", "keys", "layout", "runs"}
    event = ask("remove", owner="me")
    assert (event["event"], event["left"], set(event["removed"])) == (
        "result",
        [],
        there | {"lease", "fence"},
    )
    assert not root.exists()


def test_what_is_not_ours_stays_and_is_named(root: Path, ask: Ask) -> None:
    ask("receive", blobs=[])
    (root / "Documents").mkdir()
    (root / "Documents" / "thesis").write_text("precious")
    (root / "layout.txt").write_text("notes")
    assert ask("remove", owner="me")["left"] == ["Documents", "layout.txt"]
    assert (root / "Documents" / "thesis").read_text() == "precious"
    assert sorted(path.name for path in root.iterdir()) == ["Documents", "layout.txt"]


def test_links_are_removed_and_not_followed(root: Path, tmp_path: Path, ask: Ask) -> None:
    ask("receive", blobs=[])
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("precious")
    (root / "runs").mkdir()
    (root / "runs" / "one").symlink_to(outside)
    (root / "runs" / "two").symlink_to(outside / "precious")
    (root / "blobs").symlink_to(outside)
    assert ask("remove", owner="me")["left"] == []
    assert (outside / "precious").read_text() == "precious"
    assert not root.exists()


def test_a_root_that_is_a_link_is_emptied(root: Path, tmp_path: Path, ask: Ask) -> None:
    (tmp_path / "card").mkdir()
    root.symlink_to(tmp_path / "card")
    ask("receive", blobs=[])
    assert ask("remove", owner="me")["left"] == []
    assert list((tmp_path / "card").iterdir()) == []


@pytest.mark.parametrize("mark", ["none", "link", "folder"])
def test_a_root_without_our_mark_is_left_alone(root: Path, tmp_path: Path, ask: Ask, mark: str) -> None:
    (root / "runs").mkdir(parents=True)
    (root / "runs" / "precious").write_text("not ours")
    if mark == "link":
        (tmp_path / "layout").write_text("1\n")
        (root / "layout").symlink_to(tmp_path / "layout")
    elif mark == "folder":
        (root / "layout").mkdir()
    event = ask("remove", owner="me")
    assert (event["event"], event["kind"]) == ("error", "layout")
    assert "expected a root that toggle-edge has used; nothing was removed" in event["message"]
    assert (root / "runs" / "precious").read_text() == "not ours"


def test_a_root_of_another_version_is_left_alone(root: Path, ask: Ask) -> None:
    ask("receive", blobs=[])
    (root / "layout").write_text("2\n")
    assert ask("remove", owner="me")["kind"] == "layout"
    assert (root / "incoming").is_dir()


def test_it_is_refused_while_a_run_holds_the_device(root: Path, ask: Ask) -> None:
    ask("receive", blobs=[])
    with hold(root, "somebody@desk", "run-1"):
        event = ask("remove", owner="me")
        assert (event["kind"], event["holder"]["owner"]) == ("lease", "somebody@desk")
        assert (root / "layout").exists()
    assert ask("remove", owner="me")["left"] == []


def test_it_can_be_repeated_after_an_interruption(root: Path, ask: Ask) -> None:
    ask("receive", blobs=[])
    (root / "incoming").rmdir()
    assert {path.name for path in root.iterdir()} == {"agent", "layout"}
    assert ask("remove", owner="me")["left"] == []


def test_the_owner_is_asked_for(device: Device, tmp_path: Path) -> None:
    with pytest.raises(AgentError, match="owner: expected str"):
        request(LocalTransport(tmp_path), device, "remove")


def test_the_oldest_python_removes_too(device: Device, root: Path, tmp_path: Path) -> None:
    python = interpreter("3.8")
    if python is None:
        pytest.skip("no Python 3.8 on this machine")
    old, transport = dataclasses.replace(device, python=python), LocalTransport(tmp_path)
    facts = request(transport, old, "facts")["facts"]
    assert facts["python"].startswith("3.8")
    assert (facts["root_writable"], facts["root_executable"], facts["lease"]) == (True, True, {})
    request(transport, old, "receive", blobs=[])
    assert request(transport, old, "remove", owner="me")["left"] == []
    assert not root.exists()


def test_names_of_ours_are_told_from_others() -> None:
    assert all(is_ours(name) for name in OURS)
    assert is_ours("lease.99.tmp")
    assert not any(
        is_ours(name) for name in ("", "x", "x.1.tmp", "layout.", "layout.tmp", "layout.1.tmp.txt", ".tmp")
    )


def test_everything_that_the_agents_code_puts_into_a_root_is_ours() -> None:
    """What is written as `root / "name"` anywhere in the runtime is named in OURS, so that `remove` finds it."""
    folder = Path(agent_client.toggle_runtime.__file__).parent
    done = subprocess.run(
        ["grep", "-rhoE", r'\broot / "[a-z_]+"', str(folder), "--include=*.py"],
        capture_output=True,
        text=True,
    )
    names = {line.split('"')[1] for line in done.stdout.splitlines()} - {
        "class"
    }  # of sysfs, whose root is another
    assert {"blobs", "runs", "keys", "lease"} <= names
    assert names <= OURS
