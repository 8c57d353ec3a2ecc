"""`/v1/exports`: adapters combined, merged into their base and quantized, with the loss of quality measured."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import PlainTextResponse, Response

from tunewright.api.exports.creation import create_export
from tunewright.api.exports.schemas import CreateExport, ExportObject
from tunewright.api.fine_tuning.schemas import EventObject
from tunewright.api.http.context import Context, ServiceContext
from tunewright.api.http.errors import responses
from tunewright.api.http.wire import After, Page, page_of
from tunewright.api.jobs.reports import (
    EVENTS,
    LOGS,
    LastEventId,
    Stream,
    Tail,
    events_of,
    log_of,
    wanted_metadata,
)
from tunewright.errors import NotFound
from tunewright.store.records import Job
from tunewright.store.states import JobKind

router = APIRouter(prefix="/v1/exports", tags=["Exports"])

Limit = Annotated[int, Query(ge=1, le=1000)]


@router.post("", summary="Create an export", responses=responses(400, 404, 429, 503, 507))
def create(
    context: Context,
    body: CreateExport,
    idempotency_key: Annotated[
        str | None, Header(max_length=255, description="The same key gives the same export.")
    ] = None,
) -> ExportObject:
    """Queue an export. What cannot work is refused at once. It waits for a device as fine-tuning jobs do."""
    return ExportObject.of(create_export(context, body, idempotency_key))


@router.get("", summary="List exports", responses=responses(400))
def list_exports(
    context: Context, request: Request, after: After = None, limit: Limit = 20
) -> Page[ExportObject]:
    """Newest first. `metadata[key]=value` keeps those that match."""
    wanted = wanted_metadata(request)
    found, more = context.store.jobs.list(after=after, limit=limit, metadata=wanted, kind=JobKind.EXPORT)
    return Page(**page_of([ExportObject.of(job) for job in found], more))


@router.get("/{export_id}", summary="Retrieve an export", responses=responses(404))
def retrieve(context: Context, export_id: str) -> ExportObject:
    return ExportObject.of(_get(context, export_id))


@router.post("/{export_id}/cancel", summary="Cancel an export", responses=responses(400, 404, 507))
def cancel(context: Context, export_id: str) -> ExportObject:
    """In any state but the final ones. Nothing of it is published."""
    return _now(context.store.jobs.cancel(_get(context, export_id).id))


@router.post("/{export_id}/pause", summary="Pause an export", responses=responses(400, 404, 507))
def pause(context: Context, export_id: str) -> ExportObject:
    """It frees its device. What is done (shards, layers) is kept."""
    return _now(context.store.jobs.pause(_get(context, export_id).id))


@router.post("/{export_id}/resume", summary="Resume a paused export", responses=responses(400, 404, 507))
def resume(context: Context, export_id: str) -> ExportObject:
    """It queues for a device and goes on from what is done."""
    return _now(context.store.jobs.resume(_get(context, export_id).id))


@router.get(
    "/{export_id}/events",
    summary="List or stream an export's events",
    response_model=Page[EventObject],
    responses={**EVENTS, **responses(400, 404)},
)
async def events(
    context: Context,
    export_id: str,
    after: After = None,
    limit: Limit = 20,
    stream: Stream = False,
    last_event_id: LastEventId = None,
) -> Response | Page[EventObject]:
    return await events_of(
        context, lambda: _get(context, export_id), after or last_event_id if stream else after, limit, stream
    )


@router.get(
    "/{export_id}/logs",
    summary="Read the export's own log",
    response_class=PlainTextResponse,
    responses={**LOGS, **responses(400, 404)},
)
def logs(context: Context, export_id: str, tail: Tail = None) -> PlainTextResponse:
    """What its process printed, all attempts one after another.

    Empty before it starts, and once the folder of an ended export was removed (`--keep-job-folders-days`).
    """
    return log_of(context, _get(context, export_id), tail)


def _now(job: Job | None) -> ExportObject:
    assert job is not None, "it was there a moment ago, and jobs are not deleted"
    return ExportObject.of(job)


def _get(context: ServiceContext, id: str) -> Job:
    job = context.store.jobs.get(id, JobKind.EXPORT)
    if job is None:
        raise NotFound(f"No such export: {id!r}.", param="export_id", code="export_not_found")
    return job
