"""Opens and upgrades the database. One connection policy for every process of the service."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event, func, select
from sqlalchemy.engine import make_url


class Database:
    """A pool of connections. `begin()` is the only way in: one transaction, committed or rolled back whole."""

    def __init__(self, url: str) -> None:
        self.url = url
        parsed = make_url(url)
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        if self.is_sqlite and parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        self._engine: Engine = create_engine(url, pool_pre_ping=not self.is_sqlite)
        if self.is_sqlite:
            event.listen(self._engine, "connect", _prepare_sqlite)
            event.listen(self._engine, "begin", _begin_sqlite)

    @contextmanager
    def begin(self, *, alone: str | None = None) -> Iterator[Connection]:
        """A transaction that writes (on SQLite it takes the write lock at once, so it never fails half-way).

        Those with the same `alone` run one after another, so that what one looked up cannot change before it writes.
        """
        with self._engine.begin() as connection:
            if alone is not None and not self.is_sqlite:
                connection.execute(select(func.pg_advisory_xact_lock(func.hashtext(alone))))
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A consistent view that writes nothing; on SQLite it neither waits for writers nor stops them."""
        with self._engine.connect().execution_options(read_only=True) as connection:
            yield connection

    def upgrade(self) -> None:
        """Bring the tables to this version of the service. Safe to call again."""
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        with self._engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def close(self) -> None:
        self._engine.dispose()


def _prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # SQLAlchemy's events begin transactions, not the driver
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")  # a commit is on disk: power loss loses nothing
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute("PRAGMA busy_timeout=15000")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    read_only = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
