"""OpenAI's upload object, and its parts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tunewright.api.files.schemas import FileObject
from tunewright.store.records import FileRecord
from tunewright.store.uploads import PartRecord, UploadRecord, UploadState
from tunewright.wire import Body, Text, Wire


class FileExpiresAfter(Body):
    """When the file expires."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=3600, le=2_592_000, description="From when it is complete.")


class CreateUpload(Body):
    """The file that will come in parts."""

    filename: Text = Field(min_length=1, max_length=1024)
    purpose: Text = Field(max_length=64, description="`fine-tune` or `batch`.")
    bytes: int = Field(ge=1, le=2**53, description="Those of all parts together.")
    mime_type: Text = Field(max_length=255, description="Not used: files are known by their content.")
    expires_after: FileExpiresAfter | None = None


class CompleteUpload(Body):
    """The parts of which the file is made."""

    part_ids: list[Text] = Field(min_length=1, max_length=10_000, description="In the order of the file.")
    md5: Text | None = Field(None, max_length=64, description="Of the whole file, in hexadecimal.")


class UploadObject(Wire):
    """A file that comes in parts."""

    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int = Field(
        description="Unix seconds from which it takes no parts, and its parts are removed."
    )
    filename: str
    purpose: str
    status: UploadState
    file: FileObject | None = Field(description="Of a completed upload, as long as the file exists.")

    @classmethod
    def of(cls, upload: UploadRecord, file: FileRecord | None = None) -> UploadObject:
        return cls(
            id=upload.id,
            bytes=upload.bytes,
            created_at=int(upload.created_at),
            expires_at=int(upload.expires_at),
            filename=upload.filename,
            purpose=upload.purpose,
            status=upload.state,
            file=FileObject.of(file) if file is not None else None,
        )


class PartObject(Wire):
    """A part of an upload."""

    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str

    @classmethod
    def of(cls, part: PartRecord) -> PartObject:
        return cls(id=part.id, created_at=int(part.created_at), upload_id=part.upload_id)
