"""`/v1/fine_tuning/pipelines`: jobs that follow each other, as one."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import Field

from tunewright.api.fine_tuning.schemas import JobObject
from tunewright.api.http.context import Context
from tunewright.api.http.errors import responses
from tunewright.errors import NotFound, quoted
from tunewright.store.records import Job
from tunewright.store.states import JobState
from tunewright.wire import Wire

router = APIRouter(prefix="/v1/fine_tuning/pipelines", tags=["Fine-tuning"])


class PipelineObject(Wire):
    """Jobs that follow each other, each from the model of the one before."""

    id: str = Field(description="The id of the first job.")
    object: Literal["fine_tuning.pipeline"] = "fine_tuning.pipeline"
    status: JobState = Field(
        description="succeeded: all have; failed or cancelled: the first that did not succeed; else that of the job "
        "whose turn it is."
    )
    fine_tuned_model: str | None = Field(description="The model of the last job, once all have succeeded.")
    jobs: list[JobObject]

    @classmethod
    def of(cls, jobs: list[Job]) -> PipelineObject:
        now = next((job for job in jobs if job.state is not JobState.SUCCEEDED), jobs[-1])
        return cls(
            id=jobs[0].id,
            status=now.state,
            fine_tuned_model=jobs[-1].model if now.state is JobState.SUCCEEDED else None,
            jobs=[JobObject.of(job) for job in jobs],
        )


def _shown(id: str, jobs: list[Job]) -> PipelineObject:
    if not jobs:
        raise NotFound(
            f"No such pipeline: {quoted(id)}. It has the id of its first job.",
            param="id",
            code="pipeline_not_found",
        )
    return PipelineObject.of(jobs)


@router.get("/{id}", summary="Retrieve a pipeline", responses=responses(404))
def retrieve(context: Context, id: str) -> PipelineObject:
    """Its jobs in their order."""
    return _shown(id, list(context.store.jobs.of_pipeline(id)))


@router.post("/{id}/cancel", summary="Cancel a pipeline", responses=responses(404))
def cancel(context: Context, id: str) -> PipelineObject:
    """All of its jobs that have not ended. Models that it has made stay."""
    return _shown(id, list(context.store.jobs.cancel_pipeline(id)))
