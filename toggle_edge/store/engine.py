"""How a database is reached: URL, JSON, and SQLite's transactions."""

from __future__ import annotations

import functools
import json
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from toggle_edge.errors import StoreError

DEFAULT_URL = "sqlite:///toggle-edge.db"
BUSY_SECONDS = 30
"""How long a write waits for another process's write."""


def connect(url: str) -> sa.Engine:
    """An engine for a URL; nothing is opened yet. Raises StoreError on a URL or driver that is not there."""
    try:
        engine = sa.create_engine(url, json_serializer=functools.partial(json.dumps, allow_nan=False))
    except (SQLAlchemyError, ImportError) as exc:
        raise StoreError(f"store: expected a database URL such as {DEFAULT_URL}, got {url!r}: {exc}") from exc
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # The driver's own transactions start late and leave schema changes outside; ours begin below.
    connection.isolation_level = None
    for pragma in ("foreign_keys = ON", f"busy_timeout = {BUSY_SECONDS * 1000}", "journal_mode = WAL"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: sa.Connection) -> None:
    # A transaction that reads first and writes later could otherwise be refused in between, without waiting.
    connection.exec_driver_sql("BEGIN IMMEDIATE")
