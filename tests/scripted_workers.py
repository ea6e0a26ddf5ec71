"""Devices for tests: bundles without a model, and agents whose worker is a script."""

from __future__ import annotations

import hashlib
import io
import uuid
import zipfile
from pathlib import Path

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
from toggle_edge.fleet.environment import WheelFile
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
    }[request["pass"]]

def main():
    request = json.loads(sys.stdin.readline())
    answer("progress", step="loaded")
    answer("result", modules=["numpy"], **results(request))
    return 0
"""


def archive_with(worker: str) -> bytes:
    """The agent's archive with `toggle_runtime/worker.py` replaced."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(agent_client.agent_archive())) as original,
        zipfile.ZipFile(buffer, "w") as changed,
    ):
        for member in original.infolist():
            if member.filename != "toggle_runtime/worker.py":
                changed.writestr(member, original.read(member))
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
