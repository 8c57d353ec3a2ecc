"""One service has a PostgreSQL database at a time; when it is killed, the next one has it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool
from tests.engine.conftest import wait_until

from postgres import Server, missing
from tunewright.store import service_lock
from tunewright.store.service_lock import ServiceLock
from tunewright.store.sqlite_file import DatabaseUnusable

HOLD = """
import sys, time
from pathlib import Path
from tunewright.store.service_lock import ServiceLock
lock = ServiceLock.take(sys.argv[1], Path("/srv/first"))
print("ready", flush=True)
time.sleep(60)
"""
on_postgresql = pytest.mark.skipif(missing() is not None, reason=f"PostgreSQL is left out: {missing()}")


@pytest.fixture
def place(postgres: Server) -> Iterator[str]:
    with postgres.database(migrated=False) as url:
        yield url


def take(url: str, data_dir: str = "/srv/second") -> ServiceLock:
    lock = ServiceLock.take(url, Path(data_dir))
    assert lock is not None
    return lock


@on_postgresql
def test_a_second_service_is_refused_until_the_first_is_killed(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", HOLD, place]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as first:
        try:
            assert first.stdout is not None
            assert first.stdout.readline() == "ready\n"
            with monkeypatch.context() as patience:
                patience.setattr(service_lock, "_PATIENCE", 0.0)
                with pytest.raises(
                    DatabaseUnusable, match=r"another service uses the database .*: /srv/first\)"
                ):
                    take(place)
        finally:
            first.kill()
    take(place).close()


@on_postgresql
def test_services_with_schemas_of_their_own_share_a_database(place: str) -> None:
    engine = create_engine(place, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("CREATE SCHEMA other"))
    one = take(place)
    other = take(f"{place}{'&' if '?' in place else '?'}options=-csearch_path%3Dother")
    other.close()
    one.close()


@on_postgresql
def test_a_session_that_was_ended_is_begun_again(place: str, postgres: Server) -> None:
    lock = take(place, "/srv/first")
    lock.watch(lambda: None)
    try:
        with postgres.refusing(place):
            pass
        with create_engine(place, poolclass=NullPool, isolation_level="AUTOCOMMIT").connect() as connection:
            wait_until(lambda: connection.scalar(service_lock._HOLDER) is not None, 30, "the lock")
        assert lock.lost is None
    finally:
        lock.close()


@on_postgresql
def test_a_service_that_has_lost_the_lock_to_another_one_is_told(place: str, postgres: Server) -> None:
    first, told = take(place, "/srv/first"), threading.Event()
    with postgres.refusing(place):
        pass
    second = take(place, "/srv/second")
    try:
        first.watch(told.set)
        assert told.wait(30)
        assert "/srv/second): stop it" in (first.lost or "")
    finally:
        first.close()
        second.close()


def test_sqlite_has_the_lock_of_the_data_folder(tmp_path: Path) -> None:
    assert ServiceLock.take(f"sqlite:///{tmp_path / 'x.db'}", tmp_path) is None
