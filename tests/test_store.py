"""The store: identity of studies, the ledger, bundles and runs, transactions, versions."""

import dataclasses
import json
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from toggle_runtime.records import (
    PASS,
    Manifest,
    Measurement,
    ModelShape,
    ModeSpecification,
    RunRecord,
    digest_of,
    to_json,
    unavailable,
)

from toggle_edge.config import FP16, Config, Format
from toggle_edge.errors import StoreError, StudyError
from toggle_edge.search.trial import Observation, Trial
from toggle_edge.store import Store, StoredReading, StoredStudy, StudyIdentity, database, open_store
from toggle_edge.store.migrations import MIGRATIONS
from toggle_edge.store.rows import measurement_row, trial_row
from toggle_edge.store.tables import SCHEMA_VERSION

LAYERS = ("z", "a", "m")
IDENTITY = StudyIdentity(
    model="tiny",
    model_digest="d1",
    model_folder="/models/tiny",
    profile="p1",
    profile_path="/p1.toml",
    profile_digest="e1",
    probes_path="/probes.jsonl",
    probes_digest="f1",
    target="onnx-cpu",
    seed=1,
)
# What version 1 created on SQLite, letter by letter: never to be changed.
VERSION_1 = """
CREATE TABLE schema_version (version INTEGER NOT NULL, PRIMARY KEY (version));
CREATE TABLE studies (
    id INTEGER NOT NULL, name TEXT NOT NULL, model TEXT NOT NULL, model_digest TEXT NOT NULL,
    profile TEXT NOT NULL, target TEXT NOT NULL, seed BIGINT NOT NULL, created TEXT NOT NULL,
    PRIMARY KEY (id), UNIQUE (name));
CREATE TABLE trials (
    study INTEGER NOT NULL, "index" INTEGER NOT NULL, config_digest TEXT NOT NULL, config JSON NOT NULL,
    origin TEXT NOT NULL, proxy_flops DOUBLE NOT NULL, avgpp DOUBLE, robustness JSON NOT NULL,
    feasible JSON NOT NULL, payload JSON NOT NULL,
    PRIMARY KEY (study, "index"), FOREIGN KEY(study) REFERENCES studies (id));
CREATE TABLE bundles (
    study INTEGER NOT NULL, digest TEXT NOT NULL, config_digest TEXT NOT NULL, artifact_bytes BIGINT NOT NULL,
    manifest TEXT NOT NULL,
    PRIMARY KEY (study, digest), FOREIGN KEY(study) REFERENCES studies (id));
CREATE TABLE runs (
    run_id TEXT NOT NULL, study INTEGER NOT NULL, bundle TEXT NOT NULL, device TEXT NOT NULL,
    outcome TEXT NOT NULL, record TEXT NOT NULL, certified BOOLEAN, certificate JSON, traces TEXT,
    created TEXT NOT NULL,
    PRIMARY KEY (run_id), FOREIGN KEY(study, bundle) REFERENCES bundles (study, digest));
CREATE TABLE measurements (
    run TEXT NOT NULL, name TEXT NOT NULL, value DOUBLE, unit TEXT NOT NULL, method TEXT NOT NULL,
    n INTEGER NOT NULL, low DOUBLE, high DOUBLE, status TEXT NOT NULL, reason TEXT,
    PRIMARY KEY (run, name), FOREIGN KEY(run) REFERENCES runs (run_id));
INSERT INTO schema_version VALUES (1);
INSERT INTO studies VALUES (1, 'first', 'tiny', 'd1', 'p1', 'onnx-cpu', 1, '2026-11-20T00:00:00.000000+00:00');
"""
MEASUREMENTS = {
    "decode_ms_p50": Measurement(1 / 3, "ms", "perf_counter", 30, [0.1, 0.5]),
    "memory_bytes": Measurement(5e7, "bytes", "VmHWM", 3),
    "energy_mj_per_token": unavailable("mJ", "rapl", "no meter"),
}


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/store.db"


def opened(store: Store, **changes: object) -> StoredStudy:
    return store.open_study("first", dataclasses.replace(IDENTITY, **changes))  # type: ignore[arg-type]


