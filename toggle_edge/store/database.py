"""The store: studies, trials, bundles, runs and measurements. SQLite unless a URL says otherwise.

Every write is one transaction. Records are immutable: writing another value under a known key is an error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from toggle_runtime.records import (
    Manifest,
    Measurement,
    RecordError,
    RunRecord,
    digest_of,
    from_json,
    to_json,
)

from toggle_edge.errors import ConfigError, SearchError, StoreError, StudyError
from toggle_edge.profiles import nearest
from toggle_edge.search.trial import Ledger, Trial
from toggle_edge.store import tables
from toggle_edge.store.differences import differences
from toggle_edge.store.engine import DEFAULT_URL, connect
from toggle_edge.store.migrations import MIGRATIONS
from toggle_edge.store.rows import (
    StoredBundle,
    StoredRun,
    StoredStudy,
    StudyIdentity,
    measurement_of,
    measurement_row,
    trial_of,
    trial_row,
)


def open_store(url: str = DEFAULT_URL) -> Store:
    """Open a store, creating its tables where there are none.

    Raises StoreError if the database cannot be opened, was written by a newer version, or holds other tables
    under our names.
    """
    store = Store(connect(url))
    try:
        store.migrate()
    except BaseException:
        store.close()
        raise
    return store


class Store:
    """An open database. Close it, or use it as a context manager. Methods raise StoreError on failure."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give all connections back. Safe to repeat."""
        self._engine.dispose()

    def migrate(self) -> None:
        """Bring the schema to this version in one transaction; `open_store` does it.

        Raises StoreError for a newer store, and for one that cannot be brought up to date, which stays as it was.
        """
        with self._transaction() as connection:
            present = set(sa.inspect(connection).get_table_names())
            if tables.schema_version.name not in present:
                clash = sorted(present & set(tables.metadata.tables))
                if clash:
                    raise StoreError(
                        f"store: {self._where} holds a table {clash[0]!r} that is not ours; use another one"
                    )
                tables.metadata.create_all(connection)
                connection.execute(tables.schema_version.insert().values(version=tables.SCHEMA_VERSION))
            version = connection.execute(sa.select(tables.schema_version.c.version)).scalar()
            if version is None or not 1 <= version <= tables.SCHEMA_VERSION:
                raise StoreError(
                    f"store: {self._where} has schema version {version}, this toggle-edge reads 1 to "
                    f"{tables.SCHEMA_VERSION}; upgrade toggle-edge or use another store"
                )
            for step in range(version + 1, tables.SCHEMA_VERSION + 1):
                MIGRATIONS[step](connection)
            if version < tables.SCHEMA_VERSION:
                connection.execute(tables.schema_version.update().values(version=tables.SCHEMA_VERSION))

    def open_study(self, name: str, identity: StudyIdentity) -> StoredStudy:
        """The study of this name, created if there is none.

        Raises StudyError naming every difference if it exists with another model, profile, set of probes, target,
        seed, quantiser or pruner: its trials would not be comparable.
        """
        with self._transaction() as connection:
            found = self._find_study(connection, name)
            if found is None:
                values = {**dataclasses.asdict(identity), "name": name, "created": _now()}
                connection.execute(tables.studies.insert().values(values))
                found = self._find_study(connection, name)
        if found is None:
            raise StoreError(f"store: {self._where}: study {name!r} was written and cannot be read")
        if differing := differences(found, identity):
            raise StudyError(
                f"store: study {name!r} was started differently: {'; '.join(differing)}; "
                "choose another study name (or work folder), or go back to what it was started with"
            )
        return StoredStudy(**found)

    def study(self, name: str) -> StoredStudy:
        """The study of this name. Raises StudyError naming the nearest, and those that there are."""
        for study in (known := self.studies()):
            if study.name == name:
                return study
        names = ", ".join(study.name for study in known) or "none"
        raise StudyError(
            f"store: {self._where} has no study {name!r}{nearest(name, [study.name for study in known])}; "
            f"it has: {names}"
        )

    def record_sensitivity(self, study: int, sensitivity: Mapping[str, float]) -> None:
        """Remember what each layer loses alone, so that a search that goes on starts from the same design.

        Raises StoreError on an unknown study, and on values that differ from those that its trials began with.
        """
        columns = tables.studies.c
        with self._transaction() as connection:
            found = connection.execute(sa.select(columns.sensitivity).where(columns.id == study)).first()
            if found is None:
                raise StoreError(f"store: {self._where} has no study {study}; open it first")
            if found.sensitivity is None:
                values = {"sensitivity": dict(sensitivity)}
                connection.execute(tables.studies.update().where(columns.id == study).values(values))
            elif found.sensitivity != sensitivity:
                raise StoreError(
                    f"store: study {study} began with other sensitivities; another process may be searching it "
                    "now: wait for it, then repeat"
                )

    def studies(self) -> list[StoredStudy]:
        """All studies, oldest first."""
        return [
            StoredStudy(**row) for row in self._rows(sa.select(tables.studies).order_by(tables.studies.c.id))
        ]

    def ledger(self, study: int) -> Ledger:
        """The trials of one study, as the search reads and writes them."""
        if not self._rows(sa.select(tables.studies.c.id).where(tables.studies.c.id == study)):
            raise StoreError(f"store: {self._where} has no study {study}; open it first")
        return _StudyLedger(self, study)

    def record_bundle(
        self, study: int, manifest: Manifest, *, config_digest: str, artifact_bytes: int
    ) -> str:
        """Remember an exported bundle; returns its digest. Recording the same one again changes nothing."""
        text = to_json(manifest)
        digest = digest_of(text)
        row = {"config_digest": config_digest, "artifact_bytes": artifact_bytes, "manifest": text}
        key = {"study": study, "digest": digest}
        with self._transaction() as connection:
            found = connection.execute(sa.select(tables.bundles).filter_by(**key)).mappings().first()
            if found is None:
                connection.execute(tables.bundles.insert().values(**key, **row))
            elif {name: found[name] for name in row} != row:
                raise StoreError(
                    f"store: bundle {digest[:12]} is recorded with config {found['config_digest'][:12]} "
                    f"and {found['artifact_bytes']} bytes; got {config_digest[:12]} and {artifact_bytes}"
                )
        return digest

    def bundles(self, study: int) -> list[StoredBundle]:
        """A study's bundles, by digest."""
        query = (
            sa.select(tables.bundles).where(tables.bundles.c.study == study).order_by(tables.bundles.c.digest)
        )
        with _reading("bundle"):
            return [
                StoredBundle(**{**row, "manifest": from_json(Manifest, row["manifest"])})
                for row in self._rows(query)
            ]

    def record_run(
        self,
        study: int,
        device: str,
        record: RunRecord,
        *,
        measurements: Mapping[str, Measurement],
        certified: bool | None = None,
        certificate: Mapping[str, object] | None = None,
        traces: str | None = None,
    ) -> None:
        """Remember a run, its measurements and its certificate, all or nothing.

        Raises StoreError on an unknown bundle and on a run id that is taken.
        """
        run = {
            "run_id": record.run_id,
            "study": study,
            "bundle": record.bundle,
            "device": device,
            "outcome": record.outcome,
            "record": to_json(record),
            "certified": certified,
            "certificate": None if certificate is None else dict(certificate),
            "traces": traces,
            "created": _now(),
        }
        rows = [measurement_row(record.run_id, name, each) for name, each in measurements.items()]
        with self._transaction() as connection:
            connection.execute(tables.runs.insert().values(**run))
            if rows:
                connection.execute(tables.measurements.insert(), rows)

    def runs(self, study: int) -> list[StoredRun]:
        """A study's runs, oldest first."""
        query = (
            sa.select(tables.runs)
            .where(tables.runs.c.study == study)
            .order_by(tables.runs.c.created, tables.runs.c.run_id)
        )
        measured: dict[str, dict[str, Measurement]] = {}
        of_study = sa.select(tables.measurements).join(tables.runs).where(tables.runs.c.study == study)
        with _reading("run"):
            for row in self._rows(of_study.order_by(tables.measurements.c.name)):
                measured.setdefault(row["run"], {})[row["name"]] = measurement_of(row)
            return [
                StoredRun(
                    study=row["study"],
                    device=row["device"],
                    record=from_json(RunRecord, row["record"]),
                    measurements=measured.get(row["run_id"], {}),
                    certified=row["certified"],
                    certificate=row["certificate"],
                    traces=row["traces"],
                    created=row["created"],
                )
                for row in self._rows(query)
            ]

    @staticmethod
    def _find_study(connection: sa.Connection, name: str) -> dict[str, Any] | None:
        query = sa.select(tables.studies).where(tables.studies.c.name == name)
        row = connection.execute(query).mappings().first()
        return None if row is None else dict(row)

    @property
    def _where(self) -> str:
        return self._engine.url.render_as_string(hide_password=True)

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except SQLAlchemyError as exc:
            raise StoreError(f"store: {self._where}: {exc}") from exc

    def _rows(self, query: sa.Select[Any]) -> Sequence[sa.RowMapping]:
        with self._transaction() as connection:
            return connection.execute(query).mappings().all()


class _StudyLedger:
    def __init__(self, store: Store, study: int) -> None:
        self._store, self._study = store, study

    def trials(self) -> Sequence[Trial]:
        query = (
            sa.select(tables.trials)
            .where(tables.trials.c.study == self._study)
            .order_by(tables.trials.c.index)
        )
        with _reading("trial"):
            return [trial_of(row) for row in self._store._rows(query)]

    def record(self, trial: Trial) -> None:
        with self._store._transaction() as connection:
            row = {**trial_row(trial), "study": self._study, "created": _now()}
            connection.execute(tables.trials.insert().values(row))


@contextmanager
def _reading(what: str) -> Iterator[None]:
    try:
        yield
    except (RecordError, ConfigError, SearchError) as exc:
        raise StoreError(f"store: a stored {what} cannot be read: {exc}; restore a backup") from exc


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
