"""`/v1/fine_tuning/jobs`: OpenAI's fine-tuning API."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import PlainTextResponse, Response, StreamingResponse

from tunewright.api.context import Context, ServiceContext
from tunewright.api.creation import create_job
from tunewright.api.deploying import trainable_deployments
from tunewright.api.errors import responses
from tunewright.api.schemas.common import After, Page, page_of
from tunewright.api.schemas.jobs import MOST_METADATA, CheckpointObject, CreateJob, EventObject, JobObject
from tunewright.errors import InvalidRequest, NotFound
from tunewright.store.records import Job
from tunewright.trainer.folder import JobFolder

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["Fine-tuning"])

Limit = Annotated[int, Query(ge=1, le=1000)]
_EVENTS_POLL, _COMMENT_EVERY = 0.25, 15.0


@router.post("", summary="Create a fine-tuning job", responses=responses(400, 404, 429, 507))
def create(
    context: Context,
    body: CreateJob,
    idempotency_key: Annotated[
        str | None, Header(max_length=255, description="The same key gives the same job.")
    ] = None,
) -> JobObject:
    """Queue a job. Its files are validated next; then it waits for a device."""
    return JobObject.of(create_job(context, body, idempotency_key))


@router.get("", summary="List jobs", responses=responses(400))
def list_jobs(context: Context, request: Request, after: After = None, limit: Limit = 20) -> Page[JobObject]:
    """Newest first. `metadata[key]=value` keeps those that match."""
    wanted = {
        key[len("metadata[") : -1]: value
        for key, value in request.query_params.items()
        if key.startswith("metadata[") and key.endswith("]")
    }
    if len(wanted) > MOST_METADATA:
        raise InvalidRequest(f"A job has at most {MOST_METADATA} pairs of metadata.", param="metadata")
    if any("\0" in text for pair in wanted.items() for text in pair):
        raise InvalidRequest("No metadata has the character U+0000.", param="metadata")
    jobs, more = context.store.jobs.list(after=after, limit=limit, metadata=wanted)
    return Page(**page_of([JobObject.of(job) for job in jobs], more))


@router.get("/{job_id}", summary="Retrieve a job", responses=responses(404))
def retrieve(context: Context, job_id: str) -> JobObject:
    return JobObject.of(_get(context, job_id))


@router.post("/{job_id}/cancel", summary="Cancel a job", responses=responses(400, 404, 507))
def cancel(context: Context, job_id: str) -> JobObject:
    """In any state but the final ones. A trainer that runs is ended within seconds."""
    job = context.store.jobs.cancel(_get(context, job_id).id)
    assert job is not None
    return JobObject.of(job)


@router.post("/{job_id}/pause", summary="Pause a job", responses=responses(400, 404, 507))
def pause(context: Context, job_id: str) -> JobObject:
    """A running job saves a checkpoint after the step under way, and then frees its device."""
    job = context.store.jobs.pause(_get(context, job_id).id)
    assert job is not None
    return JobObject.of(job)


@router.post("/{job_id}/resume", summary="Resume a paused job", responses=responses(400, 404, 507))
def resume(context: Context, job_id: str) -> JobObject:
    """It queues for a device and goes on from its checkpoint."""
    paused = _get(context, job_id)
    bases = [base.name for base in context.settings.bases]
    if paused.base not in bases and paused.base not in trainable_deployments(context):
        raise InvalidRequest(
            f"{paused.base}, the base of {job_id}, is neither among the bases here nor deployed: it would wait for "
            "ever.",
            code="base_not_served",
        )
    job = context.store.jobs.resume(paused.id)
    assert job is not None
    return JobObject.of(job)


@router.get(
    "/{job_id}/events",
    summary="List or stream a job's events",
    response_model=Page[EventObject],
    responses={
        200: {
            "description": "A page, newest first; with `stream=true` server-sent events, oldest first, until the "
            "job has ended (`data: [DONE]`).",
            "content": {
                "text/event-stream": {
                    "example": 'id: ftevent-1\ndata: {"type": "message"}\n\ndata: [DONE]\n\n'
                }
            },
        },
        **responses(400, 404),
    },
)
async def events(
    context: Context,
    job_id: str,
    after: After = None,
    limit: Limit = 20,
    stream: Annotated[
        bool, Query(description="Server-sent events from `after` on, or from the beginning.")
    ] = False,
    last_event_id: Annotated[
        str | None, Header(description="As browsers send it when they reconnect.")
    ] = None,
) -> Response | Page[EventObject]:
    await asyncio.to_thread(_get, context, job_id)
    if stream:
        after = after or last_event_id
        await asyncio.to_thread(
            context.store.jobs.events, job_id, after=after, limit=1
        )  # refused before it begins
        return StreamingResponse(
            _event_stream(context, job_id, after),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache"},
        )
    found, more = await asyncio.to_thread(context.store.jobs.events, job_id, after=after, limit=limit)
    return Page(**page_of([EventObject.of(event) for event in found], more))


async def _event_stream(context: ServiceContext, job_id: str, after: str | None) -> AsyncIterator[str]:
    quiet_since = time.monotonic()
    while True:
        job = await asyncio.to_thread(context.store.jobs.get, job_id)
        found, more = await asyncio.to_thread(
            context.store.jobs.events, job_id, after=after, limit=200, ascending=True
        )
        for event in found:
            after = event.id
            quiet_since = time.monotonic()
            yield f"id: {event.id}\ndata: {json.dumps(EventObject.of(event).model_dump())}\n\n"
        if more:
            continue
        if job is None or (job.state.is_final and not found):
            yield "data: [DONE]\n\n"
            return
        if time.monotonic() - quiet_since > _COMMENT_EVERY:
            quiet_since = time.monotonic()
            yield ": still here\n\n"
        await asyncio.sleep(_EVENTS_POLL)


@router.get("/{job_id}/checkpoints", summary="List a job's checkpoints", responses=responses(400, 404))
def checkpoints(
    context: Context, job_id: str, after: After = None, limit: Limit = 10
) -> Page[CheckpointObject]:
    """Adapters at the ends of epochs, newest first."""
    _get(context, job_id)
    found, more = context.store.jobs.checkpoints(job_id, after=after, limit=limit)
    return Page(**page_of([CheckpointObject.of(checkpoint) for checkpoint in found], more))


@router.get(
    "/{job_id}/logs",
    summary="Read the trainer's own log",
    response_class=PlainTextResponse,
    responses={
        200: {"description": "Text.", "content": {"text/plain": {"example": "INFO Training 24 steps\n"}}},
        **responses(400, 404),
    },
)
def logs(
    context: Context,
    job_id: str,
    tail: Annotated[int | None, Query(ge=1, le=100_000, description="Only so many last lines.")] = None,
) -> PlainTextResponse:
    """What the training process printed, all attempts one after another.

    Empty before it starts, and once the folder of an ended job was removed (`--keep-job-folders-days`).
    """
    job = _get(context, job_id)
    try:
        text = JobFolder(context.data.job(job.id)).log_file.read_text(errors="replace")
    except FileNotFoundError:
        text = ""
    if tail is not None:
        text = "".join(text.splitlines(keepends=True)[-tail:])
    return PlainTextResponse(text)


def _get(context: ServiceContext, id: str) -> Job:
    job = context.store.jobs.get(id)
    if job is None:
        raise NotFound(f"No such fine-tuning job: {id!r}.", param="job_id", code="fine_tuning_job_not_found")
    return job