def trial(index: int, **payload: object) -> Trial:
    config = Config.of(dict(zip(LAYERS, (FP16, Format(4, 32), Format(2, 64)), strict=True)))
    observation = Observation(
        1e9 / 3, 97.1, {"strict": None, "relaxed": 0.1}, {"strict": False, "relaxed": True}
    )
    return Trial(index, config, "bo strict", observation, payload)


def manifest(target: str = "onnx-cpu") -> Manifest:
    shape = ModelShape(2, 1, 8, 100, 64, None)
    modes = {"strict": ModeSpecification({"coherence": "always (jsd <= 0.25)"}, 1.0, 99.0)}
    return Manifest(1, target, {"z": "fp16"}, shape, modes, "strict", {}, 10, {})


def record(run_id: str = "r1") -> RunRecord:
    return RunRecord(1, run_id, digest_of(to_json(manifest())), PASS, noise_floor={"coherence": 1 / 7})


def test_trials_come_back_exactly_after_reopening(url: str) -> None:
    trials = [trial(0, verdicts=[{"robustness": 1 / 3}], note="é"), trial(1)]
    with open_store(url) as store:
        ledger = store.ledger(opened(store).id)
        # Out of order, as two workers may finish.
        for each in reversed(trials):
            ledger.record(each)
    with open_store(url) as store:
        read = store.ledger(opened(store).id).trials()
    assert list(read) == trials
    assert read[0].config.layers == LAYERS


def test_a_missing_avgpp_stays_missing(url: str) -> None:
    unset = Observation(1.0, None, {"strict": None}, {"strict": False})
    with open_store(url) as store:
        ledger = store.ledger(opened(store).id)
        ledger.record(Trial(0, trial(0).config, "seed", unset))
        assert ledger.trials()[0].observation == unset


def test_an_index_is_recorded_once(url: str) -> None:
    with open_store(url) as store:
        ledger = store.ledger(opened(store).id)
        ledger.record(trial(0))
        with pytest.raises(StoreError, match="UNIQUE"):
            ledger.record(trial(0))
        assert len(ledger.trials()) == 1


def test_studies_do_not_mix(url: str) -> None:
    with open_store(url) as store:
        first, second = opened(store), store.open_study("second", IDENTITY)
        store.ledger(first.id).record(trial(0))
        assert store.ledger(second.id).trials() == []
        assert [study.name for study in store.studies()] == ["first", "second"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_digest": "d2"}, r"the model's content was 'd1', is now 'd2' \(/models/tiny has changed\)"),
        ({"profile": "p2"}, "the profile was 'p1', is now 'p2'"),
        ({"profile_digest": "e2"}, r"the profile's content was 'e1', is now 'e2' \(/p1.toml has"),
        (
            {"profile_digest": "e2", "profile_path": "/p2.toml"},
            r"'e2' \(/p1.toml, now /p2.toml\); choose",
        ),
        ({"probes_digest": "f2"}, r"the probes' content was 'f1', is now 'f2' \(/probes.jsonl has changed\)"),
        ({"target": "onnx-cuda"}, "the target was 'onnx-cpu'"),
        ({"seed": 2}, "the seed was 1, is now 2"),
        ({"batch": 4}, "the number of trials in a batch was 1, is now 4"),
        ({"quantiser": "gptq"}, "the quantiser was 'rtn', is now 'gptq'"),
        ({"pruner": "wanda"}, "the pruner was 'magnitude', is now 'wanda'"),
    ],
)
def test_a_study_is_not_continued_with_other_arguments(
    url: str, change: dict[str, object], message: str
) -> None:
    with open_store(url) as store:
        first = opened(store)
        with pytest.raises(StudyError, match=message):
            opened(store, **change)
        assert opened(store, model="moved", model_folder="/elsewhere", probes_path="/there") == first


