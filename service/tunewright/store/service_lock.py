"""The lock that gives a PostgreSQL database to one service at a time. For SQLite the lock of the data folder does that.

It is an advisory lock of a session: the server releases it when the connection ends, so also when its process is
killed.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from tunewright.store.database import Database, first_line
from tunewright.store.sqlite_file import DatabaseUnusable

log = logging.getLogger("tunewright.store")

_PATIENCE, _AGAIN_AFTER = 3.0, 0.2
"""Seconds in which the session of a service that was killed just now ends, and between two tries."""
_CHECK_EVERY = 5.0
"""Seconds between two questions to a server that says nothing, so that a connection that was lost is noticed."""
_LONGEST_NAME = 63
"""Bytes that PostgreSQL keeps of an application's name."""
_SERVICE, _SCHEMA = "hashtext('tunewright: the service')", "hashtext(current_schema())"
"""The two keys of the lock. Services may share a database where each has a schema of its own."""
_TAKE = text(f"SELECT pg_try_advisory_lock({_SERVICE}, {_SCHEMA})")
_HOLDER = text(
    "SELECT application_name FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE locktype = 'advisory' AND granted "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
    f"AND classid::bigint = {_SERVICE}::bigint & 4294967295 AND objid::bigint = {_SCHEMA}::bigint & 4294967295"
)
_DEAD_AFTER_HALF_A_MINUTE = text(
    "SELECT set_config('tcp_keepalives_idle', '10', false), set_config('tcp_keepalives_interval', '5', false), "
    "set_config('tcp_keepalives_count', '4', false)"
)
"""The server notices within that time that the machine of a session is gone."""


class ServiceLock:
    """The lock, while it is held. Its connection is used by one thread at a time."""

    def __init__(self, url: str, data_dir: Path) -> None:
        """`data_dir` and the name of this machine tell others who holds it."""
        self._name = str(Database(url))
        who = f"tunewright on {socket.gethostname()}: {data_dir}".encode()[:_LONGEST_NAME]
        self._engine: Engine = create_engine(
            Database(url).driver_url,
            poolclass=NullPool,
            isolation_level="AUTOCOMMIT",
            connect_args={"application_name": who.decode(errors="ignore")},
        )
        self._connection: Connection | None = None
        self._stop, self._stop_write = os.pipe()
        self._watcher: threading.Thread | None = None
        self.lost: str | None = None
        """Why the lock was lost to another service, if it was."""

    @classmethod
    def take(cls, url: str, data_dir: Path) -> Self | None:
        """Take the lock of a database. None for SQLite. Raises DatabaseUnusable where another service has it, or the
        database cannot be reached."""
        database = Database(url)
        if not database.is_postgresql:
            return None
        lock = cls(url, data_dir)
        deadline = time.monotonic() + _PATIENCE
        try:
            while (holder := lock._try()) is not None:
                if time.monotonic() > deadline:
                    raise DatabaseUnusable(lock._taken_by(holder))
                time.sleep(_AGAIN_AFTER)
        except SQLAlchemyError as error:
            lock.close()
            raise DatabaseUnusable(
                f"the database {database} cannot be reached: {first_line(error)}"
            ) from error
        except BaseException:
            lock.close()
            raise
        return lock

    def watch(self, on_lost: Callable[[], object]) -> None:
        """Notice, in a thread, when the session ends, and begin another one at once. Calls `on_lost`, in the thread,
        where another service has the lock by then."""
        self._watcher = threading.Thread(
            target=self._watch, args=(on_lost,), name="service-lock", daemon=True
        )
        self._watcher.start()

    def close(self) -> None:
        """Release the lock."""
        os.close(self._stop_write)
        if self._watcher is not None:
            self._watcher.join(_AGAIN_AFTER * 10)
        self._disconnect()
        self._engine.dispose()
        os.close(self._stop)

    def _watch(self, on_lost: Callable[[], object]) -> None:
        is_known = False
        while not self._must_stop():
            try:
                holder = self._try()
            except SQLAlchemyError as error:
                if not is_known:
                    log.error("the database %s cannot be reached: %s", self._name, first_line(error))
                is_known = True
                continue
            if holder is not None:
                self.lost = self._taken_by(holder)
                on_lost()
                return
            is_known = False

    def _must_stop(self) -> bool:
        """Wait until it is time to look again: at once where the server has ended the session."""
        watched: list[int] = [self._stop]
        if self._connection is not None:
            session = self._connection.connection.driver_connection
            assert session is not None, "it is open"
            watched.append(session.fileno())
        wait = _CHECK_EVERY if self._connection is not None else _AGAIN_AFTER
        return self._stop in select.select(watched, [], [], wait)[0]

    def _try(self) -> str | None:
        """Take the lock, unless this session has it. Returns who else has it; None where it is held now. Raises
        SQLAlchemyError."""
        try:
            if self._connection is not None:
                self._connection.execute(text("SELECT 1"))
                return None
            self._connection = self._engine.connect()
            self._connection.execute(_DEAD_AFTER_HALF_A_MINUTE)
            if self._connection.scalar(_TAKE):
                return None
            holder = str(self._connection.scalar(_HOLDER) or "unknown")
        except SQLAlchemyError:
            self._disconnect()
            raise
        self._disconnect()
        return holder

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(SQLAlchemyError):
                connection.close()

    def _taken_by(self, holder: str) -> str:
        return (
            f"another service uses the database {self._name} ({holder}): stop it, or give this one a database of its "
            "own. Nothing was changed"
        )
