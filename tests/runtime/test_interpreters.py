"""The agent under every Python from 3.8 on that this machine has: a run, its refusals, and the formats it reads."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from interpreters import VERSIONS, interpreter
from rfc8032 import VECTORS
from scripted_workers import (
    HONEST,
    PLAN,
    archive_with,
    make_bundle,
    make_wheel,
    new_run_id,
    prepared,
)
from toggle_runtime import PROTOCOL_VERSION
from toggle_runtime.records import (
    Blob,
    EnergySample,
    Generation,
    LatencySample,
    ParitySample,
    RunRecord,
    from_json,
    signed_bytes,
    to_json,
)

from toggle_edge.bundle import Bundle
from toggle_edge.fleet import agent_client
from toggle_edge.fleet.agent_client import exchange, request
from toggle_edge.fleet.deploy import trust_key
from toggle_edge.fleet.device import Device
from toggle_edge.fleet.facts import facts_of
from toggle_edge.fleet.local import LocalTransport
from toggle_edge.fleet.shipping import ship
from toggle_edge.fleet.transport import Feed, nothing_more

SHORT = dataclasses.replace(PLAN, passes=["parity", "verify", "latency", "memory"], restarts=1)


@dataclasses.dataclass(frozen=True)
class Bench:
    device: Device
    transport: LocalTransport
    bundle: Bundle
    fields: dict[str, Any]

    def run(self, **changed: Any) -> RunRecord:
        fields = {**self.fields, "run_id": new_run_id(), "plan": dataclasses.asdict(SHORT), **changed}
        event = request(self.transport, self.device, "run", **fields)
        return from_json(RunRecord, Path(event["record"]["path"]).read_text(encoding="utf-8"))


@pytest.fixture(scope="module", params=VERSIONS)
def python(request: pytest.FixtureRequest) -> str:
    path = interpreter(request.param)
    if path is None:
        pytest.skip(f"no Python {request.param} on this machine")
    return path


@pytest.fixture(scope="module")
def bench(python: str, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("bench")
    device = Device(name="bench", transport="local", root=str(folder / "device"), python=python)
    bundle, transport = make_bundle(folder / "bundle"), LocalTransport(folder)
    return Bench(device, transport, bundle, prepared(transport, device, bundle, folder))


@pytest.fixture
def set_worker(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def replace(worker: str) -> None:
        archive = archive_with(worker)
        monkeypatch.setattr(agent_client, "agent_archive", lambda: archive)

    return replace


def test_a_whole_run(bench: Bench, set_worker: Callable[[str], None]) -> None:
    set_worker(HONEST)
    record = bench.run()
    assert (record.outcome, record.reason) == ("PASS", None)
    assert bench.bundle.manifest.signature is not None
    assert record.signed_by == bench.bundle.manifest.signature.key
    assert record.parity == ParitySample(2e-5, 1e-4, 8)
    assert record.modes[0].avgpp == 97.5


def test_a_killed_worker_is_an_error_with_its_cause(bench: Bench, set_worker: Callable[[str], None]) -> None:
    set_worker("import os\ndef main():\n os.kill(os.getpid(), 9)")
    record = bench.run()
    assert record.outcome == "ERROR"
    assert "pass parity: the worker was killed by SIGKILL, not by the agent" in str(record.reason)


def test_a_bad_digest_stops_the_run_before_it_begins(bench: Bench, tmp_path: Path) -> None:
    other = make_bundle(tmp_path / "other", b"other weights")
    fields = prepared(bench.transport, bench.device, other, tmp_path)
    [blob] = other.manifest.files.values()
    stored = Path(bench.device.root, "blobs", "sha256", blob.sha256)
    stored.chmod(0o644)
    stored.write_bytes(b"Other weights")
    record = bench.run(bundle=fields["bundle"])
    assert record.outcome == "ERROR"
    assert f"digest: file artifact/weights.bin: expected sha256 {blob.sha256}" in str(record.reason)


def test_an_unsigned_bundle_runs_only_when_that_is_allowed(
    bench: Bench, tmp_path: Path, set_worker: Callable[[str], None]
) -> None:
    set_worker(HONEST)
    unsigned = make_bundle(tmp_path / "unsigned", signed=False)
    fields = prepared(bench.transport, bench.device, unsigned, tmp_path)
    refused = bench.run(bundle=fields["bundle"])
    assert refused.outcome == "ERROR"
    assert str(refused.reason).startswith("signature: expected a signed bundle")
    allowed = bench.run(bundle=fields["bundle"], allow_unsigned=True)
    assert (allowed.outcome, allowed.signed_by) == ("PASS", None)


def test_a_second_key_is_not_trusted_on_first_use(bench: Bench) -> None:
    fields = {"key": "ab" * 32, "name": "stranger"}
    assert exchange(bench.transport, bench.device, "trust", **fields)["kind"] == "trust"
    with pytest.raises(Exception, match="toggle-edge device trust"):
        trust_key(bench.transport, bench.device, **fields)


def test_another_protocol_is_refused_with_the_side_to_upgrade(bench: Bench) -> None:
    path = agent_client.install(bench.transport, bench.device)
    for theirs, side in ((1, "toggle-edge on the host"), (99, "the agent on this device")):
        line = (
            json.dumps({"protocol": theirs, "command": "facts", "root": bench.device.root}).encode() + b"\n"
        )
        done = subprocess.run(
            [bench.device.python, "-I", "-S", path, "serve"], input=line, capture_output=True
        )
        event = json.loads(done.stdout)
        assert (event["kind"], event["protocol"], event["agent_version"]) == ("protocol", 4, "0.1.0")
        assert side in event["message"]


def test_facts_name_this_interpreter_and_nothing_foreign(bench: Bench) -> None:
    facts = facts_of(bench.transport, bench.device)
    assert interpreter(facts.python.rpartition(".")[0]) == bench.device.python
    assert facts.modules == []
    assert (facts.protocol, facts.manifest_versions, facts.record_version) == (4, [1, 2, 3, 4], 4)


def test_what_arrives_is_stored_or_refused(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    with pytest.raises(Exception, match="expected sha256 0000"):
        ship(bench.transport, bench.device, {"0" * 64: (path, 5)})
    assert not Path(bench.device.root, "incoming", "0" * 64 + ".part").exists()


CHECK = """
import hashlib, json, sys
sys.path.insert(0, sys.argv[1])
from toggle_runtime.ed25519 import verify
from toggle_runtime.records import Manifest, RunRecord, from_json, signed_bytes, to_json
given = json.loads(sys.stdin.read())
print(json.dumps({
    "valid": [verify(*map(bytes.fromhex, row)) for row in given["vectors"]],
    "altered": [verify(bytes.fromhex(k), bytes.fromhex(m) + b"0", bytes.fromhex(s)) for k, m, s in given["vectors"]],
    "manifest": to_json(from_json(Manifest, given["manifest"])),
    "signed": hashlib.sha256(signed_bytes(from_json(Manifest, given["manifest"]))).hexdigest(),
    "record": to_json(from_json(RunRecord, given["record"])),
}))
"""


def test_signatures_and_records_are_read_as_the_host_reads_them(python: str, tmp_path: Path) -> None:
    manifest = make_bundle(tmp_path / "bundle").manifest
    record = RunRecord(
        version=2,
        run_id="r",
        bundle="0" * 64,
        outcome="PASS",
        noise_floor={"coherence": 1e-300, "naïve": 0.1},
        latency=[LatencySample(7, [Generation(5, [1, 2**53 + 1], 3, warmup=True)])],
        energy=EnergySample(1 / 3, None, 2.5, 10, "rapl"),
        traces=Blob("1" * 64, 5),
        parity=ParitySample(2e-5, 1e-4, 8),
    )
    given = {"vectors": VECTORS, "manifest": to_json(manifest), "record": to_json(record)}
    archive = tmp_path / "agent.pyz"
    archive.write_bytes(agent_client.agent_archive())
    done = subprocess.run(
        [python, "-I", "-S", "-c", CHECK, str(archive)],
        input=json.dumps(given),
        capture_output=True,
        text=True,
    )
    found = json.loads(done.stdout)
    assert (found["valid"], found["altered"]) == ([True] * 5, [False] * 5)
    assert (found["manifest"], found["record"]) == (given["manifest"], given["record"])
    assert found["signed"] == hashlib.sha256(signed_bytes(manifest)).hexdigest()


PEAK = """
import os, sys
pid = os.posix_spawn(sys.executable, [sys.executable, "-I", "-S", sys.argv[1], "serve"], os.environ)
print(os.wait4(pid, 0)[2].ru_maxrss, file=sys.stderr)
"""


def test_the_control_plane_stays_small(
    bench: Bench, set_worker: Callable[[str], None], tmp_path: Path
) -> None:
    """The most that was ever resident of the agent, while it looks, receives 50 MB, unpacks wheels, watches a run."""
    set_worker(HONEST)
    archive = agent_client.install(bench.transport, bench.device)

    def peak_kib(command: str, feed: Feed = nothing_more, **fields: Any) -> int:
        question = {**fields, "protocol": PROTOCOL_VERSION, "command": command, "root": bench.device.root}
        lines: list[bytes] = []
        # Started by a small process of its own: a process counts what was resident where it was forked.
        done = bench.transport.run(
            [bench.device.python, "-I", "-S", "-c", PEAK, archive],
            json.dumps(question).encode() + b"\n",
            lines.append,
            120.0,
            feed,
        )
        assert json.loads(lines[-1])["event"] == "result", done
        return int(done.stderr.split()[-1])

    data = random.Random(0).randbytes(1 << 20) * 50
    blob = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    wheel = make_wheel(tmp_path, "large-1-py3-none-any.whl", **{"engine/library.so": bytes(50 << 20)})
    ship(bench.transport, bench.device, {wheel.sha256: (wheel.path, wheel.size)})
    wheels = [{"sha256": wheel.sha256, "size": wheel.size, "name": wheel.name}]
    fields = {**bench.fields, "run_id": new_run_id(), "plan": dataclasses.asdict(SHORT)}
    peaks = {
        "facts": peak_kib("facts"),
        "receive": peak_kib("receive", iter([data, None]).__next__, blobs=[blob]),
        "environment": peak_kib("environment", id="ab" * 32, wheels=wheels),
        "run": peak_kib("run", **fields),
    }
    assert max(peaks.values()) <= 25_000_000 // 1024, peaks