CONTENT: dict[str, object] = {
    "modes": {"strict": {"coverage": 1.0, "avgpp": 99.0}},
    "formats": ("int4-g32", "fp16"),
    "budget": {},
}


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (
            {**CONTENT, "modes": {"strict": {"coverage": 0.9, "avgpp": 99.0}}},
            ": modes.strict.coverage was 1.0, is now 0.9; choose",
        ),
        (
            {**CONTENT, "formats": ("fp16",), "budget": {"ttft_ms": 5.0}},
            ': formats was ["int4-g32", "fp16"], is now ["fp16"], budget.ttft_ms was absent, is now 5.0; choose',
        ),
        ({"formats": CONTENT["formats"]}, "modes.strict.avgpp was 99.0, is now absent"),
        (
            {**CONTENT, **{f"key{n}": n for n in range(9)}},
            "key5 was absent, is now 5, and 3 keys more; choose",
        ),
        (None, "(/p1.toml has changed); choose"),
    ],
)
def test_the_keys_of_a_profile_that_changed_are_named(
    url: str, content: dict[str, object] | None, named: str
) -> None:
    with open_store(url) as store:
        assert opened(store, profile_content=CONTENT).profile_content == json.loads(json.dumps(CONTENT))
    with open_store(url) as store:
        with pytest.raises(StudyError) as refused:
            opened(store, profile_digest="e2", profile_content=content)
        assert named in str(refused.value)


def test_sensitivities_are_recorded_once_and_come_back(url: str) -> None:
    with open_store(url) as store:
        study = opened(store)
        assert study.sensitivity is None
        for _ in range(2):
            store.record_sensitivity(study.id, {"z": 1 / 3, "a": 0.0})
        with pytest.raises(StoreError, match="began with other sensitivities"):
            store.record_sensitivity(study.id, {"z": 1 / 3, "a": 0.1})
        with pytest.raises(StoreError, match="no study 7"):
            store.record_sensitivity(7, {"z": 1 / 3})
    with open_store(url) as store:
        assert opened(store).sensitivity == {"z": 1 / 3, "a": 0.0}


def test_an_unknown_study_names_the_nearest(url: str) -> None:
    with open_store(url) as store:
        opened(store)
        assert store.study("first").name == "first"
        with pytest.raises(StudyError, match=r"no study 'frist'; did you mean 'first'\?; it has: first"):
            store.study("frist")


def test_every_difference_is_named(url: str) -> None:
    with open_store(url) as store:
        opened(store)
        with pytest.raises(StudyError, match=r"profile was .*; the target was .*; the seed was "):
            opened(store, profile="x", target="y", seed=9)


def test_runs_come_back_with_measurements_and_certificate(url: str) -> None:
    certificate = {"lower_bound": 0.95, "probes": 59}
    with open_store(url) as store:
        study = opened(store).id
        digest = store.record_bundle(study, manifest(), config_digest="c", artifact_bytes=2**40)
        store.record_run(
            study,
            "pi",
            record(),
            measurements=MEASUREMENTS,
            certified=True,
            certificate=certificate,
            traces="t.npz",
        )
        store.record_run(study, "pi", record("r2"), measurements={})
    with open_store(url) as store:
        (bundle,) = store.bundles(study)
        first, second = store.runs(study)
    assert (bundle.digest, bundle.manifest, bundle.artifact_bytes) == (digest, manifest(), 2**40)
    assert first.record == record()
    assert first.measurements == MEASUREMENTS
    assert (first.device, first.certified, first.certificate, first.traces) == (
        "pi",
        True,
        certificate,
        "t.npz",
    )
    assert (second.record.run_id, second.measurements, second.certified, second.certificate) == (
        "r2",
        {},
        None,
        None,
    )


def test_a_run_needs_its_bundle_and_is_written_whole_or_not_at_all(url: str) -> None:
    with open_store(url) as store:
        study = opened(store).id
        with pytest.raises(StoreError, match="FOREIGN KEY"):
            store.record_run(study, "pi", record(), measurements={})
        store.record_bundle(study, manifest(), config_digest="c", artifact_bytes=1)
        broken = {"decode_ms_p50": Measurement(1.0, None, "x", 1)}  # type: ignore[arg-type]
        with pytest.raises(StoreError, match="NOT NULL"):
            store.record_run(study, "pi", record(), measurements=broken)
        assert store.runs(study) == []
        store.record_run(study, "pi", record(), measurements=MEASUREMENTS)
        with pytest.raises(StoreError, match="UNIQUE"):
            store.record_run(study, "pi", record(), measurements=MEASUREMENTS)


