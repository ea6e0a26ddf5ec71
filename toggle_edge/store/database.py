"""One open database: its schema brought up to date, its transactions, its rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from toggle_edge.errors import StoreError
from toggle_edge.store import tables
from toggle_edge.store.migrations import MIGRATIONS


class Database:
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
        with self.transaction() as connection:
            present = set(sa.inspect(connection).get_table_names())
            if tables.schema_version.name not in present:
                clash = sorted(present & set(tables.metadata.tables))
                if clash:
                    raise StoreError(
                        f"store: {self.where} holds a table {clash[0]!r} that is not ours; use another one"
                    )
                tables.metadata.create_all(connection)
                connection.execute(tables.schema_version.insert().values(version=tables.SCHEMA_VERSION))
            version = connection.execute(sa.select(tables.schema_version.c.version)).scalar()
            if version is None or not 1 <= version <= tables.SCHEMA_VERSION:
                raise StoreError(
                    f"store: {self.where} has schema version {version}, this toggle-edge reads 1 to "
                    f"{tables.SCHEMA_VERSION}; upgrade toggle-edge or use another store"
                )
            for step in range(version + 1, tables.SCHEMA_VERSION + 1):
                MIGRATIONS[step](connection)
            if version < tables.SCHEMA_VERSION:
                connection.execute(tables.schema_version.update().values(version=tables.SCHEMA_VERSION))

    @property
    def where(self) -> str:
        return self._engine.url.render_as_string(hide_password=True)

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except SQLAlchemyError as exc:
            raise StoreError(f"store: {self.where}: {exc}") from exc

    def rows(self, query: sa.Select[Any]) -> Sequence[sa.RowMapping]:
        with self.transaction() as connection:
            return connection.execute(query).mappings().all()
