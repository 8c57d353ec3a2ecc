"""Copies of a whole database as one SQLite file, and back: whatever database the service has, an archive has SQLite's.

Rows are copied as they are stored: JSON as its text, so that a missing value and JSON's null stay apart.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    Column,
    ColumnElement,
    Connection,
    MetaData,
    Select,
    Table,
    Text,
    bindparam,
    cast,
    delete,
    func,
    insert,
    select,
)
from sqlalchemy.dialects.postgresql import REGCLASS
from sqlalchemy.exc import SQLAlchemyError

from tunewright.store import sqlite_file
from tunewright.store.bucket_owners import restored_now
from tunewright.store.database import Database, first_line, known_revisions
from tunewright.store.sqlite_file import DatabaseUnusable, reading, settle, sqlite_path
from tunewright.store.tables import bucket_owners, files, jobs, metadata, models

_BATCH = 500
"""Rows; an event or a report has up to some ten kilobytes."""


def snapshot(url: str, target: Path) -> None:
    """Copy a database consistently to the SQLite file `target`, which must not exist, even while other processes write.

    Raises DatabaseUnusable, also where the database is of an earlier revision and not SQLite, and OSError or
    StorageFull where the disk is full.
    """
    path = sqlite_path(url)
    if path is not None:
        sqlite_file.snapshot(path, target)
        return
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    copy = Database(f"sqlite:///{target}")
    try:
        copy.upgrade()
        with reading_database(url) as source, copy.begin() as sink:
            _replace(source, sink)
    finally:
        copy.close()
    settle(target)


def replace_rows(source: Path, database: Database) -> None:
    """Replace all rows of a database, which is not SQLite, by those of the SQLite file `source`, but for what it owns
    outside itself: in one transaction. Both are at the newest revision. Safe to repeat. Raises DatabaseUnusable; then
    nothing was changed."""
    try:
        with reading(source) as rows, database.begin() as sink:
            _replace(rows, sink, kept=(bucket_owners,))
            restored_now(sink)
    except SQLAlchemyError as error:
        raise DatabaseUnusable(f"the rows could not be put into {database}: {first_line(error)}") from error


def has_rows(url: str) -> bool:
    """Whether the database lists a file, a job or a model. Raises DatabaseUnusable where it cannot be read."""
    database = Database(url)
    try:
        if database.revision() is None:
            return False
    finally:
        database.close()
    with reading_database(url) as connection:
        return any(connection.scalar(select(table.c.id).limit(1)) for table in (files, jobs, models))


@contextmanager
def reading_database(url: str) -> Iterator[Connection]:
    """A connection to a SQLite database of any revision, or another one of the newest, that reads one state of it.
    Raises DatabaseUnusable."""
    path = sqlite_path(url)
    if path is not None:
        with reading(path) as connection:
            yield connection
        return
    database = Database(url)
    try:
        found, newest = database.revision(), known_revisions()[0]
        if found != newest:
            raise DatabaseUnusable(
                f"the database {database} is at revision {found or 'none'}, and this command knows {newest}: start the "
                "service of this version once, which upgrades it"
            )
        try:
            with database.read() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise DatabaseUnusable(f"the database {database} cannot be read: {first_line(error)}") from error
    finally:
        database.close()


def _replace(source: Connection, sink: Connection, kept: Collection[Table] = ()) -> None:
    tables = [table for table in metadata.sorted_tables if table not in kept]
    for table in reversed(tables):
        sink.execute(delete(table))
    for table in tables:
        _copy(source, sink, table)
        if sink.dialect.name == "postgresql":
            _count_on(sink, table)


def _copy(source: Connection, sink: Connection, table: Table) -> None:
    """Copy the rows of a table, in the order of its keys."""
    keys = [column.name for column in table.primary_key]
    found = source.execution_options(yield_per=_BATCH).execute(_stored(source, table).order_by(*keys))
    values = {column.name: _parameter(sink, column) for column in table.columns}
    names = [f"new_{column.name}" for column in table.columns]
    json_names = {f"new_{column.name}" for column in table.columns if isinstance(column.type, JSON)}
    for part in found.partitions():
        rows = [dict(zip(names, row, strict=True)) for row in part]
        if sink.dialect.name == "postgresql":
            from tunewright.store.postgresql import storable_json

            for row in rows:
                row.update(
                    {name: storable_json(str(row[name])) for name in json_names if row[name] is not None}
                )
        sink.execute(insert(_of_texts(table)).values(values), rows)


def _stored(source: Connection, table: Table) -> Select[Any]:
    """All columns of a table, JSON as its text."""
    if source.dialect.name == "sqlite":
        return select(_of_texts(table))
    return select(
        *(
            cast(column, Text).label(column.name) if isinstance(column.type, JSON) else column
            for column in table.columns
        )
    )


def _parameter(sink: Connection, column: Column[Any]) -> ColumnElement[Any]:
    """The value of a column in an insertion; JSON is given as its text."""
    is_json = isinstance(column.type, JSON)
    given: ColumnElement[Any] = bindparam(f"new_{column.name}", type_=Text() if is_json else column.type)
    return cast(given, JSON) if is_json and sink.dialect.name != "sqlite" else given


def _of_texts(table: Table) -> Table:
    """The table with JSON as text, as SQLite stores it."""
    columns = (
        Column(column.name, Text() if isinstance(column.type, JSON) else column.type)
        for column in table.columns
    )
    return Table(table.name, MetaData(), *columns)


def _count_on(sink: Connection, table: Table) -> None:
    """Let PostgreSQL's sequence of the table continue after its last row."""
    for column in table.primary_key:
        sequence = sink.scalar(select(func.pg_get_serial_sequence(table.name, column.name)))
        if sequence is not None:
            last = select(func.max(column)).scalar_subquery()
            sink.execute(
                select(func.setval(cast(sequence, REGCLASS), func.coalesce(last, 1), last.is_not(None)))
            )