def test_a_bundle_is_recorded_once_and_never_changed(url: str) -> None:
    with open_store(url) as store:
        study = opened(store).id
        digest = store.record_bundle(study, manifest(), config_digest="c", artifact_bytes=1)
        assert store.record_bundle(study, manifest(), config_digest="c", artifact_bytes=1) == digest
        with pytest.raises(StoreError, match="1 bytes; got c and 2"):
            store.record_bundle(study, manifest(), config_digest="c", artifact_bytes=2)
        assert store.record_bundle(study, manifest("other"), config_digest="c", artifact_bytes=1) != digest
        assert len(store.bundles(study)) == 2


def test_nan_is_not_stored(url: str) -> None:
    with open_store(url) as store:
        ledger = store.ledger(opened(store).id)
        with pytest.raises(StoreError, match="JSON compliant"):
            ledger.record(trial(0, loss=float("nan")))
        assert ledger.trials() == []


def damage(url: str, statement: str, *values: object) -> None:
    connection = sqlite3.connect(url.removeprefix("sqlite:///"))
    with connection:
        connection.execute(statement, values)
    connection.close()


@pytest.mark.parametrize(
    "statement",
    [
        """UPDATE trials SET config = replace(config, 'int4', 'int8')""",
        """UPDATE trials SET config = '{"a": "int3-g32"}'""",
        """UPDATE trials SET feasible = '{"strict": true, "relaxed": true}'""",
    ],
)
def test_a_damaged_trial_is_refused(url: str, statement: str) -> None:
    with open_store(url) as store:
        study = opened(store).id
        store.ledger(study).record(trial(0))
        damage(url, statement)
        with pytest.raises(StoreError, match="restore a backup"):
            store.ledger(study).trials()


def test_a_damaged_record_is_refused(url: str) -> None:
    with open_store(url) as store:
        study = opened(store).id
        store.record_bundle(study, manifest(), config_digest="c", artifact_bytes=1)
        store.record_run(study, "pi", record(), measurements=MEASUREMENTS)
        damage(url, "UPDATE runs SET record = substr(record, 1, 40)")
        with pytest.raises(StoreError, match="stored run cannot be read"):
            store.runs(study)


@pytest.mark.parametrize("version", [0, SCHEMA_VERSION + 1, 99])
def test_another_schema_version_is_refused(url: str, version: int) -> None:
    open_store(url).close()
    damage(url, "UPDATE schema_version SET version = ?", version)
    with pytest.raises(StoreError, match=f"schema version {version}, this toggle-edge reads 1"):
        open_store(url)


def write_version_1(url: str) -> None:
    """A store as the first release wrote it, with a study, a trial, a bundle, and a run with its measurements."""
    connection = sqlite3.connect(url.removeprefix("sqlite:///"))
    connection.executescript(VERSION_1)
    row = trial_row(trial(0))
    later = ("properties", "refuted")
    row = {k: json.dumps(v) if isinstance(v, dict) else v for k, v in row.items() if k not in later}
    columns = ", ".join(f'"{name}"' for name in ("study", *row))
    digest = digest_of(to_json(manifest()))
    with connection:
        connection.execute(
            f"INSERT INTO trials ({columns}) VALUES ({', '.join('?' * (len(row) + 1))})",  # noqa: S608
            (1, *row.values()),
        )
        connection.execute("INSERT INTO bundles VALUES (1, ?, 'c', 5, ?)", (digest, to_json(manifest())))
        connection.execute(
            "INSERT INTO runs VALUES ('r1', 1, ?, 'pi', 'PASS', ?, 1, '{\"probes\": 59}', NULL, '2026-11-20')",
            (digest, to_json(record())),
        )
        for name, each in MEASUREMENTS.items():
            values = measurement_row("r1", name, each).values()
            connection.execute("INSERT INTO measurements VALUES (?,?,?,?,?,?,?,?,?,?)", tuple(values))
    connection.close()


def schema(url: str) -> dict[str, object]:
    """Columns in any order, keys and constraints of every table, as the database tells them."""
    engine = sa.create_engine(url)
    inspector = sa.inspect(engine)
    tables = {
        table: (
            {(c["name"], str(c["type"]), c["nullable"]) for c in inspector.get_columns(table)},
            inspector.get_pk_constraint(table)["constrained_columns"],
            [(k["constrained_columns"], k["referred_table"]) for k in inspector.get_foreign_keys(table)],
            [unique["column_names"] for unique in inspector.get_unique_constraints(table)],
        )
        for table in inspector.get_table_names()
    }
    engine.dispose()
    return tables


