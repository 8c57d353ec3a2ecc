"""`tunewright serve` reports a database that cannot be used in one line, and leaves it as it is."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from tests.engine.conftest import free_port

import backups
from tunewright.registry.workspace import Workspace


def serve(data: Path, *arguments: str) -> str:
    """Returns what it prints; it must not start."""
    command = [
        sys.executable,
        "-m",
        "tunewright",
        "serve",
        "--data-dir",
        str(data),
        "--port",
        str(free_port()),
    ]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def stamp(data: Workspace) -> None:
    with closing(sqlite3.connect(data.path / "tunewright.db")) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()


def break_it(data: Workspace) -> None:
    (data.path / "tunewright.db").write_bytes(os.urandom(8192))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (stamp, "was made by a newer Tunewright: it is at revision 9999"),
        (break_it, "is damaged (file is not a database)"),
    ],
)
def test_a_database_that_cannot_be_used_is_left_as_it_is(
    tmp_path: Path, spoil: Callable[[Workspace], None], says: str
) -> None:
    data, store = backups.new_store(tmp_path / "data")
    store.close()
    (data.tmp / "half").write_text("unfinished")
    spoil(data)
    before = backups.bytes_in(data.path, ".")
    refusal = serve(data.path)
    assert refusal.startswith(f"tunewright serve: the database {data.path / 'tunewright.db'} {says}")
    assert "tunewright restore ARCHIVE" in refusal
    assert backups.bytes_in(data.path, ".") == {**before, "run/lock": b""}


def test_a_database_without_its_driver_is_told_without_its_password(tmp_path: Path) -> None:
    refusal = serve(tmp_path, "--database-url", "oracle+none://me:secret@host/x")
    assert refusal.startswith("tunewright serve: the database oracle+none://me:***@host/x cannot be used")
