"""Bodies and checks that jobs of all kinds share."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator

from tunewright.jobs import kinds
from tunewright.store.records import Job, JobEvent
from tunewright.store.states import JobState
from tunewright.wire import Wire

MOST_METADATA = 16


def _check_metadata(value: dict[str, str] | None) -> dict[str, str] | None:
    pairs = (value or {}).items()
    if len(pairs) > MOST_METADATA or any(len(k) > 64 or len(v) > 512 for k, v in pairs):
        raise ValueError("at most 16 pairs, keys up to 64 and values up to 512 characters")
    return value


Metadata = Annotated[dict[str, str] | None, AfterValidator(_check_metadata)]
"""Pairs of texts that are kept with a job."""


class JobError(Wire):
    code: str
    message: str
    param: str | None = None

    @classmethod
    def of(cls, error: kinds.JobError | None) -> JobError | None:
        return cls(**error.model_dump()) if error else None


class JobEventBody(Wire):
    """An event of a job; each kind says what `object` is, and which numbers `data` has."""

    id: str
    object: str
    created_at: int
    level: Literal["info", "warn", "error"]
    type: Literal["message", "metrics"]
    message: str
    data: dict[str, Any] | None

    @classmethod
    def of(cls, event: JobEvent) -> Self:
        return cls.model_validate(
            {
                "id": event.id,
                "created_at": int(event.created_at),
                "level": event.level,
                "type": event.type,
                "message": event.message,
                "data": event.data,
            }
        )


def estimated_finish(job: Job) -> int | None:
    """When the job's process will be done (Unix seconds), estimated from its newest step; None where unknown."""
    eta = job.progress.eta_seconds if job.progress else None
    return int(time.time() + eta) if job.state is JobState.RUNNING and eta is not None else None
