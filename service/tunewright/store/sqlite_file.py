"""SQLite files: read without changing them, and copied while other processes write. Does not know the tables."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from sqlalchemy import Connection, create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

_BUSY_SECONDS = 15.0


class DatabaseUnusable(Exception):
    """The database cannot be used as it is. One line: what is wrong, where, and what to do."""


def sqlite_path(url: str) -> Path | None:
    """The file of a SQLite database; None for one in memory and for other databases. Raises DatabaseUnusable."""
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise DatabaseUnusable(
            "--database-url is not a SQLAlchemy URL, such as sqlite:////srv/tunewright.db"
        ) from error
    if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        return None
    return Path(str(parsed.database)).absolute()


@contextmanager
def reading(path: Path, *, alone: bool = False) -> Iterator[Connection]:
    """A connection that cannot write. Raises DatabaseUnusable where SQLite cannot read the file.

    `alone`: no other process has the file open or opens it meanwhile. Then no further file is made beside it, unless a
    crash left a log that has to be read.
    """
    with _explained(path), closing(_open_read_only(path, alone)) as opened:
        engine = create_engine("sqlite://", creator=lambda: opened)
        with engine.connect() as connection:
            yield connection


def _open_read_only(path: Path, alone: bool = False, timeout: float = _BUSY_SECONDS) -> sqlite3.Connection:
    how = "immutable=1" if alone and not path.with_name(f"{path.name}-wal").exists() else "mode=ro"
    return sqlite3.connect(
        f"{path.as_uri()}?{how}",
        uri=True,
        timeout=timeout,
        isolation_level=None,
        check_same_thread=False,
    )


class Changes:
    """Says whether a SQLite database was changed, by any process. Costs a few microseconds and never waits.

    Opened at the first question: a connection must not be carried into a forked process.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cursor: sqlite3.Cursor | None = None
        self._opened = 0
        """How often a connection was opened: each counts commits from a number of its own."""
        self._alone = threading.Lock()
        """Two threads in one cursor would end the process."""

    def version(self) -> tuple[int, int] | None:
        """A value that is another one after each commit of any other connection; None where SQLite cannot tell it now.

        A commit is seen as soon as it is done, since `data_version` compares the header of the write-ahead log's index,
        which all processes share in memory. In other journal modes it reads a counter in the file.
        """
        with self._alone:
            try:
                if self._cursor is None:
                    self._opened += 1
                    self._cursor = _open_read_only(self._path, timeout=0).cursor()
                # All rows are fetched, so that the statement ends: within one, SQLite keeps to the version it has begun
                # on.
                return self._opened, int(self._cursor.execute("PRAGMA data_version").fetchall()[0][0])
            except sqlite3.Error:
                self._close()
                return None

    def close(self) -> None:
        with self._alone:
            self._close()

    def _close(self) -> None:
        if self._cursor is not None:
            self._cursor.connection.close()
            self._cursor = None


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.DatabaseError, DBAPIError) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        if not isinstance(cause, sqlite3.OperationalError):
            raise _damaged(path, str(cause)) from error
        raise DatabaseUnusable(
            f"the database {path} cannot be read ({cause}): this user must be able to read and write it and its "
            "folder, and no other program may keep it locked"
        ) from error


def _damaged(path: Path, how: str) -> DatabaseUnusable:
    return DatabaseUnusable(
        f"the database {path} is damaged ({' '.join(how.split())}). Nothing was changed. Restore a backup "
        "(tunewright restore ARCHIVE --replace), or put a copy from the folder backups in its place"
    )


def check(path: Path) -> None:
    """Check every page of a database that no other process has open. Raises DatabaseUnusable where it is damaged or
    cannot be used."""
    if not os.access(path, os.R_OK | os.W_OK):
        raise DatabaseUnusable(
            f"the database {path} cannot be read and written by this user: see its owner and mode"
        )
    with reading(path, alone=True) as connection:
        verdict = str(connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one())
    if verdict != "ok":
        raise _damaged(path, verdict)


def snapshot(source: Path, target: Path) -> None:
    """Copy a database consistently to `target`, even while other processes write: one file, mode 0600, checked and
    synced to disk.

    Raises DatabaseUnusable, and OSError where the disk is full. `target` must not exist.
    """
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    with (
        _explained(source),
        closing(_open_read_only(source)) as live,
        closing(sqlite3.connect(target)) as copy,
    ):
        try:
            live.backup(copy)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target)) from error
            raise
    settle(target)
    try:
        check(target)
    except DatabaseUnusable as error:
        raise _damaged(source, "as its copy shows") from error


def settle(path: Path) -> None:
    """Make the database one file without a log beside it, and sync it to disk. No other process may have it open."""
    with _explained(path), closing(sqlite3.connect(path, isolation_level=None)) as connection:
        mode = connection.execute("PRAGMA journal_mode=DELETE").fetchone()[0]
        if mode != "delete":
            raise sqlite3.OperationalError(f"its journal mode stays {mode}")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
