"""Rows of uploaded files. Their bytes are in the workspace (`registry.workspace`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import case, delete, func, insert, or_, select, union, update

from tunewright.store.confined import everywhere
from tunewright.store.database import Database
from tunewright.store.inputs import INPUTS, UNFINISHED, refuse_needed_file
from tunewright.store.paging import page
from tunewright.store.records import FileRecord
from tunewright.store.states import FileStatus, ModelState
from tunewright.store.tables import files, job_inputs, jobs, models


class FileStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    def add(
        self,
        *,
        id: str,
        filename: str,
        purpose: str,
        size: int,
        sha256: str,
        created_at: float,
        expires_at: float | None = None,
        status: FileStatus = FileStatus.PROCESSED,
    ) -> FileRecord:
        """`status`: UPLOADED where its rows are to be checked."""
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
                    expires_at=expires_at,
                    status=status,
                )
                .returning(files)
            ).one()
        return FileRecord(**row._mapping)

    def finish_check(self, id: str, status: FileStatus, report: dict[str, Any]) -> FileRecord | None:
        """Record what the check of a file has found. None where the file was deleted meanwhile."""
        changed = update(files).where(files.c.id == id).values(status=status, report=report).returning(files)
        with self._database.begin() as connection:
            row = connection.execute(changed).one_or_none()
        return FileRecord(**row._mapping) if row else None

    def unchecked(self) -> Sequence[FileRecord]:
        """The files whose rows are to be checked, oldest first."""
        query = select(files).where(files.c.status == FileStatus.UPLOADED).order_by(files.c.seq)
        with self._database.read() as connection:
            return [FileRecord(**row._mapping) for row in connection.execute(query)]

    def get(self, id: str) -> FileRecord | None:
        with self._database.read() as connection:
            row = connection.execute(select(files).where(files.c.id == id)).one_or_none()
        return FileRecord(**row._mapping) if row else None

    def list(
        self, *, purpose: str | None, after: str | None, limit: int, ascending: bool = False
    ) -> tuple[Sequence[FileRecord], bool]:
        """A page of files, and whether there are more."""
        query = select(files)
        if purpose:
            query = query.where(files.c.purpose == purpose)
        rows, more = page(self._database, query, files, after=after, limit=limit, ascending=ascending)
        return [FileRecord(**row._mapping) for row in rows], more

    def delete(self, id: str) -> bool:
        """Delete a file's row; False where there is none. Raises InvalidRequest where an unfinished job needs it."""
        with self._database.begin(alone=INPUTS) as connection:
            refuse_needed_file(connection, id)
            return bool(connection.execute(delete(files).where(files.c.id == id)).rowcount)

    def ids(self) -> set[str]:
        """The ids of all files."""
        with self._database.read() as connection:
            return set(connection.scalars(everywhere(select(files.c.id))))

    def at_work(self) -> set[str]:
        """The ids of the files that are being checked, that unfinished jobs read, and from which adapters are measured
        that are being checked."""
        checking = select(models.c.job_id).where(models.c.state == ModelState.CHECKING)
        read = (
            select(job_inputs.c.file_id)
            .join(jobs, jobs.c.id == job_inputs.c.job_id)
            .where(job_inputs.c.file_id.is_not(None), or_(UNFINISHED, jobs.c.id.in_(checking)))
        )
        unchecked = select(files.c.id).where(files.c.status == FileStatus.UPLOADED)
        with self._database.read() as connection:
            return set(connection.scalars(everywhere(union(unchecked, read))))

    def last_used(self) -> Sequence[tuple[FileRecord, float | None]]:
        """Every file, and when it was last used: when it was created, or the end of the last job that read it; None
        where an unfinished job needs it."""
        uses = (
            select(
                job_inputs.c.file_id.label("file"),
                jobs.c.finished_at,
                case((UNFINISHED, 1), else_=0).label("needed"),
            )
            .join(jobs, jobs.c.id == job_inputs.c.job_id)
            .where(job_inputs.c.file_id.is_not(None))
            .subquery()
        )
        query = (
            select(
                files,
                func.max(uses.c.finished_at).label("read_until"),
                func.max(uses.c.needed).label("needed"),
            )
            .outerjoin(uses, uses.c.file == files.c.id)
            .group_by(files.c.seq)
            .order_by(files.c.seq)
        )
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        found = []
        for row in rows:
            values = dict(row._mapping)
            read_until, needed = values.pop("read_until"), values.pop("needed")
            record = FileRecord(**values)
            found.append((record, None if needed else max(record.created_at, read_until or 0.0)))
        return found
