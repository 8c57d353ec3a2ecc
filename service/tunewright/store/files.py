"""Uploaded files: their rows. The bytes are `registry.folders`' business."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, insert, or_, select

from tunewright.store.database import Database
from tunewright.store.paging import page
from tunewright.store.records import FileRecord
from tunewright.store.states import JobState
from tunewright.store.tables import files, jobs


class FileStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    def add(
        self, *, id: str, filename: str, purpose: str, size: int, sha256: str, created_at: float
    ) -> FileRecord:
        with self._database.begin() as connection:
            row = connection.execute(
                insert(files)
                .values(
                    id=id,
                    filename=filename,
                    purpose=purpose,
                    bytes=size,
                    sha256=sha256,
                    created_at=created_at,
                )
                .returning(files)
            ).one()
        return FileRecord(**row._mapping)

    def get(self, id: str) -> FileRecord | None:
        with self._database.read() as connection:
            row = connection.execute(select(files).where(files.c.id == id)).one_or_none()
        return FileRecord(**row._mapping) if row else None

    def list(
        self, *, purpose: str | None, after: str | None, limit: int, ascending: bool = False
    ) -> tuple[Sequence[FileRecord], bool]:
        """A page of files and whether there are more."""
        query = select(files)
        if purpose:
            query = query.where(files.c.purpose == purpose)
        rows, more = page(self._database, query, files, after=after, limit=limit, ascending=ascending)
        return [FileRecord(**row._mapping) for row in rows], more

    def delete(self, id: str) -> bool:
        with self._database.begin() as connection:
            return bool(connection.execute(delete(files).where(files.c.id == id)).rowcount)

    def job_that_needs(self, id: str) -> str | None:
        """A job that is not final and reads this file."""
        final = [state for state in JobState if state.is_final]
        with self._database.read() as connection:
            return connection.scalar(
                select(jobs.c.id)
                .where(or_(jobs.c.training_file == id, jobs.c.validation_file == id))
                .where(jobs.c.state.not_in(final))
                .limit(1)
            )
