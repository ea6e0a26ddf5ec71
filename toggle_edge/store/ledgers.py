"""One study's trials and readings, as the search and its confirmation read and write them."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from toggle_edge.config import Config
from toggle_edge.errors import StoreError
from toggle_edge.search.trial import Trial
from toggle_edge.store import tables
from toggle_edge.store.database import Database
from toggle_edge.store.rows import StoredReading, now, reading, trial_of, trial_row


class StudyLedger:
    """A study's trials. An index that is taken is a StoreError."""

    def __init__(self, database: Database, study: int) -> None:
        self._database, self._study = database, study

    def trials(self) -> Sequence[Trial]:
        query = (
            sa.select(tables.trials)
            .where(tables.trials.c.study == self._study)
            .order_by(tables.trials.c.index)
        )
        with reading("trial"):
            return [trial_of(row) for row in self._database.rows(query)]

    def record(self, trial: Trial) -> None:
        with self._database.transaction() as connection:
            row = {**trial_row(trial), "study": self._study, "created": now()}
            connection.execute(tables.trials.insert().values(row))


class StudyReadings:
    """What a study's finalists did on its selection probes, so that nobody has to read them twice."""

    def __init__(self, database: Database, study: int) -> None:
        self._database, self._study = database, study

    def find(self, config: Config, probes: int) -> StoredReading | None:
        """What the config did on the first so many selection probes; None where that is not known."""
        key = self._key(config, probes)
        for row in self._database.rows(sa.select(tables.readings).filter_by(**key)):
            return StoredReading(row["satisfied"], row["probes"], row["avgpp"])
        return None

    def record(self, config: Config, found: StoredReading) -> None:
        """Remember a reading. The same one again changes nothing; another one under its key is a StoreError."""
        key = self._key(config, found.probes)
        with self._database.transaction() as connection:
            row = connection.execute(sa.select(tables.readings).filter_by(**key)).mappings().first()
            if row is None:
                values = {"satisfied": dict(found.satisfied), "avgpp": found.avgpp, "created": now()}
                connection.execute(tables.readings.insert().values(**key, **values))
            elif row["satisfied"] != dict(found.satisfied):
                raise StoreError(
                    f"store: {self._database.where}: config {config.digest[:12]} satisfied {row['satisfied']} of "
                    f"{found.probes} selection probes, and now {dict(found.satisfied)}; is another version or machine "
                    "at work on this study?"
                )

    def _key(self, config: Config, probes: int) -> dict[str, object]:
        return {"study": self._study, "config_digest": config.digest, "probes": probes}
