"""`/v1/files`: uploads, streamed to disk."""

from __future__ import annotations

import hashlib
import os
import time
from typing import Annotated, BinaryIO, Literal

from fastapi import APIRouter, File, Form, Query, UploadFile
from fastapi.responses import FileResponse

from tunewright.api.context import Context, ServiceContext
from tunewright.api.errors import responses
from tunewright.api.schemas.common import Deleted, Page, page_of
from tunewright.api.schemas.files import FileObject
from tunewright.errors import Internal, InvalidRequest, NotFound
from tunewright.ids import new_id
from tunewright.store.records import FileRecord

router = APIRouter(prefix="/v1/files", tags=["Files"])


@router.post("", summary="Upload a file", responses=responses(400, 413, 500))
def upload(
    context: Context,
    file: Annotated[UploadFile, File(description="JSONL: chat rows, or prompt and completion rows.")],
    purpose: Annotated[str, Form(description="`fine-tune`.", examples=["fine-tune"])],
) -> FileObject:
    """The bytes are kept as they are; their rows are checked when a job uses them."""
    if purpose != "fine-tune":
        raise InvalidRequest(f"Files are taken for the purpose fine-tune, not {purpose!r}.", param="purpose")
    name = os.path.basename((file.filename or "").replace("\\", "/")) or "upload.jsonl"
    record = _keep(context, file.file, name, purpose)
    return FileObject.of(record)


def _keep(context: ServiceContext, source: BinaryIO, filename: str, purpose: str) -> FileRecord:
    """On disk and synced first, listed last: a crash leaves a stray temporary file at most."""
    id = new_id("file")
    temporary = context.data.tmp / id
    digest, size = hashlib.sha256(), 0
    try:
        with temporary.open("wb") as target:
            while block := source.read(1 << 20):
                digest.update(block)
                size += len(block)
                target.write(block)
            target.flush()
            os.fsync(target.fileno())
        if size == 0:
            raise InvalidRequest("The file is empty.", param="file")
        context.data.keep_file(temporary, id)
    except OSError as error:
        raise Internal(
            f"The file could not be stored: {error.strerror}. Nothing of it is kept.", code="storage_failed"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return context.store.files.add(
        id=id,
        filename=filename,
        purpose=purpose,
        size=size,
        sha256=digest.hexdigest(),
        created_at=time.time(),
    )


@router.get("", summary="List files", responses=responses(400))
def list_files(
    context: Context,
    purpose: Annotated[str | None, Query(description="Only files for this purpose.")] = None,
    after: Annotated[str | None, Query(description="The last id of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    order: Annotated[Literal["asc", "desc"], Query(description="By time of creation.")] = "desc",
) -> Page[FileObject]:
    records, more = context.store.files.list(
        purpose=purpose, after=after, limit=limit, ascending=order == "asc"
    )
    return Page(**page_of([FileObject.of(record) for record in records], more))


@router.get("/{file_id}", summary="Retrieve a file", responses=responses(404))
def retrieve(context: Context, file_id: str) -> FileObject:
    return FileObject.of(_get(context, file_id))


@router.get(
    "/{file_id}/content",
    summary="Download a file",
    response_class=FileResponse,
    responses={
        200: {
            "description": "Its bytes, as they were uploaded.",
            "content": {"application/octet-stream": {"example": '{"prompt": "2+2=", "completion": " 4"}\n'}},
        },
        **responses(404),
    },
)
def content(context: Context, file_id: str) -> FileResponse:
    record = _get(context, file_id)
    return FileResponse(
        context.data.file(record.id), filename=record.filename, media_type="application/octet-stream"
    )


@router.delete("/{file_id}", summary="Delete a file", responses=responses(400, 404))
def delete(context: Context, file_id: str) -> Deleted:
    record = _get(context, file_id)
    job = context.store.files.job_that_needs(record.id)
    if job is not None:
        raise InvalidRequest(
            f"File {file_id} is needed by job {job}: wait for it to end, or cancel it.", code="file_in_use"
        )
    context.store.files.delete(record.id)
    context.data.file(record.id).unlink(missing_ok=True)
    return Deleted(id=record.id, object="file")


def _get(context: ServiceContext, id: str) -> FileRecord:
    record = context.store.files.get(id)
    if record is None:
        raise NotFound(f"No such file: {id!r}.", param="file_id", code="file_not_found")
    return record
