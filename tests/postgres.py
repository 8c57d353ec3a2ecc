"""A PostgreSQL for the tests: a temporary cluster of this process, or the server that TUNEWRIGHT_TEST_POSTGRES names.

The cluster is a folder in memory where there is room, with a Unix socket and without fsync; it ends with its process,
also where that is killed. PostgreSQL refuses to run as root: then it runs as Debian's user `postgres`.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from itertools import count
from pathlib import Path

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from tunewright.store.database import Database

GIVEN = os.environ.get("TUNEWRIGHT_TEST_POSTGRES")
"""The URL of a server where the tests may create databases; its own database stays as it is."""
_PR_SET_PDEATHSIG = 1
_USER = "postgres"
_IN_MEMORY = Path("/dev/shm")
_ROOM = 2**29
"""Bytes; a cluster takes a tenth of it."""
_SETTINGS = {
    "listen_addresses": "", "fsync": "off", "synchronous_commit": "off", "full_page_writes": "off",
    "shared_buffers": "32MB", "max_connections": "60", "max_wal_size": "256MB", "autovacuum": "off",
}  # fmt: skip


@cache
def missing() -> str | None:
    """Why the tests leave PostgreSQL out; None where they run on it."""
    if find_spec("psycopg") is None:
        return "its driver is missing (pip install 'psycopg[binary]')"
    if GIVEN:
        return None
    if not (_programs() / "initdb").is_file():
        return "it is not installed (Debian: apt-get install postgresql), and TUNEWRIGHT_TEST_POSTGRES is not set"
    if os.geteuid() == 0 and _runs_as() is None:
        return f"it refuses to run as root, and there is no user {_USER}"
    return None


class Server:
    """A PostgreSQL that runs, with a migrated database to copy."""

    def __init__(self, url: URL) -> None:
        self._url = url
        self._numbers = count(1)
        self._prefix = f"tunewright_{os.getpid()}"
        self._maintenance: Engine = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
        self._template = self._name("template")
        self._run(f"CREATE DATABASE {self._template}")
        database = Database(self._at(self._template))
        database.upgrade()
        database.close()

    @contextmanager
    def database(self, *, migrated: bool = True) -> Iterator[str]:
        """The URL of a fresh database, which is dropped at the end."""
        name = self._name(str(next(self._numbers)))
        self._run(f"CREATE DATABASE {name}" + (f" TEMPLATE {self._template}" if migrated else ""))
        try:
            yield self._at(name)
        finally:
            self._drop(name)

    @contextmanager
    def refusing(self, url: str) -> Iterator[None]:
        """End all connections to a database, and refuse new ones for a block."""
        name = make_url(url).database
        self._run(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        try:
            self._run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
            yield
        finally:
            self._run(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")

    def close(self) -> None:
        self._drop(self._template)

    def _name(self, what: str) -> str:
        return f"{self._prefix}_{what}"

    def _at(self, name: str) -> str:
        return self._url.set(database=name).render_as_string(hide_password=False)

    def _drop(self, name: str) -> None:
        self._run(f"DROP DATABASE {name} WITH (FORCE)")

    def _run(self, statement: str) -> None:
        with self._maintenance.connect() as connection:
            connection.execute(text(statement))


@contextmanager
def server() -> Iterator[Server]:
    """The server that is given, or a cluster of this process. `missing` says where there is none."""
    if GIVEN:
        given = Server(make_url(GIVEN).set(drivername="postgresql+psycopg"))
        try:
            yield given
        finally:
            given.close()
        return
    in_memory = _IN_MEMORY.is_mount() and shutil.disk_usage(_IN_MEMORY).free > _ROOM
    folder = Path(tempfile.mkdtemp(prefix="tw-postgres-", dir=_IN_MEMORY if in_memory else None))
    owner = _runs_as()
    if owner:
        os.chown(folder, owner.pw_uid, owner.pw_gid)
    try:
        with _cluster(folder) as url:
            yield Server(url)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _cluster(folder: Path) -> Iterator[URL]:
    data, log = folder / "data", folder / "log"
    made = subprocess.run(
        [_programs() / "initdb", "-D", data, "--no-sync", "-A", "trust", "-U", _USER, "-E", "UTF8", "--locale=C"],
        check=False, capture_output=True, text=True, cwd=folder, **_identity(),
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    settings = [f"--{name}={value}" for name, value in _SETTINGS.items()]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [_programs() / "postgres", "-D", data, "-k", folder, *settings],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder, preexec_fn=_end_with_parent,
            start_new_session=True, **_identity(),
        )  # fmt: skip
    url = URL.create("postgresql+psycopg", _USER, database="postgres", query={"host": str(folder)})
    try:
        _wait(url, process, log)
        yield url
    finally:
        process.send_signal(signal.SIGQUIT)  # at once: nothing of it is needed any more
        process.wait()


def _wait(url: URL, process: subprocess.Popen[bytes], log: Path) -> None:
    engine = create_engine(url, poolclass=NullPool)
    deadline = time.monotonic() + 60
    while True:
        assert process.poll() is None, log.read_text()
        try:
            engine.connect().close()
            return
        except OperationalError:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)


def _identity() -> dict[str, object]:
    owner = _runs_as()
    return {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []} if owner else {}


def _runs_as() -> pwd.struct_passwd | None:
    """The user of the cluster, where this process is root's."""
    try:
        return pwd.getpwnam(_USER) if os.geteuid() == 0 else None
    except KeyError:
        return None


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT, 0, 0, 0)


def _programs() -> Path:
    """The folder of PostgreSQL's programs; Debian has them beside the path, by version."""
    found = shutil.which("initdb")
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return Path(found or (debian[-1] if debian else "/nonexistent/initdb")).resolve().parent
