"""Page cache, cold loads, and the device's limits: measured here, refused where they cannot be."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from toggle_runtime import capacity, limits, page_cache, timing
from toggle_runtime.layout import foreign
from toggle_runtime.plan import Plan
from toggle_runtime.records import (
    CapacitySample,
    Generation,
    ModelShape,
    PassConditions,
    RecordError,
    SustainedSample,
)

from toggle_edge.fleet.simulated import RecordedNoise, SimulatedBackend, SimulatedMachine

SHAPE = ModelShape(1, 1, 8, 64, 128, None)
BACKEND = SimulatedBackend(SimulatedMachine(RecordedNoise(((np.ones(3),), (np.ones(3),))), 0))


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "weights.bin").write_bytes(os.urandom(4 << 20))
    (folder / "empty").touch()
    return folder


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def is_disk(folder: Path) -> bool:
    """Whether pages can be dropped there and seen to be gone."""
    page_cache.drop(files(folder))
    share = page_cache.resident_share(files(folder))
    return share is not None and share < 0.5


def test_dropped_pages_are_gone_and_read_ones_are_there(artifact: Path) -> None:
    if not is_disk(artifact):
        pytest.skip("the temporary folder lies in memory or on a file system that does not tell")
    (artifact / "weights.bin").read_bytes()
    assert page_cache.resident_share(files(artifact)) == 1.0
    page_cache.drop(files(artifact))
    assert page_cache.resident_share(files(artifact)) == pytest.approx(0.0, abs=0.05)


def test_what_is_not_there_cannot_be_dropped(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="weights"):
        page_cache.drop([tmp_path / "weights.bin"])
    assert page_cache.resident_share([]) is None


def test_a_cold_load_is_timed_only_if_it_was_cold(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if is_disk(artifact):
        found = timing.cold_load(BACKEND, artifact, SHAPE, 1, [1, 2])
        assert (found.load_ns, found.reason) == (BACKEND.load_ns, None)
        assert found.first_token_ns is not None
    monkeypatch.setattr(page_cache, "drop", lambda files: None)
    (artifact / "weights.bin").read_bytes()
    share = page_cache.resident_share(files(artifact))
    stayed = timing.cold_load(BACKEND, artifact, SHAPE, 1, [1, 2])
    assert (stayed.load_ns, stayed.first_token_ns) == (None, None)
    assert ("stayed in the page cache" if share is not None else "cannot be seen") in str(stayed.reason)
    monkeypatch.undo()
    monkeypatch.delattr(os, "posix_fadvise")
    assert "cannot be dropped" in str(timing.cold_load(BACKEND, artifact, SHAPE, 1, [1]).reason)


def test_the_product_graph_multiplies() -> None:
    session = onnxruntime.InferenceSession(capacity.product_graph(4, 128), providers=["CPUExecutionProvider"])
    left = np.random.default_rng(0).integers(0, 256, (4, 128)).astype(np.uint8)
    right = np.resize(np.arange(-64, 64, dtype=np.int8), (128, 128))
    (found,) = session.run(None, {"a": left})
    assert (found == left.astype(np.int32) @ right.astype(np.int32)).all()


def test_a_device_can_copy_and_multiply(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "ROUNDS", 2)
    found = capacity.measure(2)
    assert (len(found.copied_per_s), len(found.int8_per_s), found.threads) == (2, 2, 2)
    assert min(found.copied_per_s) > 1e6
    assert min(found.int8_per_s) > 1e6


def test_a_capacity_is_kept_until_what_it_depends_on_changes(tmp_path: Path) -> None:
    under, found = limits.circumstances("e" * 16, 1), CapacitySample([1.0, 2.0], [3.0], 1)
    assert limits.known_capacity(tmp_path, under) is None
    quiet = PassConditions("capacity", {}, {}, 0.01, None, None, [])
    for disturbed in (replace(quiet, contended="others took 40 %"), replace(quiet, throttled="heat")):
        assert not limits.keep_capacity(tmp_path, under, found, disturbed)
        assert limits.known_capacity(tmp_path, under) is None
    assert limits.keep_capacity(tmp_path, under, found, quiet)
    assert limits.known_capacity(tmp_path, under) == found
    assert limits.known_capacity(tmp_path, limits.circumstances("f" * 16, 1)) is None
    assert limits.known_capacity(tmp_path, limits.circumstances("e" * 16, 2)) is None
    assert foreign(tmp_path) == []  # what we leave in a root is known to be ours


@pytest.mark.parametrize("text", [b"", b"{}", b"[[[", b"\xff", b'{"version":2}'])
def test_a_damaged_file_of_limits_is_measured_anew(tmp_path: Path, text: bytes) -> None:
    (tmp_path / limits.LIMITS).write_bytes(text)
    assert limits.known_capacity(tmp_path, limits.circumstances("e" * 16, 1)) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"contexts": [0]}, "plan.contexts"),
        ({"colds": 0}, "plan.colds"),
        ({"sustained_s": 0.0}, "plan.sustained_s"),
        ({"sustained_s": float("nan")}, "plan.sustained_s"),
    ],
)
def test_a_plan_that_measures_nothing_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(RecordError, match=message):
        Plan(["latency"], **change)  # type: ignore[arg-type]


def test_every_sustained_generation_has_a_start() -> None:
    with pytest.raises(RecordError, match="a start of each of 1"):
        SustainedSample([], [Generation(1, [1], 1)])
