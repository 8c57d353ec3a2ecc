"""An archive has SQLite's database whatever the service has: rows go from each to each, whole and as they are."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import JSON, Connection, Table, null, text, update
from test_backup import Used, content, restore_into, silent, used  # noqa: F401 (a fixture)

import backups
from backups import Deadly, add_file, bytes_in, new_job, publish_adapter, url_of
from postgres import Server, missing
from tunewright.backup.archive import FOLDERS
from tunewright.backup.create import Backup, make_backup
from tunewright.backup.errors import BackupError
from tunewright.backup.locks import ServiceRecord, held, service_lock
from tunewright.backup.restore import Restored, restore_archive
from tunewright.backup.swap import finish_restore, is_restore_pending
from tunewright.registry.workspace import Workspace
from tunewright.store import copies
from tunewright.store.copies import reading_database, snapshot
from tunewright.store.database import known_revisions
from tunewright.store.records import Job
from tunewright.store.sqlite_file import DatabaseUnusable
from tunewright.store.states import JobState
from tunewright.store.store import Store
from tunewright.store.tables import files, metadata

pytestmark = pytest.mark.skipif(missing() is not None, reason=f"PostgreSQL is left out: {missing()}")


@pytest.fixture
def postgres_url(postgres: Server) -> Iterator[str]:
    with postgres.database() as url:
        yield url


@dataclass
class OnPostgres:
    """A data folder whose database is PostgreSQL, after some use."""

    data: Workspace
    store: Store
    queued: Job

    @property
    def url(self) -> str:
        return self.store.database.url

    def backup(self, archive: Path) -> Backup:
        return make_backup(self.data, self.url, archive, silent)

    def restore(self, archive: Path, *, replace: bool = True) -> Restored:
        return restore_archive(self.data, self.url, archive, replace=replace, on_progress=silent)


@pytest.fixture
def service(tmp_path: Path, postgres_url: str) -> Iterator[OnPostgres]:
    data = Workspace(tmp_path / "on-postgres")
    data.create()
    store = Store.open(postgres_url)
    add_file(data, store, "file-1", b"{}\n")
    done = new_job(store, JobState.RUNNING, metadata={"a": "é\u0000"})
    publish_adapter(data, store, done, "ft:missing::9", b"other weights")
    add_file(data, store, "file-9", b"made on PostgreSQL")
    queued = new_job(store, JobState.QUEUED)
    with store.database.begin() as connection:
        connection.execute(update(files).values(report=JSON.NULL))
        connection.execute(update(files).where(files.c.id == "file-9").values(report=null()))
    yield OnPostgres(data, store, queued)
    store.close()


@dataclass
class Archived:
    """An archive of a service on SQLite, and the data folder that a restore makes of it. No job in it runs, since a
    restore adds an event to those."""

    archive: Path
    expected: Workspace


@pytest.fixture
def archived(used: Used, tmp_path: Path) -> Archived:  # noqa: F811
    expected = Workspace(tmp_path / "expected")
    restore_into(expected, make_backup(used.data, url_of(used.data), tmp_path / "first.tar", silent).path)
    return Archived(make_backup(expected, url_of(expected), tmp_path / "second.tar", silent).path, expected)


def rows_in(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of all tables, JSON as its text."""
    with reading_database(url) as connection:
        return {table.name: _rows(connection, table) for table in metadata.sorted_tables}


def _rows(connection: Connection, table: Table) -> list[tuple[Any, ...]]:
    columns = ", ".join(
        f'CAST("{column.name}" AS TEXT)' if isinstance(column.type, JSON) else f'"{column.name}"'
        for column in table.columns
    )
    keys = ", ".join(f'"{column.name}"' for column in table.primary_key)
    return [
        tuple(row)
        for row in connection.execute(text(f'SELECT {columns} FROM "{table.name}" ORDER BY {keys}'))
    ]


def state(service: OnPostgres) -> dict[str, Any]:
    """All that a restore brings."""
    return {**bytes_in(service.data.path, *FOLDERS), "rows": rows_in(service.url)}


