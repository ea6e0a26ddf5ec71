"""Devices for tests: bundles without a model, agents whose worker is a script, and runs on them."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import subprocess
import time
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toggle_runtime import PROTOCOL_VERSION
from toggle_runtime.plan import Plan
from toggle_runtime.records import (
    MANIFEST_VERSION,
    Blob,
    Manifest,
    ModelShape,
    ModeSpecification,
    digest_of,
    to_json,
)

from toggle_edge.bundle import Bundle
from toggle_edge.fleet import agent_client
from toggle_edge.fleet.deploy import prepare_environment, trust_key
from toggle_edge.fleet.device import Device
from toggle_edge.fleet.environment import WheelFile
from toggle_edge.fleet.local import LocalTransport
from toggle_edge.fleet.shipping import ship
from toggle_edge.signing import sign, signing_key

PLAN = Plan(
    passes=["parity", "verify", "latency", "memory", "energy"],
    restarts=2,
    generations=1,
    warmups=0,
    tokens=2,
    pass_timeout_s=30.0,
    energy_window_s=1.0,
    idle_s=0.0,
)

HONEST = """
import json, os, sys

def answer(event, **fields):
    print(json.dumps(dict(fields, event=event)), flush=True)

def results(request):
    with open(os.path.join(request["output"], "traces.npz"), "wb") as stream:
        stream.write(b"traces")
    verdict = {"property": "coherence", "verdict": "SATISFIED", "robustness": 0.25}
    coverage = {"satisfied": 1, "probes": 1, "required": 1}
    generation = {"first_token_ns": 5, "token_ns": [1, 2], "prompt_tokens": 3}
    return {
        "parity": {"sample": {"max_abs_logit_difference": 2e-5, "tolerance": 1e-4, "compared": 8}},
        "verify": {"modes": [{"mode": "optimal", "verdict": "SATISFIED", "robustness": 0.25,
                              "coverage": coverage, "avgpp": 97.5, "verdicts": [verdict]}],
                   "noise_floor": {"coherence": 0.001}, "traces": "traces.npz",
                   "environment": {"artifact": open(request["bundle"] + "/artifact/weights.bin").read()[:5],
                                   "OMP_NUM_THREADS": os.environ["OMP_NUM_THREADS"],
                                   "telemetry": os.environ["ORT_DISABLE_TELEMETRY"],
                                   "extra": " ".join(sorted(os.environ))}},
        "latency": {"sample": {"load_ns": 7, "generations": [generation]}},
        "memory": {"sample": {"peak_bytes": 4096, "method": "fake"}},
        "energy": {"tokens": 3},
        "talk": {"tokens": [5] * int(request.get("tokens", 0)), "token_ns": [7] * int(request.get("tokens", 0)),
                 "load_ns": 7, "stopped": False},
    }[request["pass"]]

def main():
    request = json.loads(sys.stdin.readline())
    answer("progress", step="loaded")
    answer("result", modules=["numpy"], **results(request))
    return 0
"""


def archive_with(worker: str, **edits: dict[str, str]) -> bytes:
    """The agent's archive with `toggle_runtime/worker.py` replaced, and texts of other modules, named by `edits`."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(agent_client.agent_archive())) as original,
        zipfile.ZipFile(buffer, "w") as changed,
    ):
        for member in original.infolist():
            if member.filename != "toggle_runtime/worker.py":
                text = original.read(member).decode()
                for old, new in edits.get(Path(member.filename).stem, {}).items():
                    assert old in text, old
                    text = text.replace(old, new)
                changed.writestr(member, text)
        changed.writestr("toggle_runtime/worker.py", worker)
    return buffer.getvalue()


def make_bundle(folder: Path, weights: bytes = b"fp16 weights", *, signed: bool = True) -> Bundle:
    """A bundle of one artifact file, shaped like a real one."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    digest = hashlib.sha256(weights).hexdigest()
    (blobs / digest).write_bytes(weights)
    manifest = Manifest(
        version=MANIFEST_VERSION,
        target="onnx-cpu",
        config={"layer": "fp16"},
        model=ModelShape(1, 1, 8, 16, 64, None),
        specification={"optimal": ModeSpecification({"coherence": "always (jsd <= 0.25)"}, 1.0, 95.0)},
        default_mode="optimal",
        files={"artifact/weights.bin": Blob(digest, len(weights))},
        probe_bytes=0,
        environment={},
    )
    key = signing_key()
    manifest = sign(key, manifest) if signed else manifest
    text = to_json(manifest)
    (folder / "manifest.json").write_text(text, encoding="utf-8")
    return Bundle(digest_of(text), manifest, folder, key.name if signed else None)


def make_wheel(folder: Path, name: str = "engine-1-py3-none-any.whl", **members: bytes) -> WheelFile:
    """A tiny wheel, so that no test needs the network."""
    path = folder / name
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("engine/__init__.py", b"")
        for member, data in members.items():
            archive.writestr(member, data)
    data = path.read_bytes()
    return WheelFile(path, hashlib.sha256(data).hexdigest(), len(data))


def new_run_id() -> str:
    return f"run-{uuid.uuid4().hex[:8]}"


def prepared(transport: LocalTransport, device: Device, bundle: Bundle, folder: Path) -> dict[str, Any]:
    """Everything is on the device; returns the fields of a `run` request."""
    wheels = folder / "wheels"
    wheels.mkdir(exist_ok=True)
    identifier = prepare_environment(transport, device, [make_wheel(wheels)])
    files = {b.sha256: (bundle.blob_path(b.sha256), b.size) for b in bundle.manifest.files.values()}
    manifest = bundle.folder / "manifest.json"
    ship(transport, device, {**files, bundle.digest: (manifest, manifest.stat().st_size)})
    if bundle.manifest.signature is not None:
        trust_key(transport, device, bundle.manifest.signature.key, "tests")
    return {
        "run_id": new_run_id(),
        "bundle": bundle.digest,
        "environment": identifier,
        "owner": "somebody@desk",
        "plan": dataclasses.asdict(PLAN),
    }


def start(device: Device, transport: LocalTransport, command: str, **fields: Any) -> subprocess.Popen[bytes]:
    """The agent as a process of this test, its request written, its answer unread."""
    path = agent_client.install(transport, device)
    process = subprocess.Popen(
        [device.python, "-I", "-S", path, "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    question = {"protocol": PROTOCOL_VERSION, "command": command, "root": device.root, **fields}
    assert process.stdin is not None
    process.stdin.write(json.dumps(question).encode() + b"\n")
    process.stdin.close()
    process.stdin = None
    return process


def spawned_pid(device: Device, run_id: str) -> int:
    path = Path(device.root, "runs", run_id, "journal.jsonl")

    def entries() -> list[dict[str, Any]]:
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    wait_until(lambda: any(entry["step"] == "spawn" for entry in entries()), "no worker was spawned")
    return int(next(entry["pid"] for entry in entries() if entry["step"] == "spawn"))


def only(name: str, timeout_s: float = 30.0) -> Plan:
    return dataclasses.replace(PLAN, passes=[name], restarts=1, pass_timeout_s=timeout_s)


def journal(device: Device, run_id: str) -> list[str]:
    text = Path(device.root, "runs", run_id, "journal.jsonl").read_text()
    return [json.loads(line)["step"] for line in text.splitlines()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
