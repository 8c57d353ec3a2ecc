"""`/v1/fine_tuning/jobs`: OpenAI's fine-tuning API."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from fastapi.responses import StreamingResponse

from tunewright.api.deployments.creation import trainable_deployments
from tunewright.api.fine_tuning.creation import create_job
from tunewright.api.fine_tuning.schemas import CheckpointObject, CreateJob, EventObject, JobObject
from tunewright.api.http.context import Context, ServiceContext
from tunewright.api.http.errors import responses
from tunewright.api.http.wire import After, Page, page_of
from tunewright.api.jobs.routes import JobSchemas, RouteTexts, add_job_routes, find_job
from tunewright.api.models.artifacts import tar_of_folder
from tunewright.errors import InvalidRequest, NotFound
from tunewright.jobs.folder import JobFolder
from tunewright.kinds import FINE_TUNING
from tunewright.store.records import Job

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["Fine-tuning"])

TAR_OF_TENSORBOARD: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A tar of a folder that `tensorboard --logdir` shows.",
        "content": {"application/x-tar": {"schema": {"type": "string", "format": "binary"}, "example": ""}},
    }
}

Limit = Annotated[int, Query(ge=1, le=1000)]


@router.post("", summary="Create a fine-tuning job", responses=responses(400, 404, 429, 503, 507))
def create(
    context: Context,
    body: CreateJob,
    idempotency_key: Annotated[
        str | None, Header(max_length=255, description="The same key gives the same job.")
    ] = None,
) -> JobObject:
    """Queue a job. Its files are validated next; then it waits for a device."""
    return JobObject.of(create_job(context, body, idempotency_key))


def _may_resume(context: ServiceContext, job: Job) -> None:
    bases = [base.name for base in context.bases()]
    if job.base not in bases and job.base not in trainable_deployments(context):
        raise InvalidRequest(
            f"{job.base}, the base of {job.id}, is neither among the bases here nor deployed: the job would never run.",
            code="base_not_served",
        )


add_job_routes(
    router,
    FINE_TUNING,
    param="job_id",
    schemas=JobSchemas(JobObject, EventObject, JobObject.of, EventObject.of),
    texts=RouteTexts(
        one="a job",
        many="jobs",
        not_found="fine_tuning_job_not_found",
        log="the trainer's own log",
        cancel="In any state but the final ones. A trainer that runs is ended within seconds.",
        pause="A running job saves a checkpoint after the step under way, and then frees its device.",
        resume="It queues for a device and continues from its checkpoint.",
        logs="The output of the training process, all attempts one after another.\n\n"
        "Empty before it starts, and once the folder of an ended job was removed (`--keep-job-folders-days`).",
    ),
    may_resume=_may_resume,
)


@router.get(
    "/{job_id}/tensorboard",
    summary="Download a job's TensorBoard files",
    response_class=StreamingResponse,
    responses={**TAR_OF_TENSORBOARD, **responses(404)},
)
def tensorboard(context: Context, job_id: str) -> StreamingResponse:
    """Those until now, while the job runs. They are kept with the job's folder (`--keep-job-folders-days`)."""
    job = find_job(context, FINE_TUNING, job_id, param="job_id", code="fine_tuning_job_not_found")
    folder = JobFolder(context.workspace.job(job.id)).tensorboard
    try:
        return tar_of_folder(folder, f"{job.id}-tensorboard")
    except FileNotFoundError as error:
        raise NotFound(
            f"{job.id} has no TensorBoard files: it was not reported there, has not begun to train, or its folder was "
            "removed.",
            param="job_id",
            code="no_tensorboard_files",
        ) from error


@router.get("/{job_id}/checkpoints", summary="List a job's checkpoints", responses=responses(400, 404))
def checkpoints(
    context: Context, job_id: str, after: After = None, limit: Limit = 10
) -> Page[CheckpointObject]:
    """Adapters at the ends of epochs, newest first."""
    job = find_job(context, FINE_TUNING, job_id, param="job_id", code="fine_tuning_job_not_found")
    found, more = context.store.jobs.checkpoints(job.id, after=after, limit=limit)
    return Page(**page_of([CheckpointObject.of(checkpoint) for checkpoint in found], more))
