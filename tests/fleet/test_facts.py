"""What a device says of itself is read strictly, and an agent that is not ours is replaced once, then refused."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from toggle_runtime.facts import gather

from toggle_edge.errors import AgentError, TransportError
from toggle_edge.fleet import agent_client
from toggle_edge.fleet.agent_client import agent_archive, install, request
from toggle_edge.fleet.device import Device
from toggle_edge.fleet.facts import facts_of, read_facts
from toggle_edge.fleet.fake import FakeTransport
from toggle_edge.fleet.local import LocalTransport

DEVICE = Device(name="fake", transport="local", root="root")


def test_our_own_agents_facts_are_read(tmp_path: Path) -> None:
    device = Device(name="here", transport="local", root=str(tmp_path / "device"), python=sys.executable)
    facts = facts_of(LocalTransport(tmp_path), device)
    assert facts.python.count(".") == 2
    assert (facts.protocol, facts.manifest_versions, facts.record_version) == (4, [1, 2, 3, 4], 4)
    assert facts.memory_bytes > 0


def test_a_newer_agent_may_say_more(tmp_path: Path) -> None:
    assert read_facts({**gather(tmp_path), "moon_phase": "full"}, DEVICE).system == "Linux"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"python": None}, r"DeviceFacts\.python: expected str"),
        ({"memory_bytes": "much"}, "expected int"),
        ({"cpus": True}, "expected int"),
        ({"manifest_versions": "1"}, "expected a list"),
        ({"trusted_keys": {"a": 1}}, "expected str"),
        ({"conditions": []}, "expected an object"),
    ],
)
def test_facts_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(AgentError, match=f"facts: .*{message}.*something else answering"):
        read_facts({**gather(tmp_path), **change}, DEVICE)


@pytest.mark.parametrize("data", [None, [], "facts", 3, {}])
def test_what_is_no_facts_at_all_is_refused(data: Any) -> None:
    with pytest.raises(AgentError, match="facts: "):
        facts_of(FakeTransport(lambda question: [{"event": "result", "facts": data}]), DEVICE)


def protocol_error() -> dict[str, Any]:
    return {"event": "error", "kind": "protocol", "message": "m", "protocol": 1, "agent_version": "0.0.9"}


def test_an_older_agent_at_our_agents_place_is_replaced_once() -> None:
    def answer(question: dict[str, Any]) -> Iterable[dict[str, Any]]:
        return [{"event": "result", "answer": 1} if transport.files == installed else protocol_error()]

    transport = FakeTransport(answer)
    path = agent_client.install(transport, DEVICE)
    installed = dict(transport.files)
    transport.files[path] = b"?" * len(installed[path])  # another agent that happens to be as long
    assert request(transport, DEVICE, "facts")["answer"] == 1
    assert transport.files == installed


def test_an_agent_that_stays_another_is_refused_with_both_versions() -> None:
    transport = FakeTransport(lambda question: [protocol_error()])
    with pytest.raises(
        AgentError, match=r"this host speaks protocol 4, the agent there 1 \(version '0.0.9'\)"
    ):
        request(transport, DEVICE, "facts")
    assert len(transport.requests) == 2


@pytest.mark.parametrize("theirs", [3, 5, "4", None])
def test_a_real_agent_tells_another_protocol_which_side_to_upgrade(tmp_path: Path, theirs: Any) -> None:
    device = Device(name="here", transport="local", root=str(tmp_path / "device"), python=sys.executable)
    transport = LocalTransport(tmp_path)
    path = install(transport, device)
    lines: list[bytes] = []
    question = {"protocol": theirs, "command": "facts", "root": device.root}
    command = [device.python, "-I", "-S", path, "serve"]
    transport.run(command, json.dumps(question).encode() + b"\n", lines.append, 30)
    event = json.loads(lines[-1])
    assert (event["kind"], event["protocol"]) == ("protocol", 4)
    side = "the agent on this device" if theirs == 5 else "toggle-edge on the host"
    assert f"upgrade {side}" in event["message"]


def test_two_installs_of_one_host_at_once_end_with_the_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    transport = FakeTransport(lambda question: [{"event": "result"}])
    honest = transport.download

    def raced(remote: str, local: Path, max_bytes: int) -> None:
        # The other process has renamed what both were writing.
        final = remote.rsplit(".", 2)[0]
        transport.files[final] = transport.files.pop(remote)
        honest(remote, local, max_bytes)

    monkeypatch.setattr(transport, "download", raced)
    path = install(transport, DEVICE)
    assert transport.files == {path: agent_archive()}


def test_a_refusal_while_installing_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    transport = FakeTransport(lambda question: [])

    def refused(*_: object) -> None:
        raise TransportError("permission denied")

    monkeypatch.setattr(transport, "upload", refused)
    with pytest.raises(TransportError, match="permission denied"):
        install(transport, DEVICE)


class SlowLink(LocalTransport):
    """Writes a file in two halves, and reads it after a while, so that somebody else can begin to write it."""

    def upload(self, local: Path, remote: str) -> None:
        data = local.read_bytes()
        with (self._home / remote).open("wb") as stream:
            stream.write(data[: len(data) // 2])
            stream.flush()
            time.sleep(0.3)
            stream.write(data[len(data) // 2 :])

    def download(self, remote: str, local: Path, max_bytes: int) -> None:
        time.sleep(0.3)
        super().download(remote, local, max_bytes)


def test_two_commands_of_one_host_install_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOGGLE_EDGE_CACHE", str(tmp_path / "cache"))

    def put(late_s: float) -> bytes:
        time.sleep(late_s)
        return (tmp_path / install(SlowLink(tmp_path), DEVICE, anew=True)).read_bytes()

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(put, (0.0, 0.45))) == [agent_archive()] * 2
    assert len(list((tmp_path / DEVICE.root / "agent").iterdir())) == 1


def test_without_a_cache_it_is_installed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TOGGLE_EDGE_CACHE", str(tmp_path / "file"))
    assert (tmp_path / install(LocalTransport(tmp_path), DEVICE)).read_bytes() == agent_archive()