def test_a_backup_of_postgresql_has_every_row_as_it_is(service: OnPostgres, tmp_path: Path) -> None:
    made = service.backup(tmp_path / "a.tar")
    assert made.manifest.counts == {"files": 3, "artifacts": 1, "jobs": 2, "checkpoints": 0}
    snapshot(service.url, tmp_path / "copy.db")
    copied = rows_in(f"sqlite:///{tmp_path / 'copy.db'}")
    assert copied == rows_in(service.url)
    reports = [column.name for column in files.columns].index("report")
    assert {row[reports] for row in copied["files"]} == {None, "null"}, "missing, and JSON's null"
    assert (tmp_path / "copy.db").stat().st_mode & 0o777 == 0o600
    on_sqlite = Workspace(tmp_path / "on-sqlite")
    restore_into(on_sqlite, made.path)
    assert rows_in(url_of(on_sqlite)) == copied
    assert backups.missing(on_sqlite) == []


def test_a_backup_of_sqlite_goes_into_postgresql_and_back(
    archived: Archived, service: OnPostgres, tmp_path: Path
) -> None:
    """The old rows and files are kept: as a data folder, of which a backup undoes the restore."""
    before = state(service)
    expected = archived.expected
    restored = service.restore(archived.archive)
    assert rows_in(service.url) == rows_in(url_of(expected))
    assert bytes_in(service.data.path, *FOLDERS) == bytes_in(expected.path, *FOLDERS)
    added = service.store.files.add(
        id="file-new", filename="new", purpose="fine-tune", size=1, sha256="0" * 64, created_at=1.0
    )
    assert service.store.files.get("file-new") == added, "numbers continue after those of the archive"

    assert restored.replaced is not None
    undo = make_backup(
        Workspace(restored.replaced), url_of(Workspace(restored.replaced)), tmp_path / "b.tar", silent
    )
    service.restore(undo.path)
    assert state(service) == before


def test_a_database_with_rows_is_replaced_only_on_request(service: OnPostgres, tmp_path: Path) -> None:
    archive = service.backup(tmp_path / "a.tar").path
    before = rows_in(service.url)
    elsewhere = Workspace(tmp_path / "elsewhere")
    with pytest.raises(BackupError, match=r"postgresql\+psycopg://.* has data already"):
        restore_archive(elsewhere, service.url, archive, replace=False, on_progress=silent)
    assert rows_in(service.url) == before


def test_an_empty_database_gets_its_tables(postgres: Server, service: OnPostgres, tmp_path: Path) -> None:
    archive = service.backup(tmp_path / "a.tar").path
    new = Workspace(tmp_path / "new")
    with postgres.database(migrated=False) as url:
        restored = restore_archive(new, url, archive, replace=False, on_progress=silent)
        assert restored.replaced is None
        assert rows_in(url) == rows_in(service.url)
        assert bytes_in(new.path, *FOLDERS) == bytes_in(service.data.path, *FOLDERS)


