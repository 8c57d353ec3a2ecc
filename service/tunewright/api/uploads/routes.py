"""`/v1/uploads`: large files in parts. The parts are kept until the upload is completed, cancelled or an hour old."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, File, Path, UploadFile

from tunewright.api.files.purposes import check_purpose, file_name
from tunewright.api.http.context import Context, ServiceContext
from tunewright.api.http.errors import responses
from tunewright.api.http.forms import FormFault, FormRoute
from tunewright.api.organization.quotas import check_bytes
from tunewright.api.uploads.parts import keep_part, make_file
from tunewright.api.uploads.schemas import CompleteUpload, CreateUpload, PartObject, UploadObject
from tunewright.errors import InvalidRequest, NotFound, TooManyRequests, quoted
from tunewright.ids import new_id
from tunewright.store.states import FileStatus
from tunewright.store.uploads import PartRecord, UploadRecord, UploadState

router = APIRouter(prefix="/v1/uploads", tags=["Uploads"])
forms = APIRouter(prefix="/v1/uploads", tags=["Uploads"], route_class=FormRoute)

_LIFETIME = 3600.0
"""Seconds in which an upload has to be completed."""
_MOST_PENDING = 100
UploadId = Annotated[str, Path(alias="upload_id")]


@router.post("", summary="Create an upload", responses=responses(400, 429, 507))
def create(context: Context, body: CreateUpload) -> UploadObject:
    """Announce a file that comes in parts. It has to be completed within an hour."""
    check_purpose(body.purpose)
    most = context.settings.server.max_upload
    if body.bytes > most:
        raise InvalidRequest(
            f"A file has at most {most} bytes here (--max-upload), and this one has {body.bytes}.",
            param="bytes",
            code="too_large",
        )
    check_bytes(context, body.bytes)
    uploads = context.store.uploads
    if uploads.count_pending() >= _MOST_PENDING:
        raise TooManyRequests(
            f"{_MOST_PENDING} uploads are not completed, which is the limit: complete or cancel some.",
            code="too_many_uploads",
            retry_after=60,
        )
    now = time.time()
    made = uploads.create(
        id=new_id("upload"),
        filename=file_name(body.filename),
        purpose=body.purpose,
        bytes=body.bytes,
        created_at=now,
        expires_at=now + _LIFETIME,
        file_seconds=body.expires_after.seconds if body.expires_after else None,
    )
    return UploadObject.of(made)


@forms.post(
    "/{upload_id}/parts", summary="Add a part", responses=responses(400, 404, 408, 413, 429, 500, 507)
)
async def add_part(
    context: Context,
    upload_id: UploadId,
    fault: FormFault,
    data: Annotated[UploadFile, File(description="Up to 64 MiB of the file.")],
) -> PartObject:
    """Parts may be added at the same time, and in any order. A part that is answered is on disk."""
    if fault is not None:
        raise fault
    return PartObject.of(await context.slow.run(_add, context, upload_id, data))


def _add(context: ServiceContext, id: str, data: UploadFile) -> PartRecord:
    upload = _find(context, id)
    if upload.state is not UploadState.PENDING:
        raise InvalidRequest(
            f"Upload {upload.id} has ended ({upload.state.value}): create another.", code="upload_not_pending"
        )
    check_bytes(context, data.size or 0)
    return keep_part(context, upload, data.file)


@router.post(
    "/{upload_id}/complete", summary="Complete an upload", responses=responses(400, 404, 429, 500, 503, 507)
)
async def complete(context: Context, upload_id: UploadId, body: CompleteUpload) -> UploadObject:
    """Make the file of its parts. It is a file like any other then, and its rows are checked where it is for
    training."""
    upload = await context.slow.run(_find, context, upload_id)
    record = await context.slow.run(make_file, context, upload, body.part_ids, body.md5)
    if record.status is FileStatus.UPLOADED:
        record = await context.checks.checked(context.store, context.workspace, record)
    return UploadObject.of(await context.slow.run(_find, context, upload_id), record)


@router.post("/{upload_id}/cancel", summary="Cancel an upload", responses=responses(400, 404, 507))
def cancel(context: Context, upload_id: UploadId) -> UploadObject:
    """It takes no more parts, and those that it has are removed."""
    upload = _find(context, upload_id)
    cancelled = context.store.uploads.cancel(upload.id)
    context.workspace.remove_upload(upload.id)
    return UploadObject.of(cancelled or upload)


def _find(context: ServiceContext, id: str) -> UploadRecord:
    upload = context.store.uploads.get(id)
    if upload is None:
        raise NotFound(
            f"No such upload: {quoted(id)}. It was never created, or it ended more than a day ago.",
            param="upload_id",
            code="upload_not_found",
        )
    return upload
