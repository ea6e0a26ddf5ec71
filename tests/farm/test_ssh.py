"""A real sshd as the device: pinned keys, cut and stalled links, refusals, and a run that survives them."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from scripted_workers import HONEST, PLAN, archive_with, make_bundle, make_wheel, prepared
from toggle_runtime import wire
from toggle_runtime.blobs import blob_of

from toggle_edge.errors import AgentError, FleetError, HostKeyError, TransportError, TransportLostError
from toggle_edge.fleet import agent_client, ssh
from toggle_edge.fleet.active import switch_in, talk
from toggle_edge.fleet.agent_client import request
from toggle_edge.fleet.chaos import Chaos
from toggle_edge.fleet.deploy import run_bundle
from toggle_edge.fleet.device import Device, Jump
from toggle_edge.fleet.fake import FakeTransport
from toggle_edge.fleet.session import MOST_LOSSES, Session
from toggle_edge.fleet.shipping import CHUNK_BYTES, ship
from toggle_edge.fleet.sshd import LoopbackSshd, sshd_path
from toggle_edge.fleet.transport import Transport, connect

pytestmark = pytest.mark.skipif(sshd_path() is None, reason="no sshd on this machine: install openssh-server")

MEBIBYTE = 1 << 20


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackSshd]:
    with LoopbackSshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture
def device(sshd: LoopbackSshd, tmp_path: Path) -> Device:
    return dataclasses.replace(sshd.device, root=str(tmp_path / "device"))


@pytest.fixture
def transport(device: Device) -> Iterator[Transport]:
    opened = connect(device)
    yield opened
    opened.close()


@pytest.fixture
def file(tmp_path: Path) -> tuple[str, Path, int]:
    """Three chunks that nothing compresses: digest, path, size."""
    path, size = tmp_path / "file", 3 * CHUNK_BYTES
    path.write_bytes(os.urandom(size))
    return blob_of(path).sha256, path, size


def set_worker(monkeypatch: pytest.MonkeyPatch, worker: str) -> None:
    archive = archive_with(worker)
    monkeypatch.setattr(agent_client, "agent_archive", lambda: archive)


def run(transport: Transport, command: list[str], stdin: bytes = b"", timeout_s: float = 20.0) -> Any:
    lines: list[bytes] = []
    completed = transport.run(command, stdin, lines.append, timeout_s)
    return completed.status, lines, completed.stderr


def wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def agents_of(device: Device) -> list[int]:
    """Processes of agents at work on that device."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it ended while we looked
            words = path.read_bytes().split(b"\0")
            if b"serve" in words and any(word.startswith(os.fsencode(device.root)) for word in words):
                found.append(int(path.parent.name))
    return found


