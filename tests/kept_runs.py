"""Runs as `validate` keeps them, made without a device."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
from toggle_runtime.records import (
    Blob,
    Manifest,
    ModeSpecification,
    ModeVerdict,
    ParitySample,
    RunRecord,
    digest_of,
    from_json,
    to_json,
)
from toggle_runtime.signals import Trace
from toggle_runtime.trace_files import write_traces
from toggle_runtime.verdicts import judge, noise_floor

from toggle_edge.bundle import MANIFEST, PROBES, Bundle, keep_contract

GOLDEN = Path(__file__).parent / "golden"
SPECIFICATION = {
    "strict": ModeSpecification({"coherence": "always (jsd <= 0.25)"}, 1.0, 90.0),
    "relaxed": ModeSpecification(
        {"coherence": "always (jsd <= 0.5)", "context": "eventually[0,1] (context >= 0.5)"}, 0.9, 80.0
    ),
}


def traces(seed: int, width: float) -> list[Trace]:
    generator = np.random.default_rng(seed)
    entries = []
    for _ in range(12):
        lower = {"jsd": generator.uniform(0, 0.2, 6), "context": generator.uniform(0.6, 0.9, 6)}
        upper = {name: row + width for name, row in lower.items()}
        entries.append(Trace(lower, upper, np.arange(6) == 5))
    return entries


def keep(tmp_path: Path, width: float, default: str = "strict") -> Path:
    probes = json.dumps([{"tokens": list(range(9)), "prompt_tokens": 3, "answer_steps": [5]}] * 12).encode()
    blob = Blob(hashlib.sha256(probes).hexdigest(), len(probes))
    manifest = from_json(Manifest, (GOLDEN / "manifest-v3-unsigned.json").read_text(encoding="utf-8"))
    manifest = dataclasses.replace(
        manifest, specification=SPECIFICATION, default_mode=default, files={PROBES: blob}
    )
    source = tmp_path / "bundle"
    (source / "blobs" / "sha256").mkdir(parents=True)
    (source / "blobs" / "sha256" / blob.sha256).write_bytes(probes)
    (source / MANIFEST).write_text(to_json(manifest), encoding="utf-8")
    run, repeated = traces(0, width), traces(0, width)
    floors = noise_floor(SPECIFICATION, run, repeated)
    modes = judge(SPECIFICATION, run, floors)
    folder = tmp_path / "run"
    folder.mkdir()
    write_traces(folder / "traces.npz", run, repeated)
    keep_contract(Bundle(digest_of(to_json(manifest)), manifest, source), folder / "bundle")
    write_record(folder, modes, floors, outcome_of(modes, default))
    return folder


def outcome_of(modes: list[ModeVerdict], default: str) -> str:
    (word,) = (mode.verdict for mode in modes if mode.mode == default)
    return {"SATISFIED": "PASS", "MARGINAL": "PASS", "VIOLATED": "FAIL", "UNSET": "ERROR"}[word]


def write_record(folder: Path, modes: list[ModeVerdict], floors: dict[str, float], outcome: str) -> None:
    content = (folder / "traces.npz").read_bytes()
    record = RunRecord(
        3,
        "run",
        digest_of((folder / "bundle" / MANIFEST).read_text(encoding="utf-8")),
        outcome,
        modes=modes,
        noise_floor=floors,
        traces=Blob(hashlib.sha256(content).hexdigest(), len(content)),
        parity=ParitySample(0.0, 1e-4, 10),
    )
    (folder / "record.json").write_text(to_json(record), encoding="utf-8")
