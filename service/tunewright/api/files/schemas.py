"""OpenAI's file object."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tunewright.store.records import FileRecord
from tunewright.wire import Wire


class FileObject(Wire):
    """An uploaded file, or the metrics of a finished job."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int = Field(description="Unix seconds.")
    expires_at: int | None = Field(
        description="Unix seconds from which it is removed, unless an unfinished job needs it; null: it is kept."
    )
    filename: str
    purpose: str = Field(
        description="`fine-tune` for uploads, `fine-tune-results` for a job's metrics (CSV)."
    )
    status: Literal["processed"] = "processed"
    sha256: str

    @classmethod
    def of(cls, record: FileRecord) -> FileObject:
        return cls(
            id=record.id,
            bytes=record.bytes,
            created_at=int(record.created_at),
            expires_at=None if record.expires_at is None else int(record.expires_at),
            filename=record.filename,
            purpose=record.purpose,
            sha256=record.sha256,
        )
