"""OpenAI's batch object."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator

from tunewright.api.jobs.schemas import JobEventBody, Metadata
from tunewright.kinds.batch.kind import file_of, request_of
from tunewright.kinds.batch.models import BatchFault, BatchPlan, BatchReport, BatchResult
from tunewright.store.records import Job
from tunewright.store.states import JobPhase, JobState
from tunewright.wire import Body, Text, Wire

Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]
Status = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]
_WINDOW = re.compile(r"([1-9][0-9]{0,2})([hd])")
_SECONDS = {"h": 3600, "d": 86_400}
_LONGEST_WINDOW = 30 * 86_400


def seconds_of(window: str) -> int:
    """The seconds of a completion window such as `24h` or `7d`. Raises ValueError."""
    found = _WINDOW.fullmatch(window)
    seconds = int(found[1]) * _SECONDS[found[2]] if found else 0
    if not 0 < seconds <= _LONGEST_WINDOW:
        raise ValueError("it must be hours or days such as 24h or 7d, 30d at most")
    return seconds


class OutputExpiresAfter(Body):
    """When the files of results expire."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=3600, le=2_592_000, description="From when they are listed.")


class CreateBatch(Body):
    """A file of requests, and until when they are to be answered."""

    input_file_id: Text = Field(max_length=64, description="The id of a file for the purpose batch.")
    endpoint: Endpoint = Field(description="The `url` of all requests in the file.")
    completion_window: Text = Field(
        description="How long it may take, such as `24h` or `7d`: what is not answered then is in the error file."
    )
    metadata: Metadata = Field(None, description="Up to 16 pairs, kept with the batch.")
    output_expires_after: OutputExpiresAfter | None = None

    @field_validator("completion_window")
    @classmethod
    def _check_window(cls, value: str) -> str:
        seconds_of(value)
        return value


class BatchError(Wire):
    """What is wrong with the file of requests."""

    code: str
    message: str
    line: int | None = Field(description="Its line, from 1; null: the file as a whole.")
    param: str | None


class BatchErrors(Wire):
    object: Literal["list"] = "list"
    data: list[BatchError] = Field(description="Up to a hundred.")


class RequestCounts(Wire):
    """Requests of a batch."""

    total: int
    completed: int = Field(description="Those in the output file.")
    failed: int = Field(description="Those in the error file.")


class BatchObject(Wire):
    """A job that answers the requests of a file, below live traffic."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: Endpoint
    model: str | None = Field(description="The model or alias, where all requests name the same.")
    errors: BatchErrors | None = Field(description="Why the batch failed.")
    input_file_id: str
    completion_window: str
    status: Status
    output_file_id: str | None = Field(description="The answers, a line for each request, in no order.")
    error_file_id: str | None = Field(description="The requests without an answer, a line for each.")
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, str] | None

    @classmethod
    def of(cls, job: Job, asked_at: float | None) -> BatchObject:
        """`asked_at`: when a user has asked it to end."""
        request, plan = request_of(job), job.resolved
        result = job.result if isinstance(job.result, BatchResult) else None
        status = _status(job, result, asked_at)
        ended = {status: _whole(job.finished_at)}
        return cls.model_validate(
            {
                "id": job.id,
                "endpoint": request.endpoint,
                "model": plan.model if isinstance(plan, BatchPlan) else None,
                "errors": _errors(job),
                "input_file_id": file_of(job),
                "completion_window": request.completion_window,
                "status": status,
                "output_file_id": result.output_file if result else None,
                "error_file_id": result.error_file if result else None,
                "created_at": int(job.created_at),
                "in_progress_at": _whole(job.started_at),
                "expires_at": int(request.expires_at),
                "finalizing_at": _whole(result.ended_at) if result else None,
                "completed_at": ended.get("completed"),
                "failed_at": ended.get("failed"),
                "expired_at": ended.get("expired"),
                "cancelling_at": _whole(asked_at) or ended.get("cancelled"),
                "cancelled_at": ended.get("cancelled"),
                "request_counts": _counts(job, result),
                "metadata": job.metadata,
            }
        )


class BatchEventObject(JobEventBody):
    """A batch's event. Metric events have their numbers in `data`."""

    object: Literal["batch.event"] = "batch.event"
    data: dict[str, Any] | None = Field(
        description="step (requests with a result), total_steps, failed, phase, eta_seconds."
    )


def _status(job: Job, result: BatchResult | None, asked_at: float | None) -> str:
    if job.state is JobState.SUCCEEDED and result is not None:
        return result.ending.value
    if job.state.is_final:
        return job.state.value
    if job.state is JobState.VALIDATING_FILES:
        return "validating"
    if asked_at is not None:
        return "cancelling"
    return "finalizing" if job.phase is JobPhase.PUBLISH else "in_progress"


def _counts(job: Job, result: BatchResult | None) -> dict[str, int]:
    total = job.resolved.requests if isinstance(job.resolved, BatchPlan) else 0
    if result is not None:
        return {"total": total, "completed": result.completed, "failed": result.failed}
    done, failed = (job.progress.step, job.progress.failed or 0) if job.progress else (0, 0)
    return {"total": total, "completed": done - failed, "failed": failed}


def _errors(job: Job) -> dict[str, Any] | None:
    if job.error is None:
        return None
    faults = job.report.faults if isinstance(job.report, BatchReport) else []
    error = BatchFault(code=job.error.code, message=job.error.message, param=job.error.param)
    return {"data": [fault.model_dump() for fault in faults or [error]]}


def _whole(at: float | None) -> int | None:
    return int(at) if at else None
