"""Files that come in parts, until they are complete. Their bytes are in the workspace."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, func, insert, or_, select, update

from tunewright.errors import InvalidRequest
from tunewright.store.database import Database
from tunewright.store.records import FileRecord
from tunewright.store.tables import files, upload_parts, uploads


class UploadState(StrEnum):
    """OpenAI's words for the state of an upload."""

    PENDING = "pending"
    """It takes parts."""
    COMPLETED = "completed"
    """Its file is listed."""
    CANCELLED = "cancelled"
    """A user has ended it: there is no file."""
    EXPIRED = "expired"
    """It was not completed in time: there is no file."""


@dataclass(frozen=True)
class UploadRecord:
    seq: int
    id: str
    project: str
    filename: str
    purpose: str
    bytes: int
    """Those of the whole file, as they were announced."""
    created_at: float
    expires_at: float
    file_seconds: int | None
    """From when the file is complete until it expires; None: it does not."""
    state: UploadState
    file_id: str | None
    parts: list[str] | None
    """The ids of which the file was made, in order."""

    def __post_init__(self) -> None:
        state = UploadState(self.state)
        if state is UploadState.PENDING and time.time() >= self.expires_at:
            state = UploadState.EXPIRED
        object.__setattr__(self, "state", state)


@dataclass(frozen=True)
class PartRecord:
    seq: int
    id: str
    project: str
    upload_id: str
    bytes: int
    created_at: float


class UploadStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, **columns: Any) -> UploadRecord:
        values = {"state": UploadState.PENDING, **columns}
        with self._database.begin() as connection:
            row = connection.execute(insert(uploads).values(**values).returning(uploads)).one()
        return UploadRecord(**row._mapping)

    def get(self, id: str) -> UploadRecord | None:
        with self._database.read() as connection:
            row = connection.execute(select(uploads).where(uploads.c.id == id)).one_or_none()
        return UploadRecord(**row._mapping) if row else None

    def count_pending(self) -> int:
        query = select(func.count()).where(is_pending())
        with self._database.read() as connection:
            return connection.scalar(query) or 0

    def parts(self, id: str) -> Sequence[PartRecord]:
        """All parts of an upload, in the order in which they came."""
        query = select(upload_parts).where(upload_parts.c.upload_id == id).order_by(upload_parts.c.seq)
        with self._database.read() as connection:
            return [PartRecord(**row._mapping) for row in connection.execute(query)]

    def add_part(self, upload: UploadRecord, id: str, size: int, most: int) -> PartRecord:
        """List a part whose bytes are in their place. Raises InvalidRequest where the upload has ended, or has more
        than `most` bytes with it."""
        with self._database.begin() as connection:
            _require_pending(connection, upload.id)
            there = connection.scalar(
                select(func.sum(upload_parts.c.bytes)).where(upload_parts.c.upload_id == upload.id)
            )
            if int(there or 0) + size > most:
                raise InvalidRequest(
                    f"The parts of this upload have more than {most} bytes together, and it is of {upload.bytes}: "
                    "cancel it, and create another.",
                    param="data",
                    code="upload_too_large",
                )
            values = {"id": id, "upload_id": upload.id, "bytes": size, "created_at": time.time()}
            row = connection.execute(insert(upload_parts).values(**values).returning(upload_parts)).one()
        return PartRecord(**row._mapping)

    def complete(self, id: str, parts: Sequence[str], file: dict[str, Any]) -> FileRecord:
        """List the file, whose bytes are in their place, and end the upload: both or none. Raises InvalidRequest where
        the upload has ended."""
        with self._database.begin() as connection:
            _require_pending(connection, id)
            row = connection.execute(insert(files).values(**file).returning(files)).one()
            ended = {"state": UploadState.COMPLETED, "file_id": file["id"], "parts": list(parts)}
            connection.execute(update(uploads).where(uploads.c.id == id).values(**ended))
        return FileRecord(**row._mapping)

    def cancel(self, id: str) -> UploadRecord | None:
        """End an upload without a file; one that is cancelled stays so. Raises InvalidRequest where it has ended
        otherwise."""
        with self._database.begin() as connection:
            row = connection.execute(
                select(uploads).where(uploads.c.id == id).with_for_update()
            ).one_or_none()
            if row is None or row.state == UploadState.CANCELLED:
                return UploadRecord(**row._mapping) if row else None
            _require_pending(connection, id)
            changed = update(uploads).where(uploads.c.id == id).values(state=UploadState.CANCELLED)
            return UploadRecord(**connection.execute(changed.returning(uploads)).one()._mapping)

    def pending(self) -> set[str]:
        """The ids of those that take parts: their bytes are needed."""
        with self._database.read() as connection:
            return set(connection.scalars(select(uploads.c.id).where(is_pending())))

    def forget(self) -> None:
        """Cancel those that take parts: of a database that was restored, their bytes are gone."""
        with self._database.begin() as connection:
            pending = uploads.c.state == UploadState.PENDING
            connection.execute(update(uploads).where(pending).values(state=UploadState.CANCELLED))

    def delete_ended(self, before: float) -> int:
        """Delete the rows of those that have ended and would have expired before this time (Unix seconds)."""
        ended = (uploads.c.expires_at < before, or_(uploads.c.state != UploadState.PENDING, ~is_pending()))
        with self._database.begin() as connection:
            return connection.execute(delete(uploads).where(*ended)).rowcount


def is_pending() -> ColumnElement[bool]:
    """Whether the upload takes parts: the state in its row stays where it expires."""
    return (uploads.c.state == UploadState.PENDING) & (uploads.c.expires_at > time.time())


def _require_pending(connection: Connection, id: str) -> None:
    """Raises InvalidRequest. The row stays as it is until the transaction ends."""
    row = connection.execute(select(uploads).where(uploads.c.id == id).with_for_update()).one_or_none()
    state = UploadRecord(**row._mapping).state if row else UploadState.EXPIRED
    if state is not UploadState.PENDING:
        raise InvalidRequest(
            f"Upload {id} has ended ({state.value}): create another.", code="upload_not_pending"
        )
