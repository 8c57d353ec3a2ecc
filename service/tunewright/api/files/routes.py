"""`/v1/files`: uploads, streamed to disk."""

from __future__ import annotations

import hashlib
import os
import time
from typing import Annotated, BinaryIO, Literal

from fastapi import APIRouter, File, Form, Query, UploadFile
from fastapi.responses import FileResponse

from tunewright.api.files.find import find_file, not_found
from tunewright.api.files.purposes import PURPOSES, check_purpose, file_name, first_status, storing
from tunewright.api.files.schemas import FileObject
from tunewright.api.http.context import Context, ServiceContext
from tunewright.api.http.errors import responses
from tunewright.api.http.forms import FormFault, FormRoute
from tunewright.api.http.wire import After, Deleted, Page, page_of
from tunewright.api.organization.quotas import check_bytes
from tunewright.errors import InvalidRequest, StorageFull
from tunewright.ids import new_id
from tunewright.store.records import FileRecord
from tunewright.store.states import FileStatus
from tunewright.wire import Text

router = APIRouter(prefix="/v1/files", tags=["Files"], route_class=FormRoute)

_ANCHOR, _SECONDS = "expires_after[anchor]", "expires_after[seconds]"


@router.post("", summary="Upload a file", responses=responses(400, 408, 413, 429, 500, 503, 507))
async def upload(
    context: Context,
    fault: FormFault,
    file: Annotated[UploadFile, File(description="JSONL, a JSON array, CSV or Parquet.")],
    purpose: Annotated[
        str, Form(description="`fine-tune` or `batch`.", json_schema_extra={"enum": list(PURPOSES)})
    ],
    anchor: Annotated[Literal["created_at"] | None, Form(alias=_ANCHOR, description="`created_at`.")] = None,
    seconds: Annotated[
        int | None,
        Form(alias=_SECONDS, ge=3600, le=2_592_000, description="From the anchor until the file expires."),
    ] = None,
) -> FileObject:
    """The bytes are kept as they are. The rows of a file for fine-tune are checked: before the answer where the file is
    small, else while its `status` is `uploaded`. Those of a file for batch are checked when a batch is created."""
    if fault is not None:
        raise fault
    check_purpose(purpose)
    if (anchor is None) != (seconds is None):
        missing = _ANCHOR if anchor is None else _SECONDS
        raise InvalidRequest(f"Missing parameter: {missing}.", param=missing, code="missing_parameter")
    record = await context.slow.run(_keep, context, file.file, file_name(file.filename), purpose, seconds)
    if record.status is FileStatus.UPLOADED:
        record = await context.checks.checked(context.store, context.workspace, record)
    return FileObject.of(record)


def _keep(
    context: ServiceContext, source: BinaryIO, filename: str, purpose: str, seconds: int | None
) -> FileRecord:
    """Write and sync the file before listing it: a crash leaves at most a temporary file.

    `seconds`: from now until it expires.
    """
    id = new_id("file")
    temporary = context.workspace.tmp / id
    digest, size = hashlib.sha256(), 0
    try:
        with storing():
            with temporary.open("wb") as target:
                while block := source.read(1 << 20):
                    digest.update(block)
                    size += len(block)
                    target.write(block)
                target.flush()
                os.fsync(target.fileno())
            if size == 0:
                raise InvalidRequest("The file is empty.", param="file")
            check_bytes(context, size)
            with context.workspace.keeping(id):
                context.workspace.keep_file(temporary, id)
                created_at = time.time()
                try:
                    return context.store.files.add(
                        id=id,
                        filename=filename,
                        purpose=purpose,
                        size=size,
                        sha256=digest.hexdigest(),
                        created_at=created_at,
                        expires_at=None if seconds is None else int(created_at) + seconds,
                        status=first_status(purpose),
                    )
                except StorageFull:
                    context.workspace.file(id).unlink()
                    raise
    finally:
        temporary.unlink(missing_ok=True)


@router.get("", summary="List files", responses=responses(400))
def list_files(
    context: Context,
    purpose: Annotated[Text | None, Query(description="Only files for this purpose.")] = None,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    order: Annotated[Literal["asc", "desc"], Query(description="By time of creation.")] = "desc",
) -> Page[FileObject]:
    records, more = context.store.files.list(
        purpose=purpose, after=after, limit=limit, ascending=order == "asc"
    )
    return Page(**page_of([FileObject.of(record) for record in records], more))


@router.get("/{file_id}", summary="Retrieve a file", responses=responses(404))
def retrieve(context: Context, file_id: str) -> FileObject:
    return FileObject.of(find_file(context, file_id))


@router.get(
    "/{file_id}/content",
    summary="Download a file",
    response_class=FileResponse,
    responses={
        200: {
            "description": "Its bytes, as they were uploaded.",
            "content": {"application/octet-stream": {"example": '{"prompt": "2+2=", "completion": " 4"}\n'}},
        },
        **responses(404, 503, 507),
    },
)
def content(context: Context, file_id: str) -> FileResponse:
    record = find_file(context, file_id)
    path = context.workspace.fetch_file(record.id)
    if not path.is_file():  # it was deleted meanwhile
        raise not_found(file_id)
    return FileResponse(path, filename=record.filename, media_type="application/octet-stream")


@router.delete("/{file_id}", summary="Delete a file", responses=responses(400, 404, 507))
def delete(context: Context, file_id: str) -> Deleted:
    record = find_file(context, file_id)
    files = context.store.files
    files.delete(record.id)
    context.workspace.remove_file(record.id, lambda: files.get(record.id))
    return Deleted(id=record.id, object="file")