class TestTransport:
    def test_facts_come_over_ssh(self, transport: Transport, device: Device) -> None:
        facts = request(transport, device, "facts")["facts"]
        assert facts["modules"] == []
        assert facts["cpus"] == os.cpu_count()
        assert request(transport, device, "facts")["facts"]["hostname"] == facts["hostname"]

    def test_arguments_arrive_as_they_are(self, transport: Transport) -> None:
        tricky = ["a b", "'", '"', "$HOME", ";true", "*", ""]
        assert run(transport, ["printf", "%s\\n", *tricky])[1] == [text.encode() for text in tricky]

    def test_status_stdin_and_stderr(self, transport: Transport) -> None:
        status, lines, stderr = run(transport, ["sh", "-c", "cat; echo oops >&2; exit 7"], b"one\ntwo")
        assert (status, lines, stderr) == (7, [b"one", b"two"], "oops\n")

    def test_a_flood_on_stderr_blocks_nothing(self, transport: Transport) -> None:
        script = "head -c 5000000 /dev/zero | tr '\\0' x >&2; echo done"
        status, lines, stderr = run(transport, ["sh", "-c", script])
        assert (status, lines) == (0, [b"done"])
        assert len(stderr) == 64 << 10

    def test_a_killed_command_is_not_a_lost_link(self, transport: Transport) -> None:
        assert run(transport, ["sh", "-c", "kill -9 $$"])[0] != 0
        assert run(transport, ["true"])[0] == 0

    def test_an_endless_line_is_refused(self, transport: Transport) -> None:
        with pytest.raises(AgentError, match="lines of at most"):
            run(transport, ["sh", "-c", "head -c 20000000 /dev/zero"])

    def test_a_command_that_takes_too_long_is_given_up(self, transport: Transport) -> None:
        with pytest.raises(TransportError, match=r"did not finish within 0.5 s"):
            run(transport, ["sleep", "20"], timeout_s=0.5)

    def test_files_go_there_and_back(
        self, transport: Transport, device: Device, file: Any, tmp_path: Path
    ) -> None:
        transport.mkdirs(f"{device.root}/a/b")
        transport.mkdirs(f"{device.root}/a/b")
        remote = f"{device.root}/a/b/file"
        assert transport.size(remote) is None
        transport.upload(file[1], remote)
        assert transport.size(remote) == file[2]
        transport.rename(remote, remote + "2")
        transport.download(remote + "2", tmp_path / "back", file[2])
        assert (tmp_path / "back").read_bytes() == file[1].read_bytes()

    def test_a_file_larger_than_allowed_is_refused(
        self, transport: Transport, file: Any, tmp_path: Path
    ) -> None:
        with pytest.raises(TransportError, match=rf"at most 1000 bytes, got {file[2]}"):
            transport.download(str(file[1]), tmp_path / "back", 1000)
        assert not (tmp_path / "back").exists()
        assert not (tmp_path / "back.part").exists()

    def test_a_file_without_end_is_refused(self, transport: Transport, tmp_path: Path) -> None:
        transport.download("/dev/zero", tmp_path / "back", 1000)  # its size is 0, and no more is read
        assert (tmp_path / "back").read_bytes() == b""

    def test_what_the_device_refuses_is_not_a_lost_link(
        self, transport: Transport, file: Any, tmp_path: Path
    ) -> None:
        with pytest.raises(TransportError, match="no such file") as caught:
            transport.download("/no/such/file", tmp_path / "back", 1000)
        assert not isinstance(caught.value, TransportLostError)
        with pytest.raises(TransportError, match="is its disk full") as caught:
            transport.upload(file[1], "/dev/full")
        assert not isinstance(caught.value, TransportLostError)
        assert run(transport, ["true"])[0] == 0


class TestIdentity:
    def test_a_changed_host_key_stops_before_anything_is_sent(
        self, device: Device, sshd: LoopbackSshd
    ) -> None:
        before = sshd.log.count("Connection closed by authenticating") + sshd.log.count("Accepted publickey")
        with pytest.raises(HostKeyError, match=r"expected host key SHA256:AAAA.*got ssh-ed25519 SHA256:"):
            connect(dataclasses.replace(device, host_key="SHA256:" + "A" * 43))
        time.sleep(0.2)
        after = sshd.log.count("Connection closed by authenticating") + sshd.log.count("Accepted publickey")
        assert after == before
        assert not Path(device.root).exists()

    def test_an_unknown_client_key_is_refused(self, device: Device, tmp_path: Path) -> None:
        from toggle_edge.fleet.sshd import write_key

        write_key(tmp_path / "stranger")
        with pytest.raises(TransportError, match="refused the key") as caught:
            connect(dataclasses.replace(device, identity=str(tmp_path / "stranger")))
        assert not isinstance(caught.value, TransportLostError)

    def test_an_unreadable_identity_is_named(self, device: Device, tmp_path: Path) -> None:
        (tmp_path / "key").write_text("not a key")
        for path in ("key", "none"):
            with pytest.raises(TransportError, match=f"identity .*{path}: expected a private key"):
                connect(dataclasses.replace(device, identity=str(tmp_path / path)))

    def test_nobody_there_is_a_lost_link(self, device: Device) -> None:
        with pytest.raises(TransportLostError, match="cannot connect"):
            connect(dataclasses.replace(device, port=1))


