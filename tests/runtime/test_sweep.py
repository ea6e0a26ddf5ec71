"""What is left behind on a device, and what is not: killed agents, old roots, newer roots, full disks."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted_workers import (
    HONEST,
    alive,
    archive_with,
    make_bundle,
    make_wheel,
    new_run_id,
    only,
    prepared,
    spawned_pid,
    start,
    wait_until,
)
from toggle_runtime import blobs, records, sweep
from toggle_runtime.records import RunRecord, from_json, to_json
from toggle_runtime.spool import spool_of

from toggle_edge.bundle import Bundle
from toggle_edge.fleet import agent_client
from toggle_edge.fleet.agent_client import exchange, request
from toggle_edge.fleet.deploy import RunResult, run_bundle
from toggle_edge.fleet.device import Device
from toggle_edge.fleet.local import LocalTransport

SLEEPER = "import time\ndef main():\n time.sleep(60)"


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
def set_worker(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def replace(worker: str) -> None:
        archive = archive_with(worker)
        monkeypatch.setattr(agent_client, "agent_archive", lambda: archive)

    return replace


def aged(path: Path, seconds: float = 2 * sweep.STALE_S) -> Path:
    moment = time.time() - seconds
    os.utime(path, (moment, moment))
    return path


class TestKilled:
    def test_the_next_run_closes_what_a_killed_agent_left(
        self,
        device: Device,
        transport: LocalTransport,
        bundle: Bundle,
        set_worker: Callable[[str], None],
        tmp_path: Path,
    ) -> None:
        set_worker(SLEEPER)
        fields = prepared(transport, device, bundle, tmp_path)
        process = start(device, transport, "run", **fields)
        pid = spawned_pid(device, fields["run_id"])
        process.kill()
        process.communicate()
        wait_until(lambda: not alive(pid), "the worker outlived its agent")
        left = Path(device.root, "runs", fields["run_id"])
        assert (left / "bundle").is_dir()
        set_worker(HONEST)
        plan = dataclasses.asdict(only("memory"))
        again = request(transport, device, "run", **{**fields, "run_id": new_run_id(), "plan": plan})
        assert again["outcome"] == "PASS"
        assert sorted(path.name for path in left.iterdir()) == ["journal.jsonl", "record.json"]
        record = from_json(RunRecord, (left / "record.json").read_text())
        assert (record.outcome, record.bundle) == ("ABORTED", bundle.digest)
        assert "after step 'spawn' without a record" in str(record.reason)
        fetched = request(transport, device, "fetch_record", run_id=fields["run_id"], bundle=bundle.digest)
        assert fetched["outcome"] == "ABORTED"

    def test_a_run_that_a_host_did_not_live_to_keep_is_not_taken_for_fetched(
        self,
        device: Device,
        transport: LocalTransport,
        bundle: Bundle,
        set_worker: Callable[[str], None],
        tmp_path: Path,
    ) -> None:
        set_worker(HONEST)

        def killed(result: RunResult) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run_bundle(
                device,
                bundle,
                only("memory"),
                tmp_path / "home",
                wheels=[make_wheel(tmp_path)],
                keep=killed,
                connect=lambda device: transport,
            )
        [run] = Path(device.root, "runs").iterdir()
        assert not spool_of(Path(device.root), run.name).was_fetched()

    def test_a_run_leaves_its_journal_and_its_results(
        self,
        device: Device,
        transport: LocalTransport,
        bundle: Bundle,
        set_worker: Callable[[str], None],
        tmp_path: Path,
    ) -> None:
        set_worker(HONEST)
        fields = prepared(transport, device, bundle, tmp_path)
        request(transport, device, "run", **{**fields, "plan": dataclasses.asdict(only("verify"))})
        left = Path(device.root, "runs", fields["run_id"])
        assert sorted(each.name for each in left.iterdir()) == ["journal.jsonl", "record.json", "traces.npz"]

    def test_a_busy_device_says_whose_run_it_is_in_fields(
        self,
        device: Device,
        transport: LocalTransport,
        bundle: Bundle,
        set_worker: Callable[[str], None],
        tmp_path: Path,
    ) -> None:
        set_worker(SLEEPER)
        fields = prepared(transport, device, bundle, tmp_path)
        process = start(device, transport, "run", **fields)
        spawned_pid(device, fields["run_id"])
        holder = exchange(transport, device, "run", **{**fields, "run_id": new_run_id()})["holder"]
        process.kill()
        process.communicate()
        assert (holder["owner"], holder["run_id"]) == ("somebody@desk", fields["run_id"])
        assert holder["pid"] == process.pid
        assert abs(holder["since"] - time.time()) < 60


class TestSweep:
    def test_old_leftovers_go_young_ones_and_uploads_stay(self, tmp_path: Path) -> None:
        files = ["agent/a.1.part", "keys/k.pub.7.tmp", "layout.7.tmp", "runs/old/record.json.7.tmp"]
        kept = ["incoming/b.part", "agent/a.pyz", "keys/k.pub", "blobs/sha256/c", "runs/old/record.json"]
        for name in [*files, *kept]:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
            aged(path)
        unpacking = tmp_path / "environments" / "unpacking-x"
        unpacking.mkdir(parents=True)
        (unpacking / "module.py").write_bytes(b"x")
        aged(unpacking)
        (tmp_path / "agent" / "young.part").write_bytes(b"x")
        sweep.sweep(tmp_path, "new")
        assert [name for name in files if (tmp_path / name).exists()] == []
        assert [name for name in kept if not (tmp_path / name).exists()] == []
        assert (tmp_path / "agent" / "young.part").exists()
        assert unpacking.exists(), "something in it is young: somebody unpacks there now"
        aged(unpacking / "module.py")
        aged(unpacking)
        sweep.sweep(tmp_path, "new")
        assert not unpacking.exists()

    def test_what_comes_from_the_future_of_a_clock_that_was_set_back_goes_too(self, tmp_path: Path) -> None:
        path = tmp_path / "layout.7.tmp"
        path.write_bytes(b"x")
        aged(path, -86400.0)
        sweep.sweep(tmp_path, "new")
        assert not path.exists()

    def test_the_run_that_begins_is_left_alone(self, tmp_path: Path) -> None:
        for name in ("new", "old"):
            (tmp_path / "runs" / name / "bundle").mkdir(parents=True)
        sweep.sweep(tmp_path, "new")
        assert (tmp_path / "runs" / "new" / "bundle").exists()
        assert sorted(path.name for path in (tmp_path / "runs" / "old").iterdir()) == [
            "journal.jsonl",
            "record.json",
        ]
        assert from_json(RunRecord, (tmp_path / "runs/old/record.json").read_text()).bundle == "unknown"

    def test_a_torn_journal_still_names_the_last_whole_step(self, tmp_path: Path) -> None:
        spool = spool_of(tmp_path, "old")
        spool.folder.mkdir(parents=True)
        spool.journal("lease", bundle="b" * 64)
        with spool.journal_path.open("ab") as stream:
            stream.write(b'{"step": "verif')
        sweep.sweep(tmp_path, "new")
        record = from_json(RunRecord, spool.record_path.read_text())
        assert (record.bundle, "after step 'lease'" in str(record.reason)) == ("b" * 64, True)


class TestLayout:
    def test_a_root_of_the_first_release_is_adopted_and_its_records_are_read(
        self, device: Device, transport: LocalTransport
    ) -> None:
        old = Path(device.root, "runs", "old")
        old.mkdir(parents=True)
        record = json.loads(to_json(RunRecord(1, "old", "b" * 64, "PASS")))
        del record["parity"], record["signed_by"]  # as the first release wrote it
        (old / "record.json").write_text(json.dumps(record))
        event = request(transport, device, "fetch_record", run_id="old", bundle="b" * 64)
        assert event["outcome"] == "PASS"
        assert Path(device.root, "layout").read_text() == "1\n"

    @pytest.mark.parametrize("text", ["2\n", "", "-1", "one", "1" * 99])
    def test_a_root_of_another_layout_is_refused_and_left_alone(
        self, device: Device, transport: LocalTransport, text: str
    ) -> None:
        Path(device.root).mkdir()
        Path(device.root, "layout").write_text(text)
        before = sorted(Path(device.root).rglob("*"))
        event = exchange(transport, device, "receive", blobs=[])
        assert (event["event"], event["kind"]) == ("error", "layout")
        assert "upgrade this host, or choose another `root`" in event["message"]
        assert [each for each in sorted(Path(device.root).rglob("*")) if "agent" not in each.parts] == before
        assert exchange(transport, device, "facts")["event"] == "result"

    def test_looking_at_a_device_leaves_only_the_agent(
        self, device: Device, transport: LocalTransport
    ) -> None:
        request(transport, device, "facts")
        assert [path.name for path in Path(device.root).iterdir()] == ["agent"]


class TestFullDisk:
    """On a file system of 2 MiB that fills up at every place in turn."""

    @pytest.fixture
    def small(self, tmp_path: Path) -> Iterator[Path]:
        folder = tmp_path / "small"
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=755", "tmpfs", str(folder)]
        try:
            done = subprocess.run(mount, capture_output=True, text=True)
        except OSError as exc:
            pytest.skip(f"no mount command: {exc}")
        if done.returncode:
            pytest.skip(f"mounting is denied: {done.stderr.strip()}")
        yield folder
        subprocess.run(["umount", "-l", str(folder)], check=True)

    def fill(self, folder: Path, leave: int) -> Path:
        path = folder / "filler"
        free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
        path.write_bytes(b"\0" * max(0, free - leave))
        return path

    def listing(self, root: Path) -> set[str]:
        return {str(path.relative_to(root)) for path in root.rglob("*")}

    def test_a_durable_write_keeps_the_old_content_and_leaves_no_half(self, small: Path) -> None:
        path = small / "file"
        blobs.write_durably(path, b"old")
        self.fill(small, 8192)
        with pytest.raises(OSError, match="No space left"):
            blobs.write_durably(path, b"n" * 100_000)
        assert path.read_bytes() == b"old"
        assert self.listing(small) == {"file", "filler"}

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
    def test_the_message_says_what_is_full_and_what_to_do(self, tmp_path: Path, code: int) -> None:
        text = blobs.describe(OSError(code, os.strerror(code)), tmp_path / "not" / "made")
        assert f"the disk that holds {tmp_path / 'not' / 'made'} is full" in text
        assert "bytes free)" in text
        assert "free some space there" in text
        assert "full" not in blobs.describe(PermissionError(errno.EACCES, "denied", "x"), tmp_path)

    @pytest.mark.parametrize("leave", [0, 4096, 12288, 40960])
    def test_a_run_ends_in_an_answer_wherever_the_disk_fills_up(
        self,
        small: Path,
        transport: LocalTransport,
        bundle: Bundle,
        set_worker: Callable[[str], None],
        tmp_path: Path,
        leave: int,
    ) -> None:
        device = Device(name="full", transport="local", root=str(small / "device"), python=sys.executable)
        set_worker(HONEST.replace('stream.write(b"traces")', 'stream.write(b"t" * 500_000)'))
        fields = prepared(transport, device, bundle, tmp_path)
        agent_client.install(transport, device)
        plan = dataclasses.asdict(only("verify"))
        fields = {**fields, "plan": plan}
        before = self.listing(small)
        filler = self.fill(small, leave)
        event = exchange(transport, device, "run", **fields)
        filler.unlink()
        left = self.listing(small) - before - {"device/lease", "device/fence", "device/runs"}
        run = f"device/runs/{fields['run_id']}"
        if event["event"] == "error":
            assert event["kind"] == "system"
            assert f"the disk that holds {device.root} is full" in event["message"]
            assert left == set(), "nothing half-written is left"
        else:
            assert event["outcome"] == "ERROR"
            assert "No space left on device" in event["reason"]
            assert left == {run, f"{run}/journal.jsonl", f"{run}/record.json"}
            from_json(RunRecord, (small / run / "record.json").read_text())
        after = exchange(transport, device, "run", **{**fields, "run_id": new_run_id()})
        assert after.get("outcome") == "PASS", "with space again, it runs"

    def test_a_worker_on_a_full_disk_says_so(
        self, small: Path, bundle: Bundle, transport: LocalTransport, tmp_path: Path
    ) -> None:
        # The real worker's own catch: a pass that cannot write.
        worker = Path(blobs.__file__).with_name("worker.py")
        self.fill(small, 0)
        code = (
            f"import sys, types; sys.path.insert(0, {str(worker.parents[1])!r})\n"
            "def full(request, progress):\n"
            "    open(request['output'] + '/traces.npz', 'wb').write(b't' * 100000)\n"
            "passes = types.ModuleType('toggle_runtime.passes'); passes.PASSES = {'verify': full}\n"
            "import toggle_runtime; toggle_runtime.passes = passes\n"
            "sys.modules['toggle_runtime.passes'] = passes\n"
            "from toggle_runtime import worker; sys.exit(worker.main())\n"
        )
        asked = json.dumps({"pass": "verify", "output": str(small), "environment": str(tmp_path)})
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", code], input=asked + "\n", capture_output=True, text=True
        )
        answer: dict[str, Any] = json.loads(done.stdout)
        assert (answer["event"], done.returncode) == ("error", 1)
        assert f"the disk that holds {small} is full (0 bytes free)" in answer["message"]

    def test_an_environment_that_does_not_fit_leaves_nothing(
        self, small: Path, transport: LocalTransport, tmp_path: Path
    ) -> None:
        from toggle_edge.errors import AgentError
        from toggle_edge.fleet.deploy import prepare_environment

        device = Device(name="full", transport="local", root=str(small / "device"), python=sys.executable)
        agent_client.install(transport, device)
        wheel = make_wheel(tmp_path, **{"engine/core.bin": os.urandom(300_000)})
        self.fill(small, 400_000)
        with pytest.raises(
            AgentError, match=rf"the disk that holds {device.root} is full .* free some space"
        ):
            prepare_environment(transport, device, [wheel])
        assert list(Path(device.root, "environments").iterdir()) == []


class TestCommit:
    """A part is taken away before it is verified, so that nobody empties it between that and its publication."""

    BLOB = records.Blob(hashlib.sha256(b"content").hexdigest(), 7)

    def part(self, root: Path) -> Path:
        path = blobs.part_path(root, self.BLOB.sha256)
        path.parent.mkdir(parents=True)
        path.write_bytes(b"content")
        return path

    def test_a_part_that_is_begun_anew_meanwhile_is_neither_published_nor_lost(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        part, sync = self.part(tmp_path), blobs.sync_file

        def somebody_begins_anew(path: Path) -> None:
            if path.parent == part.parent:
                part.write_bytes(b"con")
            sync(path)

        monkeypatch.setattr(blobs, "sync_file", somebody_begins_anew)
        assert blobs.commit(tmp_path, [self.BLOB]) == {"committed": [self.BLOB.sha256], "refused": []}
        assert blobs.blob_path(tmp_path, self.BLOB.sha256).read_bytes() == b"content"
        assert part.read_bytes() == b"con"

    def test_a_part_whose_agent_was_killed_is_not_sent_again(self, tmp_path: Path) -> None:
        part = self.part(tmp_path)
        dead = subprocess.Popen(["true"])
        dead.wait()
        part.rename(part.with_name(f"{part.name}.{dead.pid}.tmp"))
        assert blobs.missing(tmp_path, [self.BLOB.sha256])["partial"] == {self.BLOB.sha256: 7}
        part.rename(part.with_name(f"{part.name}.{os.getpid()}.tmp"))
        assert blobs.missing(tmp_path, [self.BLOB.sha256])["partial"] == {}, "an agent that lives has it"

    def test_what_never_arrived_is_refused(self, tmp_path: Path) -> None:
        [refused] = blobs.commit(tmp_path, [self.BLOB])["refused"]
        assert refused["message"] == "nothing has arrived"
