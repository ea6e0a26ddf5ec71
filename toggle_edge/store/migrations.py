"""From one schema version to the next. A store is brought up to date when it is opened, or left as it was.

A migration is frozen once released: it says what the schema was then, so it names columns itself instead of
asking `tables`, which goes on changing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import sqlalchemy as sa

Migration = Callable[[sa.Connection], None]


def _to_2(connection: sa.Connection) -> None:
    """Studies say what identifies them in full and keep their sensitivities; trials say when they were recorded."""
    for column in ("model_folder", "profile_path", "profile_digest", "probes_path", "probes_digest"):
        _add(connection, "studies", column, "TEXT")
    _add(connection, "studies", "sensitivity", "JSON")
    _add(connection, "trials", "created", "TEXT")


def _to_3(connection: sa.Connection) -> None:
    """Studies say which quantiser they search with."""
    _add(connection, "studies", "quantiser", "TEXT DEFAULT 'rtn' NOT NULL")


def _to_4(connection: sa.Connection) -> None:
    """Trials say what each property's robustness is, and whether they were refuted before their last probe; studies
    which pruner they search with."""
    _add(connection, "studies", "pruner", "TEXT DEFAULT 'magnitude' NOT NULL")
    _add(connection, "trials", "properties", "JSON")
    _add(connection, "trials", "refuted", "BOOLEAN")


def _to_5(connection: sa.Connection) -> None:
    """Finalists' readings on selection probes; studies say in batches of how many trials they search, and keep what
    their profile asked for, not only its digest."""
    metadata = sa.MetaData()
    sa.Table("studies", metadata, sa.Column("id", sa.Integer, primary_key=True))
    sa.Table(
        "readings",
        metadata,
        sa.Column("study", sa.ForeignKey("studies.id"), primary_key=True),
        sa.Column("config_digest", sa.Text, primary_key=True),
        sa.Column("probes", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("satisfied", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("avgpp", sa.Double),
        sa.Column("created", sa.Text, nullable=False),
    ).create(connection)
    _add(connection, "studies", "batch", "INTEGER DEFAULT '1' NOT NULL")
    _add(connection, "studies", "profile_content", "JSON")


def _add(connection: sa.Connection, table: str, column: str, kind: str) -> None:
    connection.execute(sa.text(f"ALTER TABLE {table} ADD COLUMN {column} {kind}"))


MIGRATIONS: Mapping[int, Migration] = {2: _to_2, 3: _to_3, 4: _to_4, 5: _to_5}
"""By the version that each leads to, from the version before."""