class TestBadLinks:
    def test_a_cut_upload_is_continued_not_repeated(self, device: Device, file: Any) -> None:
        files = {file[0]: (file[1], file[2])}
        with Chaos(device.port, cut_after=2 * MEBIBYTE) as chaos:
            far = dataclasses.replace(device, port=chaos.port)
            first = connect(far)
            with pytest.raises(TransportLostError):
                ship(first, far, files)
            part = Path(device.root, "incoming", f"{file[0]}.part")
            wait_until(lambda: part.exists() and part.stat().st_size > 0, "nothing arrived before the cut")
            arrived = part.stat().st_size
            assert arrived < file[2]
            second = connect(far)
            # At most: what was in flight when the link was cut may have arrived since.
            assert 0 < ship(second, far, files) <= file[2] - arrived
            second.close()
        assert Path(device.root, "blobs", "sha256", file[0]).read_bytes() == file[1].read_bytes()

    def test_a_silent_link_is_noticed_during_an_upload(self, device: Device, file: Any) -> None:
        with Chaos(device.port, stall_after=MEBIBYTE) as chaos:
            transport = ssh.connect(dataclasses.replace(device, port=chaos.port), silence_s=1.0)
            transport.mkdirs(device.root)
            started = time.monotonic()
            with pytest.raises(TransportLostError, match="silent for 1 s"):
                transport.upload(file[1], f"{device.root}/file")
            assert time.monotonic() - started < 10

    def test_a_silent_command_is_noticed(self, device: Device) -> None:
        transport = ssh.connect(device, silence_s=1.0)
        with pytest.raises(TransportLostError, match="silent for 1 s"):
            run(transport, ["sleep", "30"])

    def test_a_slow_command_that_speaks_is_left_alone(self, device: Device) -> None:
        transport = ssh.connect(device, silence_s=4.0)
        assert run(transport, ["sh", "-c", "for i in 1 2 3 4 5 6 7 8 9; do sleep 0.5; echo $i; done"])[0] == 0
        transport.close()


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    with LoopbackSshd(tmp_path_factory.mktemp("gate"), "gate") as server:
        yield server.device


class TestJump:
    """A device that is reached through another sshd."""

    @pytest.fixture
    def behind(self, device: Device, gate: Device) -> Device:
        return dataclasses.replace(
            device, jump=Jump(gate.host, gate.port, gate.user, gate.host_key, gate.identity)
        )

    def test_commands_and_files_go_through(self, behind: Device, file: Any, tmp_path: Path) -> None:
        transport = connect(behind)
        try:
            assert request(transport, behind, "facts")["facts"]["cpus"] == os.cpu_count()
            assert ship(transport, behind, {file[0]: (file[1], file[2])}) == file[2]
            transport.download(f"{behind.root}/blobs/sha256/{file[0]}", tmp_path / "back", file[2])
        finally:
            transport.close()
        assert (tmp_path / "back").read_bytes() == file[1].read_bytes()

    def test_nothing_is_left_open(self, behind: Device, gate: Device) -> None:
        def connections() -> int:
            return sum(
                thread.name.startswith("Thread-") and thread.is_alive() for thread in threading.enumerate()
            )

        before = connections()
        connect(behind).close()
        with pytest.raises(HostKeyError):
            connect(dataclasses.replace(behind, host_key="SHA256:" + "A" * 43))
        with pytest.raises(TransportLostError, match="cannot connect from there"):
            connect(dataclasses.replace(behind, port=1))
        wait_until(lambda: connections() <= before, "a connection to the host in between stays open")

    def test_a_changed_key_of_the_host_in_between_stops_everything(self, behind: Device) -> None:
        assert behind.jump is not None
        wrong = dataclasses.replace(behind.jump, host_key="SHA256:" + "A" * 43)
        with pytest.raises(HostKeyError, match=r"through .*expected host key SHA256:AAAA"):
            connect(dataclasses.replace(behind, jump=wrong))

    def test_a_silent_command_is_noticed(self, behind: Device) -> None:
        transport = ssh.connect(behind, silence_s=1.0)
        with pytest.raises(TransportLostError, match="silent for 1 s"):
            run(transport, ["sleep", "30"])

    def test_a_host_in_between_that_goes_away_is_a_lost_link(
        self, behind: Device, gate: Device, file: Any
    ) -> None:
        with Chaos(gate.port, cut_after=2 * MEBIBYTE) as chaos:
            assert behind.jump is not None
            far = dataclasses.replace(behind, jump=dataclasses.replace(behind.jump, port=chaos.port))
            transport = connect(far)
            with pytest.raises(TransportLostError):
                ship(transport, far, {file[0]: (file[1], file[2])})


