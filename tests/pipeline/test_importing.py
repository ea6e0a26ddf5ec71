"""`import RECORDS`: carried runs, whole, altered, hostile, and brought twice."""

from __future__ import annotations

import dataclasses
import json
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from kept_runs import keep
from toggle_runtime.records import Generation, LatencySample, RunRecord, from_json, to_json

from toggle_edge.bundle import read_contract
from toggle_edge.errors import InputError
from toggle_edge.pipeline import carried
from toggle_edge.pipeline.importing import ImportOptions, run_import
from toggle_edge.report.imported import ImportResult, imported_json
from toggle_edge.store import StudyIdentity, open_store

Edit = Callable[..., Path]


def silent(*_: object) -> None:
    pass


def timed(first_ns: int) -> list[LatencySample]:
    return [LatencySample(7, [Generation(first_ns, [3, 4, 5], 8)])]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run's folder as the agent leaves it, and the bundle that it is of."""
    run = keep(tmp_path, 0.01)
    (run / "bundle").rename(run / "contract")
    record = from_json(RunRecord, (run / "record.json").read_text())
    (run / "record.json").write_text(to_json(dataclasses.replace(record, latency=timed(1234))))
    (run / "journal.jsonl").write_text("{}\n")
    return run


@pytest.fixture
def edited(folder: Path, tmp_path: Path) -> Edit:
    """A copy of the run with other fields in its record."""

    def edit(name: str, **fields: object) -> Path:
        copy = tmp_path / name
        shutil.copytree(folder, copy)
        record = from_json(RunRecord, (copy / "record.json").read_text())
        (copy / "record.json").write_text(to_json(dataclasses.replace(record, **fields)))
        return copy

    return edit


@pytest.fixture
def bring(tmp_path: Path) -> Callable[..., ImportResult]:
    def go(records: Path, **options: object) -> ImportResult:
        given = {
            "bundle": tmp_path / "bundle",
            "store": f"sqlite:///{tmp_path}/store.db",
            "output": tmp_path / "home",
            "allow_unsigned": True,
            "jobs": 1,
        }
        return run_import(ImportOptions(records, **{**given, **options}), silent)

    return go


def packed(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for each in sorted(folder.rglob("*")):
            if each.is_file() and each.name != "journal.jsonl":
                archive.write(each, each.relative_to(folder).as_posix())
    return path


def known_to_a_study(tmp_path: Path) -> int:
    """Put the bundle into a study of the store."""
    contract = read_contract(tmp_path / "bundle")
    with open_store(f"sqlite:///{tmp_path}/store.db") as store:
        names = {
            field.name: "x"
            for field in dataclasses.fields(StudyIdentity)
            if field.default is dataclasses.MISSING
        }
        study = store.open_study("ours", StudyIdentity(**{**names, "seed": 0}))
        store.record_bundle(study.id, contract.manifest, config_digest="c" * 64, artifact_bytes=5)
    return study.id


@pytest.mark.parametrize("form", ["folder", "file"])
def test_a_run_is_certified_and_kept_as_validate_keeps_it(
    folder: Path, tmp_path: Path, bring: Callable[..., ImportResult], form: str
) -> None:
    source = folder if form == "folder" else packed(folder, tmp_path / "run.zip")
    result = bring(source, device="pump-7")
    assert (result.outcome, result.stored) == ("PASS", False)
    assert result.certificate is not None
    assert result.certificate.certified
    kept = tmp_path / "home" / "pump-7" / "run"
    assert sorted(each.name for each in kept.iterdir()) == ["bundle", "record.json", "traces.npz"]
    assert Path(result.record_file) == kept / "record.json"
    assert read_contract(kept / "bundle").digest == result.record.bundle
    assert json.dumps(imported_json(result), allow_nan=False)
    assert not (tmp_path / "store.db").exists(), "an import is no reason to make a store"


def test_a_bundle_that_the_store_knows_needs_no_folder_and_the_store_gets_the_run(
    folder: Path, tmp_path: Path, bring: Callable[..., ImportResult]
) -> None:
    study = known_to_a_study(tmp_path)
    result = bring(folder, bundle=None)
    assert (result.outcome, result.stored) == ("PASS", True)
    with open_store(f"sqlite:///{tmp_path}/store.db") as store:
        [run] = store.runs(study)
    assert (run.record, run.certified, run.device) == (result.record, True, "imported")
    assert run.traces == str(tmp_path / "home" / "imported" / "run" / "traces.npz")
    with pytest.raises(InputError, match=r"is here already, with the same content, in study 'ours'"):
        bring(folder, bundle=None)


def test_an_import_killed_between_folder_and_store_goes_on(
    folder: Path, tmp_path: Path, bring: Callable[..., ImportResult]
) -> None:
    bring(folder)
    study = known_to_a_study(tmp_path)
    assert bring(folder).stored
    with open_store(f"sqlite:///{tmp_path}/store.db") as store:
        assert len(store.runs(study)) == 1
    assert [path.name for path in (tmp_path / "home" / "imported").glob("[!.]*")] == ["run"]


def test_a_bundle_that_nobody_knows_is_refused(folder: Path, bring: Callable[..., ImportResult]) -> None:
    with pytest.raises(InputError, match=r"which no study in .* has; name the folder .* with --bundle"):
        bring(folder, bundle=None)


def test_an_unsigned_bundle_is_refused_unless_allowed(
    folder: Path, bring: Callable[..., ImportResult]
) -> None:
    with pytest.raises(InputError, match="expected a signed bundle"):
        bring(folder, allow_unsigned=False)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "is here already, with the same content"),
        ({"latency": timed(99)}, "is here already, with ANOTHER content"),
        ({"run_id": "another-name"}, "is run run in .* under another name"),
        ({"run_id": "another", "conditions": {"governor": "x"}}, "is run run in .* under another name"),
    ],
)
def test_what_was_imported_is_not_imported_again(
    folder: Path,
    tmp_path: Path,
    edited: Edit,
    bring: Callable[..., ImportResult],
    fields: dict[str, object],
    told: str,
) -> None:
    bring(folder, device="first")
    with pytest.raises(InputError, match=f"{told}.*nothing was imported"):
        bring(edited("again", **fields), device="second")
    assert [path.parent.name for path in (tmp_path / "home").glob("*/*/record.json")] == ["run"]


