"""The agent as a real process, its worker a script: every way in which a run may end leaves a record."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_workers import (
    HONEST,
    PLAN,
    alive,
    archive_with,
    journal,
    make_bundle,
    make_wheel,
    new_run_id,
    only,
    prepared,
    spawned_pid,
    start,
    wait_until,
)
from toggle_runtime import PROTOCOL_VERSION, blobs
from toggle_runtime.meters import open_energy
from toggle_runtime.plan import CONTEXT_RESTARTS, Plan
from toggle_runtime.records import Blob, MemorySample, RunRecord, from_json
from toggle_runtime.tree import Tree

from toggle_edge.bundle import Bundle
from toggle_edge.errors import AgentError, FleetError
from toggle_edge.fleet import agent_client
from toggle_edge.fleet.agent_client import exchange, request
from toggle_edge.fleet.deploy import prepare_environment, run_bundle
from toggle_edge.fleet.device import Device
from toggle_edge.fleet.local import LocalTransport
from toggle_edge.fleet.shipping import ship

SetWorker = Callable[[str], None]


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(name="here", transport="local", root=str(tmp_path / "device"), python=sys.executable)


@pytest.fixture
def transport(tmp_path: Path) -> LocalTransport:
    return LocalTransport(tmp_path)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle")


@pytest.fixture
def set_worker(monkeypatch: pytest.MonkeyPatch) -> SetWorker:
    def replace(worker: str) -> None:
        archive = archive_with(worker)
        monkeypatch.setattr(agent_client, "agent_archive", lambda: archive)

    return replace


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A device on which everything is prepared: one process per test fewer, times five."""
    folder = tmp_path_factory.mktemp("workshop")
    device = Device(name="shop", transport="local", root=str(folder / "device"), python=sys.executable)
    bundle, transport = make_bundle(folder / "bundle"), LocalTransport(folder)
    return {"device": device, "transport": transport, "fields": prepared(transport, device, bundle, folder)}


@pytest.fixture
def go(workshop: dict[str, Any], set_worker: SetWorker) -> Callable[..., RunRecord]:
    def run(worker: str = HONEST, plan: Plan = PLAN) -> RunRecord:
        set_worker(worker)
        fields = {**workshop["fields"], "run_id": new_run_id(), "plan": dataclasses.asdict(plan)}
        event = request(workshop["transport"], workshop["device"], "run", **fields)
        return from_json(RunRecord, Path(event["record"]["path"]).read_text())

    return run


HAS_METER = open_energy(Tree(), "onnx-cpu")[0] is not None


