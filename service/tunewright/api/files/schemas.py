"""OpenAI's file object."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from tunewright.store.records import FileRecord
from tunewright.wire import Wire


class FileObject(Wire):
    """An uploaded file, or the metrics of a finished job."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int = Field(description="Unix seconds.")
    filename: str
    purpose: str = Field(
        description="`fine-tune` for uploads, `fine-tune-results` for a job's metrics (CSV)."
    )
    status: Literal["processed"] = "processed"
    sha256: str
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "file-7aZkQ3vJ0c9yW2mXb4LrTn5e",
                    "object": "file",
                    "bytes": 27160,
                    "created_at": 1795337494,
                    "filename": "train.jsonl",
                    "purpose": "fine-tune",
                    "status": "processed",
                    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
                }
            ]
        }
    )

    @classmethod
    def of(cls, record: FileRecord) -> FileObject:
        return cls(
            id=record.id,
            bytes=record.bytes,
            created_at=int(record.created_at),
            filename=record.filename,
            purpose=record.purpose,
            sha256=record.sha256,
        )