def test_another_run_of_the_bundle_is_welcome(
    folder: Path, edited: Edit, bring: Callable[..., ImportResult]
) -> None:
    bring(folder)
    assert bring(edited("next", run_id="run-2", latency=timed(77))).outcome == "PASS"
    ended = {"latency": [], "modes": [], "traces": None, "outcome": "ABORTED", "reason": "killed"}
    for name in ("run-3", "run-4"):
        assert bring(edited(name, run_id=name, **ended)).outcome == "ABORTED"


def test_a_verdict_is_never_believed(folder: Path, edited: Edit, bring: Callable[..., ImportResult]) -> None:
    record = from_json(RunRecord, (folder / "record.json").read_text())
    better = [
        dataclasses.replace(
            mode,
            verdicts=[dataclasses.replace(each, robustness=0.9) for each in mode.verdicts],
        )
        for mode in record.modes
    ]
    forged = bring(edited("forged", modes=better))
    assert (forged.outcome, str(forged.reason)[:26]) == ("ERROR", "device and RTAMT disagree:")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: flip(run / "traces.npz"), "the traces are not those of the record"),
        (lambda run: (run / "traces.npz").unlink(), "the traces are not those of the record"),
        (lambda run: (run / "record.json").unlink(), r"with record\.json in it"),
        (lambda run: (run / "record.json").write_text("{"), "the record cannot be read"),
        (lambda run: (run / "record.json").write_text("[" * 100_000), "the record cannot be read"),
        (lambda run: (run / "record.json").write_text('{"version": 99}'), "upgrade this side"),
        (lambda run: (run / "more.txt").write_text("x"), "expected the files of a run only, got 'more.txt'"),
        (lambda run: (run / "link").symlink_to("/etc/passwd"), "expected plain files, got a symbolic link"),
        (lambda run: shutil.rmtree(run), "got neither"),
    ],
)
def test_what_is_no_run_is_refused_and_leaves_nothing(
    folder: Path,
    tmp_path: Path,
    bring: Callable[..., ImportResult],
    change: Callable[[Path], object],
    message: str,
) -> None:
    change(folder)
    with pytest.raises(InputError, match=message):
        bring(folder)
    assert [path.name for path in (tmp_path / "home" / "imported").iterdir()] == [".lock"]


@pytest.mark.parametrize("run_id", ["../../x", "a/b", ".hidden", "", "x" * 81, "a\nb"])
def test_a_run_id_that_is_no_name_is_refused(
    edited: Edit, bring: Callable[..., ImportResult], run_id: str
) -> None:
    with pytest.raises(InputError, match="run_id: expected a plain name"):
        bring(edited("odd", run_id=run_id))


@pytest.mark.parametrize(
    "name", ["../record.json", "/record.json", "contract/../../x", "contract/blobs/sha256/xyz"]
)
def test_names_in_a_file_that_are_not_a_runs_are_refused(
    folder: Path, tmp_path: Path, bring: Callable[..., ImportResult], name: str
) -> None:
    path = packed(folder, tmp_path / "run.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(InputError, match="expected the files of a run only, got"):
        bring(path)


def test_a_file_that_holds_a_name_twice_or_a_link_or_too_much_is_refused(
    folder: Path, tmp_path: Path, bring: Callable[..., ImportResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = packed(folder, tmp_path / "run.zip")
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("record.json", b"x")
    with pytest.raises(InputError, match=r"holds record\.json twice|expected at most 4 files"):
        bring(path)
    path = packed(folder, tmp_path / "link.zip")
    link = zipfile.ZipInfo("contract/blobs/sha256/" + "0" * 64)
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(InputError, match="expected at most 4 files"):
        bring(path)
    monkeypatch.setattr(carried, "_LIMITS", dict.fromkeys(carried._LIMITS, 100))
    with pytest.raises(InputError, match="expected at most 100 bytes, got more"):
        bring(packed(folder, tmp_path / "large.zip"))


@pytest.mark.parametrize("name", ["a b", "../x", "", "-x", "x;reboot"])
def test_a_device_name_that_is_no_name_is_refused(
    folder: Path, bring: Callable[..., ImportResult], name: str
) -> None:
    with pytest.raises(InputError, match="--device: expected a plain name"):
        bring(folder, device=name)


def test_a_run_of_another_bundle_is_refused(
    folder: Path, edited: Edit, bring: Callable[..., ImportResult]
) -> None:
    with pytest.raises(InputError, match="is of bundle aaaaaaaaaaaa, got"):
        bring(edited("other", bundle="a" * 64))