class TestRun:
    def test_all_passes_come_home(
        self, device: Device, bundle: Bundle, set_worker: SetWorker, tmp_path: Path
    ) -> None:
        set_worker(HONEST)
        result = run_bundle(device, bundle, PLAN, tmp_path / "home", wheels=[make_wheel(tmp_path)])
        record = result.record
        assert (record.outcome, record.reason) == ("PASS", None)
        assert record.modes[0].avgpp == 97.5
        assert record.noise_floor == {"coherence": 0.001}
        assert [sample.generations[0].token_ns for sample in record.latency] == [[1, 2], [1, 2]]
        assert record.memory == MemorySample(4096, "fake")
        assert record.modules == ["numpy"]
        assert result.traces is not None
        assert result.traces.read_bytes() == b"traces"
        assert [each.name for each in record.passes] == PLAN.passes
        assert {"governor_before", "load_average_after", "cpu_model"} <= set(record.conditions)
        processes = 6 if HAS_METER else 5
        steps = ["lease", "verified", "materialised", *["spawn", "exit"] * processes, "record", "fetched"]
        assert journal(device, record.run_id) == steps

    def test_the_worker_gets_a_small_environment_and_the_artifact(
        self, go: Callable[..., RunRecord], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("QEMU_CPU", "cortex-a76")
        environment = go(plan=only("verify")).environment
        assert environment["artifact"] == "fp16 "
        assert (environment["OMP_NUM_THREADS"], environment["telemetry"]) == ("1", "1")
        known = {"PATH", "HOME", "LANG", "TMPDIR", "OMP_NUM_THREADS", "ORT_DISABLE_TELEMETRY", "QEMU_CPU"}
        found = set(environment["extra"].split())
        # LC_CTYPE is Python's own doing in the C locale.
        assert found <= known | {"LC_CTYPE"}
        assert "QEMU_CPU" in found

    def test_long_prompts_are_for_the_first_restarts_only(self, go: Callable[..., RunRecord]) -> None:
        worker = HONEST.replace(
            '"load_ns": 7, "generations"', '"load_ns": len(request.get("contexts", [])), "generations"'
        )
        plan = dataclasses.replace(only("latency"), restarts=CONTEXT_RESTARTS + 2, contexts=[20, 30])
        found = [sample.load_ns for sample in go(worker, plan).latency]
        assert found == [2] * CONTEXT_RESTARTS + [0, 0]

    @pytest.mark.skipif(HAS_METER, reason="this machine has a readable energy meter")
    def test_energy_without_a_meter_says_why_and_spawns_nothing(
        self, go: Callable[..., RunRecord], workshop: dict[str, Any]
    ) -> None:
        record = go(plan=only("energy"))
        assert record.energy is not None
        assert record.energy.gross_mj is None
        assert record.energy.reason
        assert "spawn" not in journal(workshop["device"], record.run_id)
        assert record.outcome == "PASS"
        assert record.reason == "measured only: the plan has no verify pass"

    @pytest.mark.parametrize(
        ("verdict", "outcome"),
        [
            ("MARGINAL", "PASS"),
            ("VIOLATED", "FAIL"),
            ("UNSET", "ERROR"),
            ("x", "ERROR"),
        ],
    )
    def test_the_outcome_is_the_default_modes_verdict(
        self, go: Callable[..., RunRecord], verdict: str, outcome: str
    ) -> None:
        worker = HONEST.replace('"optimal", "verdict": "SATISFIED"', f'"optimal", "verdict": "{verdict}"')
        assert worker != HONEST
        assert go(worker, only("verify")).outcome == outcome

    def test_a_missing_default_mode_is_an_error(self, go: Callable[..., RunRecord]) -> None:
        record = go(HONEST.replace('"optimal"', '"strict"'), only("verify"))
        assert record.outcome == "ERROR"
        assert "default mode 'optimal'" in str(record.reason)

    def test_what_was_measured_before_a_failure_is_kept(self, go: Callable[..., RunRecord]) -> None:
        record = go(HONEST.replace('"load_ns": 7', '"load_ns": "x"'))
        assert record.outcome == "ERROR"
        assert "pass latency" in str(record.reason)
        assert record.modes[0].verdict == "SATISFIED"
        assert record.traces is not None

    def test_a_killed_agent_takes_its_worker_along_and_the_run_is_aborted(
        self,
        device: Device,
        transport: LocalTransport,
        bundle: Bundle,
        set_worker: SetWorker,
        tmp_path: Path,
    ) -> None:
        set_worker("import time\ndef main():\n time.sleep(60)")
        fields = prepared(transport, device, bundle, tmp_path)
        process = start(device, transport, "run", **fields)
        pid = spawned_pid(device, fields["run_id"])
        process.kill()
        process.communicate()
        wait_until(lambda: not alive(pid), "the worker outlived its agent")
        fetch = {"run_id": fields["run_id"], "bundle": bundle.digest}
        event = request(transport, device, "fetch_record", **fetch)
        assert event["outcome"] == "ABORTED"
        assert "'spawn'" in event["reason"]
        again = request(transport, device, "fetch_record", **fetch)
        assert again == event


class TestRefusal:
    @pytest.mark.parametrize("what", ["file artifact/weights.bin", "manifest"])
    def test_one_flipped_bit_is_refused_before_anything_runs(
        self,
        device: Device,
        transport: LocalTransport,
        bundle: Bundle,
        set_worker: SetWorker,
        tmp_path: Path,
        what: str,
    ) -> None:
        set_worker(HONEST)
        fields = prepared(transport, device, bundle, tmp_path)
        [blob] = bundle.manifest.files.values()
        digest = bundle.digest if what == "manifest" else blob.sha256
        stored = Path(device.root, "blobs", "sha256", digest)
        data = bytearray(stored.read_bytes())
        data[3] ^= 128
        stored.unlink()
        stored.write_bytes(data)
        event = request(transport, device, "run", **fields)
        assert event["outcome"] == "ERROR"
        assert f"digest: {what}: expected sha256 {digest}" in event["reason"]
        assert journal(device, fields["run_id"]) == ["lease", "record"]
        healed = run_bundle(device, bundle, only("memory"), tmp_path / "home", wheels=[make_wheel(tmp_path)])
        assert healed.record.outcome == "PASS", "deploying again sends the blob again"

    def test_a_busy_device_names_its_holder(
        self,
        device: Device,
        transport: LocalTransport,
        bundle: Bundle,
        set_worker: SetWorker,
        tmp_path: Path,
    ) -> None:
        set_worker("import time\ndef main():\n time.sleep(60)")
        fields = prepared(transport, device, bundle, tmp_path)
        process = start(device, transport, "run", **fields)
        spawned_pid(device, fields["run_id"])
        second = exchange(transport, device, "run", **{**fields, "run_id": new_run_id()})
        waiting = exchange(transport, device, "fetch_record", run_id=fields["run_id"], bundle=bundle.digest)
        process.kill()
        process.communicate()
        assert (second["kind"], waiting["kind"]) == ("lease", "running")
        assert "somebody@desk" in second["message"]

    def test_an_aborted_run_ends_with_a_record(
        self,
        device: Device,
        transport: LocalTransport,
        bundle: Bundle,
        set_worker: SetWorker,
        tmp_path: Path,
    ) -> None:
        set_worker("import time\ndef main():\n time.sleep(60)")
        fields = prepared(transport, device, bundle, tmp_path)
        asked = {"run_id": fields["run_id"]}
        assert exchange(transport, device, "abort", **asked)["kind"] == "unknown"
        process = start(device, transport, "run", **fields)
        pid = spawned_pid(device, fields["run_id"])
        assert exchange(transport, device, "abort", run_id="other")["kind"] == "unknown"
        request(transport, device, "abort", **asked)
        out, _ = process.communicate(timeout=20)
        event = json.loads(out.splitlines()[-1])
        assert (event["event"], event["outcome"]) == ("result", "ABORTED")
        assert not alive(pid)
        assert exchange(transport, device, "abort", **asked)["kind"] == "unknown"

    def test_a_run_id_is_used_once(
        self,
        device: Device,
        transport: LocalTransport,
        bundle: Bundle,
        set_worker: SetWorker,
        tmp_path: Path,
    ) -> None:
        set_worker(HONEST)
        fields = prepared(transport, device, bundle, tmp_path)
        first = request(transport, device, "run", **fields)
        assert exchange(transport, device, "run", **fields)["kind"] == "run"
        fetched = request(transport, device, "fetch_record", run_id=fields["run_id"], bundle=bundle.digest)
        assert fetched == first

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"plan": {"passes": ["dance"]}}, "plan.passes"),
            ({"plan": {"passes": [], "restarts": 0}}, "plan.restarts"),
            ({"plan": {"passes": [], "speed": 1}}, "unknown key 'speed'"),
            ({"plan": []}, "plan: expected dict"),
            ({"run_id": "../../x"}, "run_id"),
            ({"bundle": "../x"}, "sha256"),
            ({"environment": "../x"}, "environment: expected"),
            ({"environment": "0" * 64}, "does not exist"),
        ],
    )
    def test_a_wrong_request_is_answered_not_run(
        self, workshop: dict[str, Any], change: Any, message: str
    ) -> None:
        fields = {**workshop["fields"], "run_id": new_run_id(), **change}
        with pytest.raises(AgentError, match=message):
            request(workshop["transport"], workshop["device"], "run", **fields)
        assert not Path(workshop["device"].root, "runs", fields["run_id"]).exists()

    @pytest.mark.parametrize(
        ("line", "kind"),
        [
            (b"", "request"),
            (b"hello\n", "request"),
            (b"[]\n", "request"),
            (b"\xff\xfe\n", "request"),
            (b"[" * 100_000 + b"\n", "request"),
            (b'{"protocol": 5, "command": "facts", "root": "x"}\n', "protocol"),
            (b'{"protocol": 3, "command": "facts", "root": "x"}\n', "protocol"),
            (b'{"command": "facts", "root": "x"}\n', "protocol"),
            (b'{"protocol": 4, "command": "reboot", "root": "x"}\n', "request"),
            (b'{"protocol": 4, "command": "facts"}\n', "request"),
        ],
    )
    def test_a_malformed_request_gets_one_error_event(
        self, device: Device, transport: LocalTransport, line: bytes, kind: str
    ) -> None:
        path = agent_client.install(transport, device)
        done = subprocess.run([sys.executable, "-I", "-S", path, "serve"], input=line, capture_output=True)
        [event] = [json.loads(text) for text in done.stdout.splitlines()]
        assert (event["event"], event["kind"], done.returncode) == ("error", kind, 0)