def test_a_backup_has_one_state_of_the_database(
    service: OnPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, copy = rows_in(service.url), copies._copy

    def and_another_comes(source: Connection, sink: Connection, table: Table) -> None:
        copy(source, sink, table)
        add_file(service.data, service.store, f"file-{table.name}", b"later")
        new_job(service.store, JobState.QUEUED, fingerprint=table.name)

    monkeypatch.setattr(copies, "_copy", and_another_comes)
    snapshot(service.url, tmp_path / "copy.db")
    assert rows_in(f"sqlite:///{tmp_path / 'copy.db'}") == before
    assert len(rows_in(service.url)["jobs"]) > len(before["jobs"])


# Ends after a rename are part of `make soak-suite`; test_backup.py has them with SQLite.
@pytest.mark.parametrize("after", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_a_restore_that_is_killed_is_made_or_not(
    archived: Archived, postgres: Server, tmp_path: Path, after: bool
) -> None:
    """kill -9 at each rename in turn; then the service starts."""
    archive, expected = archived.archive, archived.expected
    new = {**bytes_in(expected.path, *FOLDERS), "rows": rows_in(url_of(expected))}
    ends = {"old": 0, "new": 0}
    survived = False
    for number in range(1, 100):
        with postgres.database() as url:
            data = Workspace(tmp_path / f"data-{number}")
            data.create()
            store = Store.open(url)
            add_file(data, store, "file-old", b"made before")
            store.close()
            old = {**bytes_in(data.path, *FOLDERS), "rows": rows_in(url)}
            survived = in_a_child(
                partial(restore_archive, data, url, archive, replace=True, on_progress=silent),
                partial(Deadly, number, "replace", after=after),
            )
            finish_restore(data, url)
            now = {**bytes_in(data.path, *FOLDERS), "rows": rows_in(url)}
            if now == old:
                assert not survived
                ends["old"] += 1
            else:
                assert now == new
                (kept,) = data.path.glob("replaced-*")
                assert {**bytes_in(kept, *FOLDERS), "rows": rows_in(url_of(Workspace(kept)))} == old
                ends["new"] += 1
        if survived:
            break
    assert survived
    assert ends["new"] > 5


def test_a_restore_killed_while_rows_are_written_is_made_later(
    used: Used,  # noqa: F811
    service: OnPostgres,
    tmp_path: Path,
) -> None:
    """The transaction was not committed; the next start writes them."""
    archive = make_backup(used.data, url_of(used.data), tmp_path / "a.tar", silent).path
    before = rows_in(service.url)

    def die_late() -> None:
        count_on = copies._count_on

        def counted(sink: Connection, table: Table) -> None:
            count_on(sink, table)
            if table is metadata.sorted_tables[-1]:
                os.kill(os.getpid(), 9)

        copies._count_on = counted

    assert not in_a_child(lambda: service.restore(archive), die_late)
    assert rows_in(service.url) == before
    assert is_restore_pending(service.data)
    with pytest.raises(BackupError, match=r"continue it with --database-url of postgresql\+psycopg://"):
        finish_restore(service.data, url_of(service.data))
    finish_restore(service.data, service.url)
    assert not is_restore_pending(service.data)
    assert {row[1] for row in rows_in(service.url)["files"]} == {
        row[1] for row in rows_in(url_of(used.data))["files"]
    }


def test_a_database_that_cannot_be_reached_is_told(used: Used, tmp_path: Path) -> None:  # noqa: F811
    archive = make_backup(used.data, url_of(used.data), tmp_path / "a.tar", silent).path
    before, url = content(used.data), f"postgresql://me:secret@/db?host={tmp_path}"
    for act in (
        lambda: make_backup(used.data, url, tmp_path / "b.tar", silent),
        lambda: restore_archive(used.data, url, archive, replace=True, on_progress=silent),
    ):
        with pytest.raises(
            DatabaseUnusable, match=r"postgresql\+psycopg://me:\*\*\*@/db.* cannot be reached"
        ) as told:
            act()
        assert "secret" not in str(told.value)
    assert content(used.data) == before
    assert not (tmp_path / "b.tar").exists()


def test_a_service_with_another_database_is_not_restored_under(service: OnPostgres, tmp_path: Path) -> None:
    archive = service.backup(tmp_path / "a.tar").path
    ServiceRecord(known_revisions()[0], str(service.data.path / "tunewright.db")).write(service.data)
    with held(service_lock(service.data)), pytest.raises(BackupError, match="has its database elsewhere"):
        service.restore(archive)


def test_a_database_of_an_earlier_revision_is_upgraded_by_its_service_first(
    service: OnPostgres, tmp_path: Path
) -> None:
    with service.store.database.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0010'"))
    with pytest.raises(
        DatabaseUnusable, match=r"is at revision 0010, .*: start the service of this version once"
    ):
        service.backup(tmp_path / "a.tar")


def in_a_child(act: Callable[[], object], deadly: Callable[[], object]) -> bool:
    """Whether it finished before it was killed."""
    child = os.fork()
    if child == 0:
        try:
            deadly()
            act()
            os._exit(0)
        except BaseException:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFEXITED(status)
