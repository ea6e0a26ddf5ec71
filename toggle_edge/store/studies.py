"""The store: studies, trials, bundles, runs and measurements. SQLite unless a URL says otherwise.

Every write is one transaction. Records are immutable: writing another value under a known key is an error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from toggle_runtime.records import (
    Manifest,
    Measurement,
    RunRecord,
    digest_of,
    from_json,
    to_json,
)

from toggle_edge.errors import StoreError, StudyError
from toggle_edge.search.trial import Ledger
from toggle_edge.store import tables
from toggle_edge.store.database import Database
from toggle_edge.store.differences import differences
from toggle_edge.store.engine import DEFAULT_URL, connect
from toggle_edge.store.ledgers import StudyLedger, StudyReadings
from toggle_edge.store.rows import (
    StoredBundle,
    StoredRun,
    StoredStudy,
    StudyIdentity,
    measurement_of,
    measurement_row,
    now,
    reading,
)
from toggle_edge.strict_tables import nearest


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


class Store(Database):
    """All that commands keep. Methods raise StoreError on failure."""

    def open_study(self, name: str, identity: StudyIdentity) -> StoredStudy:
        """The study of this name, created if there is none.

        Raises StudyError naming every difference if it exists with another model, profile, set of probes, target,
        seed, quantiser, pruner or batch: its trials would not be comparable.
        """
        with self.transaction() as connection:
            found = self._find_study(connection, name)
            if found is None:
                values = {**dataclasses.asdict(identity), "name": name, "created": now()}
                connection.execute(tables.studies.insert().values(values))
                found = self._find_study(connection, name)
        if found is None:
            raise StoreError(f"store: {self.where}: study {name!r} was written and cannot be read")
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
            f"store: {self.where} has no study {name!r}{nearest(name, [study.name for study in known])}; "
            f"it has: {names}"
        )

    def record_sensitivity(self, study: int, sensitivity: Mapping[str, float]) -> None:
        """Remember what each layer loses alone, so that a search that goes on starts from the same design.

        Raises StoreError on an unknown study, and on values that differ from those that its trials began with.
        """
        columns = tables.studies.c
        with self.transaction() as connection:
            found = connection.execute(sa.select(columns.sensitivity).where(columns.id == study)).first()
            if found is None:
                raise StoreError(f"store: {self.where} has no study {study}; open it first")
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
            StoredStudy(**row) for row in self.rows(sa.select(tables.studies).order_by(tables.studies.c.id))
        ]

    def ledger(self, study: int) -> Ledger:
        """The trials of one study, as the search reads and writes them."""
        if not self.rows(sa.select(tables.studies.c.id).where(tables.studies.c.id == study)):
            raise StoreError(f"store: {self.where} has no study {study}; open it first")
        return StudyLedger(self, study)

    def readings(self, study: int) -> StudyReadings:
        """What one study's finalists did on its selection probes."""
        return StudyReadings(self, study)

    def record_bundle(
        self, study: int, manifest: Manifest, *, config_digest: str, artifact_bytes: int
    ) -> str:
        """Remember an exported bundle; returns its digest. Recording the same one again changes nothing."""
        text = to_json(manifest)
        digest = digest_of(text)
        row = {"config_digest": config_digest, "artifact_bytes": artifact_bytes, "manifest": text}
        key = {"study": study, "digest": digest}
        with self.transaction() as connection:
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
        with reading("bundle"):
            return [
                StoredBundle(**{**row, "manifest": from_json(Manifest, row["manifest"])})
                for row in self.rows(query)
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
            "created": now(),
        }
        rows = [measurement_row(record.run_id, name, each) for name, each in measurements.items()]
        with self.transaction() as connection:
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
        with reading("run"):
            for row in self.rows(of_study.order_by(tables.measurements.c.name)):
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
                for row in self.rows(query)
            ]

    @staticmethod
    def _find_study(connection: sa.Connection, name: str) -> dict[str, Any] | None:
        query = sa.select(tables.studies).where(tables.studies.c.name == name)
        row = connection.execute(query).mappings().first()
        return None if row is None else dict(row)
