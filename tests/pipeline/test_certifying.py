"""`certify RUN`: kept runs, whole and altered."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from kept_runs import SPECIFICATION, keep, traces, write_record
from toggle_runtime.records import (
    to_json,
)
from toggle_runtime.verdicts import judge, noise_floor

from toggle_edge.bundle import MANIFEST, read_contract
from toggle_edge.errors import InputError
from toggle_edge.pipeline.certifying import CertifyOptions, run_certify


def silent(*_: object) -> None:
    pass


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A run's folder as validate keeps it."""
    return keep(tmp_path, 0.01)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_kept_run_is_certified_however_many_processes_do_it(kept: Path, jobs: int) -> None:
    result = run_certify(CertifyOptions(kept, jobs=jobs), silent)
    assert (result.outcome, result.reason, result.mode) == ("PASS", None, "strict")
    assert result.certificate is not None
    assert result.certificate.certified
    assert result.certificate.differences.keys() == {"coherence", "context"}
    assert max(result.certificate.differences.values()) <= 1e-9
    assert run_certify(CertifyOptions(kept, mode="relaxed"), silent).outcome == "PASS"


def test_an_undecided_run_says_so_and_another_mode_may_be_decided(tmp_path: Path) -> None:
    folder = keep(tmp_path, 0.2)
    result = run_certify(CertifyOptions(folder, jobs=1), silent)
    assert result.outcome == "ERROR"
    assert "raise k" in str(result.reason)
    assert result.verdict is not None
    assert result.verdict.verdict == "UNSET"
    assert run_certify(CertifyOptions(folder, mode="relaxed", jobs=1), silent).outcome == "PASS"


def test_candidates_share_the_error(kept: Path) -> None:
    bounds = []
    for candidates in (1, 5):
        certificate = run_certify(CertifyOptions(kept, candidates=candidates, jobs=1), silent).certificate
        assert certificate is not None
        bounds.append(certificate.bounds["strict"].lower_bound)
    assert bounds[1] < bounds[0]


def test_a_claim_that_its_traces_do_not_bear_out_is_an_error(kept: Path) -> None:
    better = traces(0, 0.0)
    floors = noise_floor(SPECIFICATION, better, better)
    write_record(kept, judge(SPECIFICATION, better, floors), floors, "PASS")
    result = run_certify(CertifyOptions(kept, jobs=1), silent)
    assert result.outcome == "ERROR"
    assert "device and RTAMT disagree" in str(result.reason)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: shutil.rmtree(folder / "bundle"), "not a readable bundle"),
        (lambda folder: (folder / "record.json").unlink(), "a folder that validate kept"),
        (lambda folder: (folder / "record.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "record.json").write_bytes(b"\xff\xfe"), "cannot be read"),
        (lambda folder: (folder / "traces.npz").unlink(), "cannot be read"),
        (lambda folder: flip(folder / "traces.npz"), "altered since the run"),
        (
            lambda folder: flip(next((folder / "bundle" / "blobs" / "sha256").iterdir())),
            "measure the bundle again",
        ),
        (lambda folder: next((folder / "bundle" / "blobs" / "sha256").iterdir()).unlink(), "cannot be read"),
        (lambda folder: shutil.rmtree(folder), "a folder that validate kept"),
    ],
)
def test_what_is_no_kept_run_is_refused(kept: Path, change: object, message: str) -> None:
    change(kept)  # type: ignore[operator]
    with pytest.raises(InputError, match=message):
        run_certify(CertifyOptions(kept, jobs=1), silent)


def test_another_bundles_contract_is_an_error(kept: Path) -> None:
    contract = read_contract(kept / "bundle")
    other = dataclasses.replace(contract.manifest, default_mode="relaxed")
    (kept / "bundle" / MANIFEST).write_text(to_json(other), encoding="utf-8")
    result = run_certify(CertifyOptions(kept, jobs=1), silent)
    assert result.outcome == "ERROR"
    assert "expected the record of bundle" in str(result.reason)


@pytest.mark.parametrize("options", [{"candidates": 0}, {"jobs": 0}, {"jobs": 1000}, {"mode": "optimla"}])
def test_bad_options_are_refused(kept: Path, options: dict[str, int]) -> None:
    with pytest.raises(InputError, match="expected"):
        run_certify(dataclasses.replace(CertifyOptions(kept), **options), silent)
