"""One holder at a time: whoever stops, dies, comes back or jumps in time, two never write."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from scripted_workers import (
    HONEST,
    PLAN,
    alive,
    archive_with,
    make_bundle,
    new_run_id,
    only,
    prepared,
    spawned_pid,
    start,
    wait_until,
)
from toggle_runtime import fence, lease, processes
from toggle_runtime.lease import LEASE_S, Lease, hold, holder, take
from toggle_runtime.processes import Clock
from toggle_runtime.records import ABORTED, RECORD_VERSION, RunRecord, from_json
from toggle_runtime.spool import spool_of
from toggle_runtime.sweep import sweep
from toggle_runtime.wire import RequestError

from toggle_edge.fleet import agent_client
from toggle_edge.fleet.agent_client import exchange, request
from toggle_edge.fleet.device import Device
from toggle_edge.fleet.local import LocalTransport

SLEEPER = "import time\ndef main():\n time.sleep(60)"


def spared(pid: object, start: object) -> bool:
    """The worst case: a silent holder that cannot be ended."""
    return False


@dataclasses.dataclass
class Host:
    """What one agent knows: its lease if it ever had one, and whether its process lives."""

    name: str
    held: Lease | None = None
    dead: bool = False
    stopped: bool = False


class Hosts(RuleBasedStateMachine):
    """Hosts that take, beat, stop, come back, die and give back in any order, on the real files, in simulated time.

    None can be ended by another one, so the token alone has to keep them apart.
    """

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.root = Path(self.folder.name)
        self.time, self.boot = 1000.0, 0
        self.clock = Clock(lambda: self.time, lambda: f"boot-{self.boot}")
        self.hosts = [Host(f"host{number}") for number in range(3)]
        self.tokens: list[int] = []
        self.last_beat = -1e9

    def teardown(self) -> None:
        for host in getattr(self, "hosts", []):
            if host.held is not None and not host.dead:
                os.close(host.held.descriptor)
        if hasattr(self, "folder"):
            self.folder.cleanup()

    def effective(self) -> list[Host]:
        found = []
        for host in self.hosts:
            if host.held is None or host.dead:
                continue
            try:
                with host.held.fenced():
                    (self.root / "written").write_text(str(host.held.token))
                found.append(host)
            except RequestError as exc:
                if exc.kind != "lease":
                    raise
        return found

    @rule(number=st.integers(0, 2))
    def asks(self, number: int) -> None:
        host = self.hosts[number]
        if host.held is not None and not host.dead:
            return
        before = self.effective()
        try:
            held = take(self.root, host.name, "run", clock=self.clock, end=spared)
        except RequestError:
            assert before, "refused although nobody holds it"
            assert self.time - self.last_beat < LEASE_S, "refused although the holder is silent"
            return
        assert not before or self.time - self.last_beat >= LEASE_S, "taken from a holder that goes on"
        assert not self.tokens or held.token > self.tokens[-1]
        self.tokens.append(held.token)
        host.held, host.dead, host.stopped = held, False, False
        self.last_beat = self.time

    @rule(number=st.integers(0, 2))
    def stops_or_comes_back(self, number: int) -> None:
        self.hosts[number].stopped = not self.hosts[number].stopped

    @rule(number=st.integers(0, 2))
    def beats(self, number: int) -> None:
        host = self.hosts[number]
        if host.held is not None and not host.dead and not host.stopped:
            current = host.held.is_held()
            host.held.beat(self.clock)
            if current:
                self.last_beat = self.time

    @rule(number=st.integers(0, 2))
    def dies(self, number: int) -> None:
        host = self.hosts[number]
        if host.held is not None and not host.dead:
            os.close(host.held.descriptor)  # all that the kernel does for a process that is gone
            host.dead = True

    @rule(number=st.integers(0, 2))
    def gives_back(self, number: int) -> None:
        host = self.hosts[number]
        if host.held is not None and not host.dead and not host.stopped:
            host.held.release()
            host.held = None

    @rule(seconds=st.sampled_from([0.5, 5.0, LEASE_S - 1.0, LEASE_S, 1e6]))
    def time_passes(self, seconds: float) -> None:
        self.time += seconds

    @precondition(lambda self: not any(host.held and not host.dead for host in self.hosts))
    @rule()
    def reboots(self) -> None:
        self.boot, self.time = self.boot + 1, 3.0
        self.last_beat = -1e9

    @invariant()
    def at_most_one_writes_and_it_is_the_last(self) -> None:
        if not hasattr(self, "hosts"):
            return
        writers = self.effective()
        assert len(writers) <= 1
        if writers:
            assert writers[0].held is not None
            assert writers[0].held.token == self.tokens[-1] == int((self.root / "written").read_text())


Hosts.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestHosts = Hosts.TestCase


class TestTaking:
    def moved(self, seconds: float, boot: str | None = None) -> Clock:
        now = time.monotonic() + seconds
        return Clock(lambda: now, processes.boot_id if boot is None else lambda: boot)

    def test_a_refusal_names_the_holder_its_age_and_when_it_ends(self, tmp_path: Path) -> None:
        with (
            hold(tmp_path, "ann@desk", "run-1") as held,
            pytest.raises(
                RequestError, match=r"in use by ann@desk, run run-1, for \d s; .* expires in 4[45]"
            ) as info,
        ):
            take(tmp_path, "bob@desk", "run-2")
        told = info.value.data["holder"]
        assert (told["owner"], told["run_id"], told["token"], told["pid"]) == (
            "ann@desk",
            "run-1",
            held.token,
            os.getpid(),
        )
        assert 0 <= told["silent_s"] < 5
        assert set(told) == {"owner", "run_id", "pid", "since", "token", "silent_s", "expires_in_s"}

    def test_it_is_held_until_it_is_given_back_and_said_so(self, tmp_path: Path) -> None:
        assert holder(tmp_path) == {}
        assert list(tmp_path.iterdir()) == [], "looking leaves nothing"
        with hold(tmp_path, "ann@desk", "run-1"):
            assert holder(tmp_path)["owner"] == "ann@desk"
        assert holder(tmp_path) == {}
        assert (tmp_path / "fence").read_text() == "1\n"

    def test_a_silent_holder_is_replaced_and_writes_nothing_more(self, tmp_path: Path) -> None:
        old = take(tmp_path, "ann@desk", "run-1")
        spool = spool_of(tmp_path, "run-1", old)
        spool.folder.mkdir(parents=True)
        spool.journal("lease")
        with pytest.raises(RequestError, match="in use"):
            take(tmp_path, "bob@desk", "run-2", clock=self.moved(LEASE_S - 5), end=spared)
        new = take(tmp_path, "bob@desk", "run-2", clock=self.moved(LEASE_S), end=spared)
        assert new.token == old.token + 1
        sweep(tmp_path, "run-2", new)  # closes run-1
        late = RunRecord(RECORD_VERSION, "run-1", "b" * 64, "PASS")
        before = spool.record_path.read_bytes()
        for write in (lambda: spool.keep(late), lambda: spool.journal("exit")):
            with pytest.raises(
                RequestError, match=r"token 1\) stood still .* \(token 2\); nothing more was written"
            ):
                write()
        assert spool.record_path.read_bytes() == before
        assert from_json(RunRecord, before.decode()).outcome == ABORTED
        assert [json.loads(line)["token"] for line in spool.journal_path.read_text().splitlines()] == [1, 2]
        old.release()  # takes nothing away from the one who has it
        assert holder(tmp_path)["owner"] == "bob@desk"
        new.release()

    @pytest.mark.parametrize(
        "written",
        [
            b"",
            b"nonsense",
            b'{"owner": "old agent", "run_id": "r", "pid": 1, "since": 5}',
            b'{"owner": "x", "beat_s": NaN, "boot": "b"}',
            b'{"owner": "x", "beat_s": -1e300, "boot": "another"}',
            b'{"owner": "x", "beat_s": "0"}',
            b"[]",
        ],
    )
    def test_a_holder_whose_silence_cannot_be_told_is_never_replaced(
        self, tmp_path: Path, written: bytes
    ) -> None:
        descriptor = os.open(tmp_path / "lease", os.O_RDWR | os.O_CREAT)
        assert fence.locked(descriptor)
        os.write(descriptor, written)
        with pytest.raises(RequestError, match="the device is in use by"):
            take(tmp_path, "bob@desk", "run-2", clock=self.moved(1e9, "b"), end=spared)
        os.close(descriptor)
        take(tmp_path, "bob@desk", "run-2").release()

    def test_the_wall_clock_does_not_count(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with hold(tmp_path, "ann@desk", "run-1"):
            monkeypatch.setattr(time, "time", lambda: 4e9)
            with pytest.raises(RequestError, match="in use by ann@desk"):
                take(tmp_path, "bob@desk", "run-2")
            monkeypatch.setattr(time, "time", lambda: 0.0)
            with pytest.raises(RequestError, match="in use by ann@desk"):
                take(tmp_path, "bob@desk", "run-2")

    @pytest.mark.parametrize("text", ["", "x", "-1", "1.5", "9" * 30])
    def test_a_damaged_fence_gives_no_token(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "fence").write_text(text)
        with pytest.raises(RequestError, match=r"fence: expected a whole number, got .*; remove the file"):
            take(tmp_path, "ann@desk", "run-1")

    def test_an_owner_longer_than_a_lease_can_hold_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match="owner: expected at most 300 characters"):
            take(tmp_path, "x" * 301, "run-1")
        with hold(tmp_path, "\N{GRINNING FACE}" * 300, "r" * 80):
            assert holder(tmp_path)["run_id"] == "r" * 80

    def test_a_process_is_ended_only_if_it_is_the_one(self) -> None:
        child = subprocess.Popen(["sleep", "60"])
        began = processes.started(child.pid)
        for pid, at in [
            (child.pid, began + 1),
            (child.pid, 0),
            (child.pid, None),
            (str(child.pid), began),
            (1, 1),
        ]:
            assert not processes.end(pid, at)
        assert not processes.end(os.getpid(), processes.started(os.getpid()))
        assert child.poll() is None
        assert processes.end(child.pid, began)
        assert child.wait() == -signal.SIGKILL
        assert processes.started(2**22 + 1) == 0


HOLDER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from toggle_runtime import lease
lease.LEASE_S, lease.BEAT_S = float(sys.argv[3]), 0.05
with lease.hold(Path(sys.argv[2]), 'other@desk', 'run-1') as held:
    print(held.token, flush=True)
    sys.stdin.readline()
    with held.fenced():
        Path(sys.argv[2], 'written').write_text('late')
    print('written', flush=True)
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A holder in a process of its own, which beats twenty times a second."""
    runtime = str(Path(lease.__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, runtime, str(tmp_path), "45"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    yield process
    process.kill()
    process.communicate()


class TestProcesses:
    def test_a_dead_holder_does_not_block(self, tmp_path: Path, other: subprocess.Popen[str]) -> None:
        with pytest.raises(RequestError, match="in use by other@desk"):
            take(tmp_path, "me", "run-2")
        other.kill()
        other.wait()
        held = take(tmp_path, "me", "run-2")
        assert held.token == 2
        held.release()

    def test_a_stopped_holder_is_ended_when_its_lease_has_run_out(
        self, tmp_path: Path, other: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other.send_signal(signal.SIGSTOP)
        with pytest.raises(RequestError, match="in use by other@desk"):
            take(tmp_path, "me", "run-2")
        monkeypatch.setattr(lease, "LEASE_S", 0.3)
        time.sleep(0.4)
        held = take(tmp_path, "me", "run-2")
        assert (held.token, other.wait(20)) == (2, -signal.SIGKILL)
        held.release()

    def test_one_that_cannot_be_ended_comes_back_and_cannot_write(
        self, tmp_path: Path, other: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other.send_signal(signal.SIGSTOP)
        monkeypatch.setattr(lease, "LEASE_S", 0.3)
        time.sleep(0.4)
        held = take(tmp_path, "me", "run-2", end=spared)
        other.send_signal(signal.SIGCONT)
        # It sees for itself that it was replaced and ends, or is told to write and may not.
        out, err = other.communicate("write\n", timeout=20)
        assert "written" not in out
        assert other.returncode == -signal.SIGTERM or "stood still" in err
        assert not (tmp_path / "written").exists()
        assert held.is_held()
        held.release()

    def test_one_stopped_in_the_moment_of_a_write_is_ended_too(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        code = HOLDER.replace(
            "Path(sys.argv[2], 'written').write_text('late')", "print('in', flush=True); time.sleep(60)"
        )
        assert code != HOLDER
        runtime = str(Path(lease.__file__).parents[1])
        process = subprocess.Popen(
            [sys.executable, "-c", code, runtime, str(tmp_path), "45"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        assert [process.stdout.readline(), process.stdout.readline()] == ["1\n", "in\n"]
        process.send_signal(signal.SIGSTOP)
        monkeypatch.setattr(fence, "_GUARD_S", 0.2)
        with pytest.raises(fence.GuardError, match="has been taking the lease or writing"):
            take(tmp_path, "me", "run-2")
        monkeypatch.setattr(lease, "LEASE_S", 0.3)
        time.sleep(0.4)
        held = take(tmp_path, "me", "run-2")
        assert process.wait(20) == -signal.SIGKILL
        process.communicate()
        held.release()


class TestAgent:
    """The same through whole agents."""

    @pytest.fixture
    def device(self, tmp_path: Path) -> Device:
        return Device(name="here", transport="local", root=str(tmp_path / "device"), python=sys.executable)

    def test_a_stopped_agents_run_is_closed_its_worker_ended_and_the_next_one_runs(
        self, device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        transport = LocalTransport(tmp_path)
        sooner = {"LEASE_S = 45.0": "LEASE_S = 2.0", "BEAT_S = 5.0": "BEAT_S = 0.1"}
        archive = archive_with(SLEEPER, lease=sooner)
        monkeypatch.setattr(agent_client, "agent_archive", lambda: archive)
        fields = prepared(transport, device, make_bundle(tmp_path / "bundle"), tmp_path)
        process = start(device, transport, "run", **fields)
        worker = spawned_pid(device, fields["run_id"])
        process.send_signal(signal.SIGSTOP)
        archive = archive_with(HONEST)  # of the agent that waits no longer either
        monkeypatch.setattr(agent_client, "agent_archive", lambda: archive)
        again = {**fields, "run_id": new_run_id(), "plan": dataclasses.asdict(only("memory"))}
        answers: list[dict[str, Any]] = []

        def runs() -> bool:
            answers.append(exchange(transport, device, "run", **again))
            return answers[-1]["event"] == "result"

        wait_until(runs, "a silent holder blocks the device")
        assert {event.get("kind") for event in answers[:-1]} <= {"lease"}
        assert answers[-1]["outcome"] == "PASS"
        assert process.wait(20) == -signal.SIGKILL
        process.communicate()
        wait_until(lambda: not alive(worker), "the worker outlived its agent")
        closed = request(transport, device, "fetch_record", run_id=fields["run_id"], bundle=fields["bundle"])
        assert closed["outcome"] == "ABORTED"

    def test_facts_say_who_holds_it_and_until_when(
        self, device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from toggle_edge.fleet.facts import facts_of

        transport = LocalTransport(tmp_path)
        with hold(Path(device.root), "ann@desk:1:2", "run-1"):
            told = facts_of(transport, device).lease
        assert (told["owner"], told["run_id"], told["token"]) == ("ann@desk:1:2", "run-1", "1")
        assert 0 < float(told["expires_in_s"]) <= LEASE_S
        assert facts_of(transport, device).lease == {}

    def test_what_is_journalled_has_the_token(
        self, device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        archive = archive_with(HONEST)
        monkeypatch.setattr(agent_client, "agent_archive", lambda: archive)
        transport = LocalTransport(tmp_path)
        fields = prepared(transport, device, make_bundle(tmp_path / "bundle"), tmp_path)
        for token in (1, 2):
            plan = dataclasses.asdict(dataclasses.replace(PLAN, passes=["memory"]))
            run = {**fields, "run_id": new_run_id(), "plan": plan}
            request(transport, device, "run", **run)
            lines = Path(device.root, "runs", run["run_id"], "journal.jsonl").read_text().splitlines()
            assert {json.loads(line)["token"] for line in lines} == {token}
