"""The database is upgraded with a copy made first; what cannot be used is refused, and left as it is."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tunewright.store import database as module
from tunewright.store.database import Database, known_revisions
from tunewright.store.sqlite_file import DatabaseUnusable
from tunewright.store.store import Store

FUTURE = """
import sqlalchemy as sa
from alembic import op
revision, down_revision = "{revision}", "{before}"
def upgrade():
    op.add_column("files", sa.Column("colour", sa.Text()))
    {then}
"""


@pytest.fixture
def now() -> str:
    """The newest revision of this version."""
    return known_revisions()[0]


def future_migration(folder: Path, monkeypatch: pytest.MonkeyPatch, before: str, then: str = "pass") -> str:
    """Add a migration to this service; returns its revision."""
    migrations = folder / "migrations"
    shutil.copytree(module._MIGRATIONS, migrations, ignore=shutil.ignore_patterns("__pycache__"))
    text = FUTURE.format(revision="9999", before=before, then=then)
    (migrations / "versions" / "m9999_colour.py").write_text(text)
    monkeypatch.setattr(module, "_MIGRATIONS", migrations)
    return "9999"


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def columns(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return [row[1] for row in connection.execute("PRAGMA table_info(files)")]


@pytest.fixture
def folder(tmp_path: Path, migrated_database: Path) -> Path:
    """A data folder with a database that no process has open."""
    path = tmp_path / "data"
    path.mkdir()
    shutil.copyfile(migrated_database, path / "tunewright.db")
    store = Store.open(f"sqlite:///{path / 'tunewright.db'}")
    store.files.add(id="file-1", filename="a", purpose="fine-tune", size=1, sha256="0" * 64, created_at=1.0)
    store.close()
    return path


def upgrade(folder: Path) -> None:
    database = Database(f"sqlite:///{folder / 'tunewright.db'}")
    try:
        database.upgrade(folder / "backups")
    finally:
        database.close()


# copies


def test_before_an_upgrade_the_database_is_copied(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: str
) -> None:
    future_migration(tmp_path, monkeypatch, now)
    upgrade(folder)
    assert "colour" in columns(folder / "tunewright.db")
    (copy,) = (folder / "backups").iterdir()
    assert copy.name.startswith(f"tunewright-{now}-2")
    assert copy.stat().st_mode & 0o077 == 0
    assert "colour" not in columns(copy)
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("SELECT id FROM files").fetchall() == [("file-1",)]
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",), "one file is all of it"


def test_what_waits_in_the_log_is_in_the_copy(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: str
) -> None:
    """The database as a killed service leaves it."""
    killed = tmp_path / "killed"
    with closing(sqlite3.connect(folder / "tunewright.db")) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("UPDATE files SET filename = 'in the log'")
        connection.commit()
        shutil.copytree(folder, killed)
    assert (killed / "tunewright.db-wal").stat().st_size > 0
    future_migration(tmp_path, monkeypatch, now)
    upgrade(killed)
    (copy,) = (killed / "backups").iterdir()
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("SELECT filename FROM files").fetchall() == [("in the log",)]


def test_nothing_is_copied_where_nothing_changes(folder: Path) -> None:
    before = everything(folder)
    upgrade(folder)
    assert everything(folder) == before


def test_a_new_database_needs_no_copy(tmp_path: Path) -> None:
    upgrade(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tunewright.db"]


def test_a_failed_upgrade_changes_nothing_and_its_copies_do_not_pile_up(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: str
) -> None:
    future_migration(tmp_path, monkeypatch, now, then="raise RuntimeError('no colours today')")
    for day in range(3):
        monkeypatch.setattr(module, "utc_stamp", lambda day=day: f"2026010{day}T093000Z")
        with pytest.raises(
            DatabaseUnusable, match=f"from revision {now} to 9999: no colours today"
        ) as failed:
            upgrade(folder)
        assert "\n" not in str(failed.value)
    assert "colour" not in columns(folder / "tunewright.db")
    assert len(list((folder / "backups").iterdir())) == 1


def test_postgresql_is_dumped_by_its_operator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A database without a file of its own stands in for it: to a copy, that is the same."""
    database = Database("sqlite://")
    database.upgrade(tmp_path / "backups")
    future_migration(tmp_path, monkeypatch, now)
    with caplog.at_level(logging.WARNING):
        database.upgrade(tmp_path / "backups")
    assert f"from revision {now} to 9999 without a copy" in caplog.text
    assert "pg_dump" in caplog.text
    assert not (tmp_path / "backups").exists()


# refusals


def refused(folder: Path, match: str) -> None:
    """In one line, and nothing is touched."""
    before = everything(folder)
    with pytest.raises(DatabaseUnusable, match=match) as error:
        upgrade(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)
    assert everything(folder) == before


def test_a_newer_database_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: str
) -> None:
    with monkeypatch.context() as newer:
        future_migration(tmp_path, newer, now)
        upgrade(folder)
    shutil.rmtree(folder / "backups")
    refused(
        folder, f"made by a newer Tunewright: it is at revision 9999, and this version knows {now} at most"
    )


def test_what_is_no_database_is_refused(folder: Path) -> None:
    (folder / "tunewright.db").write_bytes(b"hello " * 1000)
    refused(folder, "is damaged .file is not a database.")


def test_a_page_that_is_broken_is_found(folder: Path) -> None:
    path = folder / "tunewright.db"
    content = bytearray(path.read_bytes())
    for page in range(1, len(content) // 4096):  # each but the first, which has the tables' names
        content[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    path.write_bytes(content)
    refused(folder, "is damaged")


def test_a_database_that_was_cut_off_is_refused(folder: Path) -> None:
    path = folder / "tunewright.db"
    path.write_bytes(path.read_bytes()[:20000])
    refused(folder, "is damaged")


def test_somebody_elses_database_is_refused(folder: Path) -> None:
    path = folder / "tunewright.db"
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    refused(folder, "is not one of Tunewright: it has tables .recipes.")


def test_a_folder_in_its_place_is_refused(folder: Path) -> None:
    (folder / "tunewright.db").unlink()
    (folder / "tunewright.db").mkdir()
    refused(folder, "cannot be read .unable to open database file.")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_database_of_another_user_is_refused(folder: Path) -> None:
    (folder / "tunewright.db").chmod(0)
    with pytest.raises(DatabaseUnusable, match="cannot be read and written by this user"):
        upgrade(folder)


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("nonsense", "--database-url is not a SQLAlchemy URL"),
        (
            "postgresql+nodriver://me:secret@host/db",
            r"postgresql\+nodriver://me:\*\*\*@host/db cannot be used",
        ),
    ],
)
def test_a_url_that_cannot_be_used_is_told_without_its_password(url: str, match: str) -> None:
    with pytest.raises(DatabaseUnusable, match=match) as error:
        Database(url)
    assert "secret" not in str(error.value)