class TestStore:
    def test_only_what_is_missing_is_sent(
        self, device: Device, transport: LocalTransport, tmp_path: Path
    ) -> None:
        files = {}
        for index in range(3):
            path = tmp_path / f"file{index}"
            path.write_bytes(bytes([index]) * 1000)
            files[blobs.blob_of(path).sha256] = (path, 1000)
        first = dict(list(files.items())[:2])
        assert ship(transport, device, first) == 2000
        assert ship(transport, device, files) == 1000
        assert ship(transport, device, files) == 0

    def test_a_partial_upload_is_continued(
        self, device: Device, transport: LocalTransport, tmp_path: Path
    ) -> None:
        path = tmp_path / "file"
        path.write_bytes(os.urandom(5000))
        digest = blobs.blob_of(path).sha256
        incoming = Path(device.root, "incoming")
        incoming.mkdir(parents=True)
        (incoming / f"{digest}.part").write_bytes(path.read_bytes()[:3000])
        assert ship(transport, device, {digest: (path, 5000)}) == 2000
        assert Path(device.root, "blobs", "sha256", digest).read_bytes() == path.read_bytes()

    def test_a_damaged_partial_upload_is_sent_again(
        self, device: Device, transport: LocalTransport, tmp_path: Path
    ) -> None:
        path = tmp_path / "file"
        path.write_bytes(os.urandom(5000))
        digest = blobs.blob_of(path).sha256
        incoming = Path(device.root, "incoming")
        incoming.mkdir(parents=True)
        (incoming / f"{digest}.part").write_bytes(b"x" * 3000)
        assert ship(transport, device, {digest: (path, 5000)}) == 2000 + 5000
        (incoming / f"{digest}.part").write_bytes(b"x" * 9000)
        Path(device.root, "blobs", "sha256", digest).unlink()
        assert ship(transport, device, {digest: (path, 5000)}) == 5000

    def test_a_file_that_is_not_its_digest_never_gets_in(
        self, device: Device, transport: LocalTransport, tmp_path: Path
    ) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"12345")
        with pytest.raises(FleetError, match=r"expected sha256 0000.*got sha256 59944"):
            ship(transport, device, {"0" * 64: (path, 5)})
        assert list(Path(device.root, "blobs", "sha256").iterdir()) == []
        assert list(Path(device.root, "incoming").iterdir()) == []

    @settings(max_examples=60, deadline=None)
    @given(st.binary(max_size=300), st.binary(max_size=300))
    def test_mismatch_accepts_the_same_bytes_only(self, wanted: bytes, found: bytes) -> None:
        import hashlib
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "blob")
            path.write_bytes(found)
            problem = blobs.mismatch(path, Blob(hashlib.sha256(wanted).hexdigest(), len(wanted)))
        assert (problem is None) == (wanted == found)

    def test_blobs_are_copied_where_links_are_denied(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def denied(*_: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", denied)
        (tmp_path / "source").write_bytes(b"data")
        blobs.place(tmp_path / "source", tmp_path / "deep" / "target")
        assert (tmp_path / "deep" / "target").read_bytes() == b"data"


class TestEnvironment:
    def test_wheels_are_unpacked_once(
        self, device: Device, transport: LocalTransport, tmp_path: Path
    ) -> None:
        wheel = make_wheel(tmp_path, **{"engine/core.py": b"x = 1\n"})
        identifier = prepare_environment(transport, device, [wheel])
        module = Path(device.root, "environments", identifier, "engine", "core.py")
        before = module.stat().st_mtime_ns
        assert prepare_environment(transport, device, [wheel]) == identifier
        assert module.stat().st_mtime_ns == before
        assert module.read_text() == "x = 1\n"

    @pytest.mark.parametrize(
        "member", ["../evil.py", "/evil.py", "a/../../evil.py", "a\\..\\evil.py", "c:evil"]
    )
    def test_members_that_escape_are_refused(
        self, device: Device, transport: LocalTransport, tmp_path: Path, member: str
    ) -> None:
        self.refused(
            transport, device, make_wheel(tmp_path, **{member: b"x"}), "plain files inside the wheel"
        )

    def test_symlinks_are_refused(self, device: Device, transport: LocalTransport, tmp_path: Path) -> None:
        wheel = make_wheel(tmp_path)
        info = zipfile.ZipInfo("link")
        info.external_attr = 0o120777 << 16
        with zipfile.ZipFile(wheel.path, "a") as archive:
            archive.writestr(info, "/")
        blob = blobs.blob_of(wheel.path)
        changed = dataclasses.replace(wheel, sha256=blob.sha256, size=blob.size)
        self.refused(transport, device, changed, "plain files inside the wheel")

    def test_what_is_not_a_zip_is_refused(
        self, device: Device, transport: LocalTransport, tmp_path: Path
    ) -> None:
        wheel = make_wheel(tmp_path)
        wheel.path.write_bytes(b"not a zip")
        blob = blobs.blob_of(wheel.path)
        changed = dataclasses.replace(wheel, sha256=blob.sha256, size=blob.size)
        self.refused(transport, device, changed, "expected a zip archive")

    def test_a_zip_bomb_is_refused(self, device: Device, transport: LocalTransport, tmp_path: Path) -> None:
        wheel = make_wheel(tmp_path, zeros=b"\0" * 1000)
        data = wheel.path.read_bytes()
        # The declared size is what an unpacker reserves: 4 GiB - 1 in the central directory.
        data = data[: data.rindex(b"PK\1\2")] + data[data.rindex(b"PK\1\2") :].replace(
            (1000).to_bytes(4, "little"), b"\xff\xff\xff\xfe"
        )
        wheel.path.write_bytes(data)
        blob = blobs.blob_of(wheel.path)
        changed = dataclasses.replace(wheel, sha256=blob.sha256, size=blob.size)
        self.refused(transport, device, changed, "would unpack to more than")

    def refused(self, transport: LocalTransport, device: Device, wheel: Any, message: str) -> None:
        with pytest.raises(AgentError, match=message):
            prepare_environment(transport, device, [wheel])
        assert list(Path(device.root, "environments").iterdir()) == []


class TestStandingAlone:
    def test_the_control_plane_imports_the_standard_library_only(
        self, device: Device, transport: LocalTransport
    ) -> None:
        assert request(transport, device, "facts")["facts"]["modules"] == []

    @pytest.mark.skipif(sys.version_info < (3, 11), reason="the host needs 3.11")
    def test_every_control_plane_module_imports_alone(self, tmp_path: Path) -> None:
        archive = tmp_path / "agent.pyz"
        archive.write_bytes(agent_client.agent_archive())
        names = (
            "agent blobs codec ed25519 environments facts fence kills layout lease meters plan processes records run "
            "spool supervise sweep trust wire"
        )
        code = (
            f"import sys; sys.path.insert(0, {str(archive)!r})\n"
            f"for name in {names.split()!r}: __import__('toggle_runtime.' + name)\n"
            "from toggle_runtime.facts import foreign_modules\n"
            "loaded = {n for n in sys.modules if n.startswith('toggle_runtime.')}\n"
            "print(foreign_modules(), sorted(loaded & {'toggle_runtime.' + n for n in "
            "('worker', 'stl', 'signals', 'backends', 'passes', 'canary')}))\n"
        )
        done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)
        assert done.stdout.strip() == "[] []", done.stderr

    def test_the_archive_is_small_and_depends_on_the_sources_alone(self) -> None:
        first = agent_client.agent_archive()
        assert agent_client.agent_archive.__wrapped__() == first
        assert len(first) < 200_000
        with zipfile.ZipFile(io.BytesIO(first)) as archive:
            assert "__main__.py" in archive.namelist()
            assert not [name for name in archive.namelist() if "__pycache__" in name]

    def test_a_host_that_is_gone_does_not_stop_the_run(
        self, device: Device, transport: LocalTransport, bundle: Bundle, set_worker: SetWorker, tmp_path: Path
    ) -> None:
        flood = HONEST.replace(
            'answer("progress", step="loaded")', '[answer("progress", step="x" * 2000) for _ in range(200)]'
        )
        assert flood != HONEST
        set_worker(flood)
        fields = prepared(transport, device, bundle, tmp_path)
        process = start(device, transport, "run", **fields)
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        process.wait(60)
        event = request(transport, device, "fetch_record", run_id=fields["run_id"], bundle=bundle.digest)
        assert event["outcome"] == "PASS"

    def test_a_host_that_does_not_read_does_not_stop_the_run(
        self, device: Device, transport: LocalTransport, bundle: Bundle, set_worker: SetWorker, tmp_path: Path
    ) -> None:
        flood = HONEST.replace(
            'answer("progress", step="loaded")', '[answer("progress", step="x" * 2000) for _ in range(200)]'
        )
        set_worker(flood)
        fields = prepared(transport, device, bundle, tmp_path)
        process = start(device, transport, "run", **fields)
        record = Path(device.root, "runs", fields["run_id"], "record.json")
        wait_until(record.exists, "the run stopped because nobody reads its progress")
        out, _ = process.communicate()  # now read: whole lines, the result last
        events = [json.loads(line) for line in out.splitlines()]
        assert events[-1]["event"] == "result"

    def test_a_busy_agent_is_never_silent_for_long(
        self, device: Device, transport: LocalTransport, bundle: Bundle, set_worker: SetWorker, tmp_path: Path
    ) -> None:
        set_worker(HONEST.replace("    answer(", "    import time; time.sleep(2.6); answer(", 1))
        fields = prepared(transport, device, bundle, tmp_path)
        question = {"protocol": PROTOCOL_VERSION, "command": "run", "root": device.root, **fields}
        question["plan"] = dataclasses.asdict(only("memory"))
        moments = [time.monotonic()]
        path = agent_client.install(transport, device)
        transport.run(
            [device.python, "-I", "-S", path, "serve"],
            json.dumps(question).encode() + b"\n",
            lambda line: moments.append(time.monotonic()),
            60.0,
        )
        assert max(after - before for before, after in itertools.pairwise(moments)) < 5.0
        assert len(moments) > 4

    def test_an_agent_whose_request_never_comes_ends(self, tmp_path: Path) -> None:
        """Over a link that died when it had been started, and whose sshd does not know."""
        archive = tmp_path / "agent.pyz"
        archive.write_bytes(archive_with(HONEST, serving={"REQUEST_WAIT_S = 120": "REQUEST_WAIT_S = 1"}))
        command = [sys.executable, "-I", "-S", str(archive), "serve"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as agent:
            assert agent.stdin is not None
            agent.stdin.write(b'{"protocol": 4, "comm')
            agent.stdin.flush()
            assert agent.wait(30) == -signal.SIGALRM

    def test_bytes_that_stop_coming_end_an_upload_and_stay(
        self, device: Device, transport: LocalTransport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        archive = archive_with(HONEST, store={"_LONGEST_WAIT_S = 600.0": "_LONGEST_WAIT_S = 1.5"})
        monkeypatch.setattr(agent_client, "agent_archive", lambda: archive)
        pieces = iter([b"12345", *[b""] * 100])
        digest, heard = "0" * 64, list[Any]()
        with pytest.raises(AgentError, match="link: the host's bytes stopped after 5, 2 s ago"):
            request(
                transport,
                device,
                "receive",
                on_progress=heard.append,
                feed=lambda: next(pieces) if heard else b"",
                blobs=[{"sha256": digest, "size": 10}],
            )
        assert Path(device.root, "incoming", f"{digest}.part").read_bytes() == b"12345"
        assert heard[-1]["bytes"] == 5

    def test_stray_prints_do_not_corrupt_the_protocol(self, tmp_path: Path) -> None:
        archive = tmp_path / "agent.pyz"
        archive.write_bytes(agent_client.agent_archive())
        code = (
            f"import sys, os; sys.path.insert(0, {str(archive)!r})\n"
            "from toggle_runtime import serving\n"
            "from toggle_runtime.commands import device\n"
            "def noisy(request, wire):\n"
            "    print('stray'); os.write(1, b'stray'); return {'answer': 1}\n"
            "device.facts = noisy\n"
            "serving.serve()\n"
        )
        line = (
            json.dumps({"protocol": PROTOCOL_VERSION, "command": "facts", "root": str(tmp_path)}).encode()
            + b"\n"
        )
        done = subprocess.run([sys.executable, "-I", "-S", "-c", code], input=line, capture_output=True)
        assert json.loads(done.stdout) == {"event": "result", "answer": 1}
        assert done.stderr.count(b"stray") == 2
