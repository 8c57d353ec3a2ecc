"""Opens and upgrades the database. One connection policy for every process of the service."""

from __future__ import annotations

import copy
import filecmp
import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy import Connection, Engine, create_engine, event, func, inspect, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from tunewright.atomic import sync_folder
from tunewright.errors import Busy, DatabaseUnavailable, StorageFull
from tunewright.ids import utc_stamp
from tunewright.store.confined import PROJECT, confine_statement
from tunewright.store.sqlite_file import (
    Changes,
    DatabaseUnusable,
    check,
    reading,
    snapshot,
    sqlite_path,
)
from tunewright.store.tables import metadata

log = logging.getLogger("tunewright.store")

# Alembic is imported where it is used, so that only upgrades pay for it, and not every restart of the api.
if TYPE_CHECKING:
    from alembic.config import Config

_MIGRATIONS = Path(__file__).parent / "migrations"
_ONE_STATE = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
"""Else each statement of a transaction of PostgreSQL sees another state of the database."""


def known_revisions() -> list[str]:
    """The revisions of the tables that this version of the service knows, newest first."""
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory.from_config(_alembic())
    return [script.revision for script in scripts.walk_revisions()]


class Database:
    """A pool of connections. `begin` is a transaction that is committed or rolled back as a whole; `read` only
    reads."""

    def __init__(self, url: str) -> None:
        """Raises DatabaseUnusable where SQLAlchemy does not know the URL or its driver."""
        self.url = url
        sqlite_path(url)
        self._url = _with_driver(url)
        self.is_sqlite = self._url.get_backend_name() == "sqlite"
        self.is_postgresql = self._url.get_backend_name() == "postgresql"
        self._reads: dict[str, Any] = {"read_only": True} if self.is_sqlite else _ONE_STATE
        if self.is_sqlite and self._url.database:
            Path(self._url.database).parent.mkdir(parents=True, exist_ok=True)
        try:
            self._engine: Engine = _engine(self._url)
        except (SQLAlchemyError, ImportError) as error:
            raise DatabaseUnusable(
                f"the database {self} cannot be used: {first_line(error)}. Is its driver installed?"
            ) from error
        event.listen(self._engine, "before_execute", confine_statement, retval=True)
        self.project: str | None = None
        """The project to which its statements are confined; None: to none."""

    @property
    def driver_url(self) -> URL:
        """The URL with the name of the driver."""
        return self._url

    def of(self, project: str) -> Self:
        """The same database and pool of connections, with all statements confined to a project (`store.confined`)."""
        mine = copy.copy(self)
        mine.project = project
        mine._engine = self._engine.execution_options(**{PROJECT: project})
        return mine

    @contextmanager
    def begin(self, *, alone: str | None = None) -> Iterator[Connection]:
        """A transaction that writes. On SQLite it takes the write lock at its start, so it never fails in the middle.

        Transactions with the same `alone` run one after another, so that what one has read cannot change before it
        writes. Raises StorageFull where the disk of the database is full, Busy where the write lock could not be had in
        time, or other transactions were in the way, and DatabaseUnavailable where it cannot be reached; then nothing is
        written.
        """
        with self._explained(), self._engine.begin() as connection:
            if alone is not None and not self.is_sqlite:
                connection.execute(select(func.pg_advisory_xact_lock(func.hashtext(alone))))
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A consistent view without writes; it neither waits for writers nor blocks them. Raises
        DatabaseUnavailable."""
        with self._explained(), self._engine.connect().execution_options(**self._reads) as connection:
            yield connection

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OperationalError as error:
            if _is_full(error.orig):
                raise StorageFull(
                    "The disk of the database is full, so nothing was changed. Free some space and try again."
                ) from error
            if _is_busy(error.orig):
                raise Busy(
                    "The database was busy for too long, and nothing was changed: try again."
                ) from error
            if not self.is_sqlite and _is_lost(error):
                raise DatabaseUnavailable("The database cannot be reached now: try again.") from error
            raise

    def changes(self) -> Changes | None:
        """What says whether the database was changed; None for what is no SQLite file."""
        path = sqlite_path(self.url)
        return Changes(path) if path is not None else None

    def revision(self) -> str | None:
        """The revision of the tables; None where there are none yet. Reads only. No other process may have a SQLite
        file open.

        Raises DatabaseUnusable where the database is damaged, newer than this service, or not one of Tunewright.
        """
        path = sqlite_path(self.url)
        if path is not None:
            if not path.exists():
                return None
            check(path)
            with reading(path, alone=True) as connection:
                return self._known(connection)
        try:
            with self._engine.connect() as connection:
                return self._known(connection)
        except (SQLAlchemyError, ImportError) as error:
            raise DatabaseUnusable(f"the database {self} cannot be reached: {first_line(error)}") from error

    def _known(self, connection: Connection) -> str | None:
        from alembic.runtime.migration import MigrationContext

        tables = set(inspect(connection).get_table_names())
        found = MigrationContext.configure(connection).get_current_revision()
        if not self.is_sqlite:
            tables &= metadata.tables.keys()  # other programs may have their own tables in it
        if found is None and tables:
            raise DatabaseUnusable(
                f"the database {self} is not one of Tunewright: it has tables ({', '.join(sorted(tables)[:3])}) and "
                "no revision. Give another one with --database-url or --data-dir"
            )
        known = known_revisions()
        if found is not None and found not in known:
            raise DatabaseUnusable(
                f"the database {self} was made by a newer Tunewright: it is at revision {found}, and this version "
                f"knows {known[0]} at most. Nothing was changed. Start the newer version, or restore a backup that "
                "this one made (tunewright restore ARCHIVE --replace). The folder backups may have a copy from before "
                "its upgrade"
            )
        return found

    def upgrade(self, backups: Path | None = None) -> None:
        """Upgrade the tables to this version of the service. Safe to repeat; no other process may have the database
        open.

        Before a SQLite database with tables is changed, it is copied to the folder `backups`, if one is given. Raises
        DatabaseUnusable as `revision` does, and where the upgrade fails: then nothing was changed.
        """
        found, newest = self.revision(), known_revisions()[0]
        if found == newest:
            return
        copy = self._copy(found, newest, backups) if found is not None and backups is not None else None
        from alembic import command

        config = _alembic()
        try:
            with self._engine.begin() as connection:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except Exception as error:  # whatever a migration may raise
            raise DatabaseUnusable(
                f"the database {self} could not be upgraded from revision {found} to {newest}: {first_line(error)}. "
                "It is as it was" + (f", and its copy is {copy}" if copy else "")
            ) from error
        if found is not None:
            log.info("the database %s was upgraded from revision %s to %s", self, found, newest)

    def _copy(self, found: str, newest: str, backups: Path) -> Path | None:
        path = sqlite_path(self.url)
        if path is None:
            log.warning(
                "upgrading the database %s from revision %s to %s without a copy: of PostgreSQL the "
                "operator makes one before (pg_dump, or tunewright backup of the earlier version)",
                self, found, newest,
            )  # fmt: skip
            return None
        backups.mkdir(mode=0o700, exist_ok=True)
        temporary = backups / ".copy.tmp"
        temporary.unlink(missing_ok=True)
        snapshot(path, temporary)
        earlier = sorted(backups.glob(f"tunewright-{found}-*.db"))
        if earlier and filecmp.cmp(earlier[-1], temporary, shallow=False):  # the upgrade was tried before
            temporary.unlink()
            return earlier[-1]
        final = backups / f"tunewright-{found}-{utc_stamp()}.db"
        os.replace(temporary, final)
        sync_folder(backups)
        log.info("before its upgrade, the database was copied to %s", final)
        return final

    def __str__(self) -> str:
        """The name in messages: its file, or its URL without the password."""
        path = sqlite_path(self.url)
        return str(path) if path else self._url.render_as_string(hide_password=True)

    def close(self) -> None:
        self._engine.dispose()


def _engine(url: URL) -> Engine:
    if url.get_backend_name() == "sqlite":
        engine = create_engine(url)
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    if url.drivername != "postgresql+psycopg":
        return create_engine(url, pool_pre_ping=True)
    from tunewright.store import postgresql

    engine = create_engine(url, pool_pre_ping=True, json_serializer=postgresql.as_json)
    event.listen(engine, "connect", postgresql.prepare)
    return engine


def _with_driver(url: str) -> URL:
    """The URL with the driver that the service has for PostgreSQL; SQLAlchemy's own choice is psycopg2."""
    parsed = make_url(url)
    is_bare = parsed.drivername in ("postgresql", "postgres")
    return parsed.set(drivername="postgresql+psycopg") if is_bare else parsed