class TestRun:
    def test_a_run_comes_home(self, device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        set_worker(monkeypatch, HONEST)
        steps: list[str] = []
        result = run_bundle(
            device,
            make_bundle(tmp_path / "bundle"),
            PLAN,
            tmp_path / "home",
            wheels=[make_wheel(tmp_path)],
            on_progress=lambda event: steps.append(event["step"]),
        )
        assert result.record.outcome == "PASS"
        assert result.traces is not None
        assert blob_of(result.traces) == result.record.traces
        assert {"upload", "shipped", "started", "loaded"} <= set(steps)

    def test_a_run_survives_the_loss_of_its_link(
        self, device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("toggle_edge.fleet.session._POLL_S", 0.2)
        set_worker(monkeypatch, HONEST.replace("    answer(", "    import time; time.sleep(1); answer(", 1))
        with Chaos(device.port) as chaos:
            far = dataclasses.replace(device, port=chaos.port)
            steps: list[str] = []

            def watch(event: dict[str, Any]) -> None:
                steps.append(event["step"])
                if event["step"] == "started" and "reconnecting" not in steps:
                    chaos.cut()

            plan = dataclasses.replace(PLAN, passes=["memory"])
            result = run_bundle(
                far,
                make_bundle(tmp_path / "bundle"),
                plan,
                tmp_path / "home",
                wheels=[make_wheel(tmp_path)],
                on_progress=watch,
            )
            assert chaos.connections > 1
        assert result.record.outcome == "PASS"
        assert "reconnecting" in steps
        assert len(list(Path(device.root, "runs").iterdir())) == 1, "it ran once"

    def test_an_interrupt_ends_the_run_on_the_device(
        self, device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        set_worker(monkeypatch, "import time\ndef main(): time.sleep(60)")
        bundle, wheels = make_bundle(tmp_path / "bundle"), [make_wheel(tmp_path)]

        def interrupt(event: dict[str, Any]) -> None:
            if event["step"] == "started":
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run_bundle(device, bundle, PLAN, tmp_path / "home", wheels=wheels, on_progress=interrupt)
        [run] = Path(device.root, "runs").iterdir()
        wait_until((run / "record.json").exists, "the agent went on")
        assert '"outcome":"ABORTED"' in (run / "record.json").read_text()

    def test_a_killed_worker_and_a_timeout_come_home_as_records(
        self, device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bundle, wheels = make_bundle(tmp_path / "bundle"), [make_wheel(tmp_path)]
        endings: list[tuple[str, Callable[[str], bool]]] = [
            ("import os\ndef main(): os.kill(os.getpid(), 9)", lambda reason: "SIGKILL" in reason),
            ("import time\ndef main(): time.sleep(60)", lambda reason: "no result within 1 s" in reason),
        ]
        outcomes = []
        for worker, holds in endings:
            set_worker(monkeypatch, worker)
            plan = dataclasses.replace(PLAN, passes=["memory"], pass_timeout_s=1.0)
            record = run_bundle(device, bundle, plan, tmp_path / "home", wheels=wheels).record
            assert holds(str(record.reason))
            outcomes.append(record.outcome)
        assert outcomes == ["ERROR", "TIMEOUT"]

    def test_a_login_shell_that_prints_is_named(
        self, transport: Transport, device: Device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        chatty = tmp_path / "python"
        chatty.write_text("#!/bin/sh\necho Welcome to your board\n")
        chatty.chmod(0o755)
        with pytest.raises(AgentError, match="got b'Welcome to your board'; does the login shell"):
            request(transport, dataclasses.replace(device, python=str(chatty)), "facts")

    def test_a_missing_interpreter_is_named(self, transport: Transport, device: Device) -> None:
        with pytest.raises(AgentError, match=r"status 127.*python9"):
            request(transport, dataclasses.replace(device, python="python9"), "facts")


class TestLoopbackSshd:
    def test_it_dies_with_its_parent(self, tmp_path: Path) -> None:
        import subprocess
        import sys

        code = (
            "import os, sys, pathlib\nfrom toggle_edge.fleet.sshd import LoopbackSshd\n"
            "server = LoopbackSshd(pathlib.Path(sys.argv[1])).__enter__()\n"
            "print(server._process.pid, flush=True)\nos.kill(os.getpid(), 9)\n"
        )
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        pid = int(done.stdout)
        deadline = time.monotonic() + 5
        while Path(f"/proc/{pid}").exists():
            assert time.monotonic() < deadline, "sshd outlived its parent"
            time.sleep(0.02)

    def test_its_keys_are_private(self, sshd: LoopbackSshd) -> None:
        assert (sshd.folder / "client_key").stat().st_mode & 0o077 == 0

    def test_two_at_once(self, tmp_path: Path) -> None:
        with LoopbackSshd(tmp_path / "a", "a") as first, LoopbackSshd(tmp_path / "b", "b") as second:
            assert first.device.port != second.device.port
            opened: list[Any] = []
            threads = [
                threading.Thread(target=lambda d=server.device: opened.append(connect(d)))
                for server in (first, second)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(opened) == 2
            for transport in opened:
                transport.close()


class TestSilence:
    """A link that says nothing any more is noticed within 10 s (8 s, and what it takes to tell), wherever it stops."""

    @pytest.fixture
    def stopped(self, tmp_path: Path) -> Iterator[Device]:
        """A device whose sshd still has its port, and does nothing more: as after SIGSTOP, or on a frozen machine."""
        with LoopbackSshd(tmp_path / "stopped") as server:
            assert server._process is not None
            os.kill(server._process.pid, signal.SIGSTOP)
            try:
                yield server.device
            finally:
                os.kill(server._process.pid, signal.SIGCONT)

    def test_what_is_waited_for_at_most(self) -> None:
        assert ssh.SILENCE_S + 1.0 <= 10.0
        assert wire.HEARTBEAT_S * 3 <= ssh.SILENCE_S, "a busy agent is not taken for a dead one"

    def test_while_connecting(self, stopped: Device, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("toggle_edge.fleet.ssh_login.SILENCE_S", 1.0)
        with pytest.raises(TransportLostError, match="the connection failed: silent for 1 s"):
            connect(stopped)

    @pytest.mark.parametrize("share", [0.5, 0.95])
    def test_while_logging_in(self, device: Device, monkeypatch: pytest.MonkeyPatch, share: float) -> None:
        with Chaos(device.port) as whole:
            ssh.connect(dataclasses.replace(device, port=whole.port)).close()
        monkeypatch.setattr("toggle_edge.fleet.ssh_login.SILENCE_S", 1.0)
        with Chaos(device.port, stall_after=int(share * whole.passed)) as chaos:
            with pytest.raises(TransportLostError, match="the connection failed: silent for 1 s"):
                connect(dataclasses.replace(device, port=chaos.port))
            assert chaos.fired.is_set()

    @pytest.mark.parametrize("size", [100_000, 4 * MEBIBYTE])
    def test_while_uploading_small_files_and_large_ones(
        self, device: Device, tmp_path: Path, size: int
    ) -> None:
        (tmp_path / "file").write_bytes(os.urandom(size))
        with Chaos(device.port) as chaos:
            transport = ssh.connect(dataclasses.replace(device, port=chaos.port), silence_s=1.0)
            transport.mkdirs(device.root)
            chaos.stall()
            with pytest.raises(TransportLostError, match="silent for 1 s"):
                transport.upload(tmp_path / "file", f"{device.root}/file")

    def test_while_a_command_runs(self, device: Device) -> None:
        with Chaos(device.port) as chaos:
            transport = ssh.connect(dataclasses.replace(device, port=chaos.port), silence_s=1.0)
            threading.Timer(0.5, chaos.stall).start()
            talk = ["sh", "-c", "for i in 1 2 3 4 5 6 7 8 9; do sleep 0.2; echo $i; done; sleep 30"]
            with pytest.raises(TransportLostError, match="silent for 1 s"):
                run(transport, talk)

    def test_while_a_run_is_waited_for(
        self, device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The run's result comes over a new connection; it ran once."""
        monkeypatch.setattr("toggle_edge.fleet.session._POLL_S", 0.2)
        set_worker(monkeypatch, HONEST.replace("    answer(", "    import time; time.sleep(1); answer(", 1))
        steps: list[str] = []
        with Chaos(device.port) as chaos:

            def watch(event: dict[str, Any]) -> None:
                steps.append(event["step"])
                if event["step"] == "started" and "reconnecting" not in steps:
                    chaos.stall()

            result = run_bundle(
                dataclasses.replace(device, port=chaos.port),
                make_bundle(tmp_path / "bundle"),
                dataclasses.replace(PLAN, passes=["memory"]),
                tmp_path / "home",
                wheels=[make_wheel(tmp_path)],
                on_progress=watch,
            )
        assert result.record.outcome == "PASS"
        assert "reconnecting" in steps
        assert len(list(Path(device.root, "runs").iterdir())) == 1


class TestResumedSteps:
    @pytest.mark.parametrize("share", [0.3, 0.9])
    def test_an_upload_that_is_cut_goes_on_by_itself_and_sends_at_most_a_chunk_again(
        self, device: Device, file: Any, share: float
    ) -> None:
        files = {file[0]: (file[1], file[2])}
        with Chaos(device.port, cut_after=int(share * file[2])) as chaos:
            far = dataclasses.replace(device, port=chaos.port)
            session = Session(far, connect)
            session.through(lambda link: ship(link, far, files))
            session.close()
            assert chaos.connections == 2
            assert chaos.passed <= file[2] + CHUNK_BYTES + MEBIBYTE // 4
        assert Path(device.root, "blobs", "sha256", file[0]).read_bytes() == file[1].read_bytes()

    def test_a_device_that_was_never_reached_is_not_waited_for(self, device: Device) -> None:
        tries: list[Device] = []

        def refuse(device: Device) -> Transport:
            tries.append(device)
            raise TransportLostError("nobody there")

        with pytest.raises(TransportLostError, match="nobody there"):
            Session(device, refuse).through(lambda link: None)
        assert len(tries) == 1

    def test_a_link_that_breaks_at_every_try_is_given_up(
        self, device: Device, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("toggle_edge.fleet.session._POLL_S", 0.0)
        tries: list[Transport] = []

        def lose(link: Transport) -> None:
            tries.append(link)
            raise TransportLostError("lost again")

        session = Session(device, lambda device: FakeTransport(lambda question: []))
        with pytest.raises(TransportLostError, match="lost again"):
            session.through(lose)
        assert len(tries) == MOST_LOSSES + 1

    def test_what_the_device_refuses_to_write_is_told(self, transport: Transport, file: Any) -> None:
        with pytest.raises(TransportError, match="is its disk full"):
            transport.upload(file[1], "/dev/full")
        with pytest.raises(TransportError, match="no such file"):
            transport.upload(file[1], "/no/such/folder/file")
        assert run(transport, ["true"])[0] == 0


class TestFeed:
    """What a command reads while it speaks."""

    def test_it_comes_in_order_and_whole(self, transport: Transport, file: Any) -> None:
        pieces = iter(
            [b"head\n", *(file[1].read_bytes()[at : at + 99_991] for at in range(0, file[2], 99_991)), None]
        )
        heard: list[bytes] = []
        done = transport.run(["sha256sum"], b"first\n", heard.append, 60.0, pieces.__next__)
        expected = hashlib.sha256(b"first\nhead\n" + file[1].read_bytes()).hexdigest()
        assert (done.status, heard[0].split()[0].decode()) == (0, expected)

    def test_it_may_wait_for_what_the_command_says(self, transport: Transport) -> None:
        heard: list[bytes] = []
        told: list[bytes] = []

        def feed() -> bytes | None:
            if len(told) == 3:
                return None
            if len(told) > len(heard):
                return b""
            told.append(b"%d\n" % len(told))
            return told[-1]

        script = "while read line; do echo got $line; done"
        done = transport.run(["sh", "-c", script], b"", heard.append, 60.0, feed)
        assert (done.status, heard) == (0, [b"got 0", b"got 1", b"got 2"])

    def test_a_command_that_stops_reading_is_heard_to_its_end(self, transport: Transport) -> None:
        heard: list[bytes] = []
        script = "read line; echo $line; echo enough >&2; exit 3"
        endless = lambda: b"x" * 99_999 + b"\n"  # noqa: E731
        done = transport.run(["sh", "-c", script], b"first\n", heard.append, 60.0, endless)
        assert (done.status, heard, done.stderr) == (3, [b"first"], "enough\n")

    def test_a_command_that_never_speaks_is_given_up(self, transport: Transport) -> None:
        with pytest.raises(TransportError, match=r"did not finish within 0.5 s"):
            transport.run(["sleep", "20"], b"", lambda line: None, 0.5, lambda: b"")

    def test_what_the_feed_raises_comes_through(self, transport: Transport) -> None:
        def feed() -> bytes:
            raise FleetError("this file is gone")

        with pytest.raises(FleetError, match="this file is gone"):
            transport.run(["cat"], b"", lambda line: None, 60.0, feed)
        assert run(transport, ["true"])[0] == 0


class TestTalking:
    def test_a_device_whose_host_went_away_does_not_talk_on(
        self, device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        slow = """
    if request["pass"] == "talk":
        import time
        for at in range(int(request["tokens"])):
            answer("progress", step="token", token=5, at=at)
            time.sleep(0.05)
"""
        marker = '    answer("progress", step="loaded")\n'
        assert marker in HONEST
        set_worker(monkeypatch, HONEST.replace(marker, marker + slow))
        bundle = make_bundle(tmp_path / "bundle")
        with closing(connect(device)) as transport:
            prepared(transport, device, bundle, tmp_path)
        switch_in(device, bundle, wheels=[make_wheel(tmp_path)])

        def leave(token: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            talk(device, [1], 10_000, [], leave)
        wait_until(lambda: not agents_of(device), "the device talks on")
        assert talk(device, [1], 2, [], lambda token: None).tokens == [5, 5]


class TestUploads:
    """Real agents, real bytes."""

    def test_an_agent_that_is_killed_leaves_what_it_had(
        self, device: Device, file: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        files, part = {file[0]: (file[1], file[2])}, Path(device.root, "incoming", f"{file[0]}.part")

        def killed(event: dict[str, Any]) -> None:
            if event["done"] >= 2 * MEBIBYTE:
                [holder] = agents_of(device)
                with suppress(ProcessLookupError):
                    os.kill(holder, signal.SIGKILL)

        transport = connect(device)
        with pytest.raises(AgentError, match="it ended with status"):
            ship(transport, device, files, killed)
        arrived = part.stat().st_size
        assert 2 * MEBIBYTE <= arrived < file[2]
        assert ship(transport, device, files) == file[2] - arrived
        assert Path(device.root, "blobs", "sha256", file[0]).read_bytes() == file[1].read_bytes()
        assert list(part.parent.iterdir()) == []
        transport.close()

    def test_who_lost_the_link_and_does_not_know_it_is_in_nobodys_way(
        self, device: Device, file: Any
    ) -> None:
        """The first agent is stopped with the part in its hands; the second goes on from there all the same."""
        files, part = {file[0]: (file[1], file[2])}, Path(device.root, "incoming", f"{file[0]}.part")
        stopped: list[int] = []

        def stop(event: dict[str, Any]) -> None:
            if event["done"] >= 2 * MEBIBYTE and not stopped:
                [holder] = agents_of(device)
                os.kill(holder, signal.SIGSTOP)
                stopped.append(holder)

        first, second = ssh.connect(device, silence_s=1.0), connect(device)
        try:
            with pytest.raises(TransportLostError, match="silent for 1 s"):
                ship(first, device, files, stop)
            arrived = part.stat().st_size
            assert arrived > 0
            assert ship(second, device, files) == file[2] - arrived
            stored = Path(device.root, "blobs", "sha256", file[0])
            assert stored.read_bytes() == file[1].read_bytes()
        finally:
            os.kill(stopped[0], signal.SIGCONT)
        wait_until(lambda: not agents_of(device), "the first agent does not end")
        assert stored.read_bytes() == file[1].read_bytes()
        assert list(part.parent.iterdir()) == [], "what the first one had is cleared away"
        second.close()

    def test_two_hosts_that_send_the_same_do_no_harm(self, device: Device, file: Any) -> None:
        files = {file[0]: (file[1], file[2])}
        with ThreadPoolExecutor(2) as pool:
            links = [connect(device), connect(device)]
            sent = list(pool.map(lambda link: ship(link, device, files), links))
        assert min(sent) >= 0
        assert Path(device.root, "blobs", "sha256", file[0]).read_bytes() == file[1].read_bytes()
        assert ship(links[0], device, files) == 0
        assert list(Path(device.root, "incoming").iterdir()) == []
        for link in links:
            link.close()

    def test_a_link_that_is_dead_towards_the_device_is_noticed(self, device: Device, file: Any) -> None:
        with Chaos(device.port, stall_after=2 * MEBIBYTE) as chaos:
            far = dataclasses.replace(device, port=chaos.port)
            transport = connect(far)
            started = time.monotonic()
            with pytest.raises(TransportLostError):
                ship(transport, far, {file[0]: (file[1], file[2])})
            assert time.monotonic() - started < 30
