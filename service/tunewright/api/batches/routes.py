"""`/v1/batches`: the requests of a file are answered below live traffic, and the answers are new files.

A batch is a job. It has no pausing, and its cancellation ends it with what is done, as in OpenAI's API.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Path

from tunewright.api.batches.creation import create_batch
from tunewright.api.batches.schemas import BatchEventObject, BatchObject, CreateBatch
from tunewright.api.http.context import Context, ServiceContext
from tunewright.api.http.errors import responses
from tunewright.api.http.wire import After, Page, page_of
from tunewright.api.jobs.events import Metadata
from tunewright.api.jobs.routes import Limit, add_output_routes, find_job
from tunewright.kinds import BATCH
from tunewright.store.records import Job

router = APIRouter(prefix="/v1/batches", tags=["Batches"])

BatchId = Annotated[str, Path(alias="batch_id")]
_NOT_FOUND = "batch_not_found"


@router.post("", summary="Create a batch", responses=responses(400, 429, 503, 507))
def create(
    context: Context,
    body: CreateBatch,
    idempotency_key: Annotated[
        str | None, Header(max_length=255, description="The same key gives the same batch.")
    ] = None,
) -> BatchObject:
    """Queue a batch. Its file is checked first, line by line; where a line has a fault, the batch fails, and `errors`
    says what is wrong in which line. Four batches are answered at a time."""
    return _show(context, create_batch(context, body, idempotency_key))


@router.get("", summary="List batches", responses=responses(400))
def list_batches(
    context: Context, metadata: Metadata, after: After = None, limit: Limit = 20
) -> Page[BatchObject]:
    """Newest first. `metadata[key]=value` keeps those that match."""
    found, more = context.store.jobs.list(kind=BATCH.name, after=after, limit=limit, metadata=metadata)
    asked_at = context.store.ends.all_asked_at([job.id for job in found])
    return Page(**page_of([BatchObject.of(job, asked_at.get(job.id)) for job in found], more))


@router.get("/{batch_id}", summary="Retrieve a batch", responses=responses(404))
def retrieve(context: Context, batch_id: BatchId) -> BatchObject:
    return _show(context, _find(context, batch_id))


@router.post("/{batch_id}/cancel", summary="Cancel a batch", responses=responses(400, 404, 507))
def cancel(context: Context, batch_id: BatchId) -> BatchObject:
    """It is `cancelling` until the files of what was answered are listed, and `cancelled` then. One that has not begun
    is cancelled at once, and has no files."""
    job = _find(context, batch_id)
    return _show(context, context.store.ends.ask(job.id) or _find(context, batch_id))


add_output_routes(
    router,
    BATCH,
    param="batch_id",
    not_found=_NOT_FOUND,
    event=BatchEventObject,
    show_event=BatchEventObject.of,
    one="a batch",
    log="the batch's own log",
    logs="The output of its process. Empty before it starts, and once the folder of an ended batch was removed\n"
    "(`--keep-job-folders-days`).",
)


def _find(context: ServiceContext, id: str) -> Job:
    return find_job(context, BATCH, id, param="batch_id", code=_NOT_FOUND)


def _show(context: ServiceContext, job: Job) -> BatchObject:
    return BatchObject.of(job, context.store.ends.asked_at(job.id))
