"""`/v1/fine_tuning/jobs`: OpenAI's fine-tuning API."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import PlainTextResponse, Response

from tunewright.api.deployments.creation import trainable_deployments
from tunewright.api.fine_tuning.creation import create_job
from tunewright.api.fine_tuning.schemas import CheckpointObject, CreateJob, EventObject, JobObject
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
from tunewright.errors import InvalidRequest, NotFound
from tunewright.store.records import Job
from tunewright.store.states import JobKind

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["Fine-tuning"])

Limit = Annotated[int, Query(ge=1, le=1000)]


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
    wanted = wanted_metadata(request)
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
    responses={**EVENTS, **responses(400, 404)},
)
async def events(
    context: Context,
    job_id: str,
    after: After = None,
    limit: Limit = 20,
    stream: Stream = False,
    last_event_id: LastEventId = None,
) -> Response | Page[EventObject]:
    return await events_of(
        context, lambda: _get(context, job_id), after or last_event_id if stream else after, limit, stream
    )


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
    responses={**LOGS, **responses(400, 404)},
)
def logs(context: Context, job_id: str, tail: Tail = None) -> PlainTextResponse:
    """What the training process printed, all attempts one after another.

    Empty before it starts, and once the folder of an ended job was removed (`--keep-job-folders-days`).
    """
    return log_of(context, _get(context, job_id), tail)


def _get(context: ServiceContext, id: str) -> Job:
    job = context.store.jobs.get(id, JobKind.FINE_TUNING)
    if job is None:
        raise NotFound(f"No such fine-tuning job: {id!r}.", param="job_id", code="fine_tuning_job_not_found")
    return job