def _alembic() -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    return config


def first_line(error: BaseException) -> str:
    """The driver's message, without SQLAlchemy's statement and links."""
    return (str(getattr(error, "orig", None) or error).strip().splitlines() or [type(error).__name__])[0]


def _is_full(error: BaseException | None) -> bool:
    if isinstance(error, sqlite3.Error):
        # SHMSIZE: the index of the write-ahead log could not grow
        code = getattr(error, "sqlite_errorcode", None)
        return code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)
    return getattr(error, "sqlstate", None) == "53100"  # PostgreSQL's disk_full


def _is_busy(error: BaseException | None) -> bool:
    """Whether other transactions were in the way. Of PostgreSQL: serialization_failure, deadlock_detected,
    lock_not_available."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY
    return getattr(error, "sqlstate", None) in ("40001", "40P01", "55P03")


def _is_lost(error: OperationalError) -> bool:
    """Whether there is no connection to the server: refused (which has no code), broken, or ended by an operator."""
    code = getattr(error.orig, "sqlstate", None)
    return error.connection_invalidated or code is None or code.startswith(("08", "57P", "53300"))


def _prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # SQLAlchemy's events begin transactions, not the driver
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")  # a commit is on disk: power loss loses nothing
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute("PRAGMA busy_timeout=30000")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    read_only = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