def test_readings_are_kept_and_never_contradicted(url: str) -> None:
    config, other = (Config.uniform(LAYERS, Format(bits, 32)) for bits in (4, 8))
    with open_store(url) as store:
        readings = store.readings(opened(store).id)
        assert readings.find(config, 20) is None
        for found in (
            StoredReading({"strict": 20, "relaxed": 19}, 20, 97.5),
            StoredReading({"strict": 1}, 40, None),
        ):
            readings.record(config, found)
            readings.record(config, found)
            assert readings.find(config, found.probes) == found
        assert readings.find(other, 20) is None
        with pytest.raises(StoreError, match="satisfied"):
            readings.record(config, StoredReading({"strict": 19, "relaxed": 19}, 20, 97.5))
        with pytest.raises(StoreError):
            store.readings(99).record(config, StoredReading({"strict": 1}, 20, None))
    with open_store(url) as store:
        assert store.readings(opened(store).id).find(config, 20) is not None


def test_a_store_of_the_first_release_is_brought_up_to_date(url: str, tmp_path: Path) -> None:
    write_version_1(url)
    with open_store(url) as store:
        (study,) = store.studies()
        assert (study.name, study.profile_digest, study.sensitivity) == ("first", None, None)
        assert study.batch == 1
        assert list(store.ledger(study.id).trials()) == [trial(0)]
        assert [bundle.manifest for bundle in store.bundles(study.id)] == [manifest()]
        (run,) = store.runs(study.id)
        assert (run.record, run.measurements, run.certificate) == (record(), MEASUREMENTS, {"probes": 59})
        # What the older release did not note cannot be compared, so the search does not go on.
        with pytest.raises(StudyError, match="the probes' content was not noted"):
            opened(store)
        store.ledger(study.id).record(trial(1))
    with open_store(url) as store:
        assert len(store.ledger(study.id).trials()) == 2
    fresh = f"sqlite:///{tmp_path}/fresh.db"
    open_store(fresh).close()
    assert schema(url) == schema(fresh)


def test_a_migration_that_fails_leaves_the_store_as_it_was(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_version_1(url)
    before = schema(url)

    def breaks(connection: sa.Connection) -> None:
        MIGRATIONS[2](connection)
        connection.execute(sa.text("ALTER TABLE nowhere ADD COLUMN x TEXT"))

    monkeypatch.setattr(database, "MIGRATIONS", {2: breaks})
    with pytest.raises(StoreError, match="nowhere"):
        open_store(url)
    assert schema(url) == before
    monkeypatch.undo()
    open_store(url).close()


def test_every_version_has_its_migration() -> None:
    assert sorted(MIGRATIONS) == list(range(2, SCHEMA_VERSION + 1))


def test_foreign_files_and_tables_are_refused(url: str, tmp_path: Path) -> None:
    damage(url, "CREATE TABLE runs (x)")
    with pytest.raises(StoreError, match="'runs' that is not ours"):
        open_store(url)
    (tmp_path / "text.db").write_text("not a database" * 100)
    for bad in (f"sqlite:///{tmp_path}/text.db", f"sqlite:///{tmp_path}/no/folder.db", "nonsense", "odd://x"):
        with pytest.raises(StoreError, match="store:"):
            open_store(bad)


def test_sqlite_keeps_a_write_ahead_log_and_foreign_keys(url: str) -> None:
    with open_store(url) as store, store._engine.connect() as connection:
        assert connection.execute(sa.text("PRAGMA journal_mode")).scalar() == "wal"
        assert connection.execute(sa.text("PRAGMA foreign_keys")).scalar() == 1


def test_two_processes_may_share_a_store(url: str) -> None:
    with open_store(url) as one, open_store(url) as two:
        study = opened(one)
        assert opened(two) == study
        one.ledger(study.id).record(trial(0))
        two.ledger(study.id).record(trial(1))
        assert [each.index for each in one.ledger(study.id).trials()] == [0, 1]


def test_an_unknown_study_has_no_ledger(url: str) -> None:
    with open_store(url) as store, pytest.raises(StoreError, match="no study 7"):
        store.ledger(7)
