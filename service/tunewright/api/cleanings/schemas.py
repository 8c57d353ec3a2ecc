"""Cleanings: requests, their state and their reports."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from tunewright.api.fine_tuning.data import FileReading
from tunewright.api.jobs.schemas import JobError, JobEventBody, Metadata, estimated_finish
from tunewright.kinds.cleaning.kind import request_of
from tunewright.kinds.cleaning.models import SOURCE_FILE, CleaningResult, CleaningStep
from tunewright.rows.cleaning.counts import CleaningReport
from tunewright.store.records import Job
from tunewright.store.states import JobState
from tunewright.wire import Body, Text, Wire


class CreateCleaning(Body):
    """The file to clean, and the steps."""

    file: Text = Field(max_length=64, description="The id of a file for fine-tune. It stays as it is.")
    steps: list[CleaningStep] = Field(
        min_length=1,
        max_length=12,
        description="Each at most once. They run in one order, whatever theirs is here: html, secrets, personal, "
        "injection, control_tokens, length, language, repetition, duplicates, near_duplicates, leaks, balance.",
    )
    data: FileReading | None = Field(None, description="How the file is read, and the one of leaks.")
    metadata: Metadata = Field(None, description="Up to 16 pairs, kept with the cleaning.")


class CleaningProgress(Wire):
    """The rows that were read."""

    step: int = Field(description="Rows of the file that were read.")
    total_steps: int = Field(description="All of its rows.")
    phase: str | None = None
    eta_seconds: float | None = None


class CleaningObject(Wire):
    """A job that makes a new file of an existing one: the rows that are left after some steps."""

    id: str
    object: Literal["cleaning"] = "cleaning"
    created_at: int
    started_at: int | None
    finished_at: int | None
    status: JobState
    file: str
    filename: str
    steps: list[CleaningStep]
    data: FileReading | None = Field(description="How the files are read, where that was said.")
    cleaned_file: str | None = Field(description="The new file, once it is listed.")
    progress: CleaningProgress | None
    estimated_finish: int | None
    error: JobError | None
    report: CleaningReport | None = Field(
        description="What each step has removed, changed and flagged; also where no row was left."
    )
    metadata: dict[str, str] | None

    @classmethod
    def of(cls, job: Job) -> CleaningObject:
        request, progress, source = request_of(job), job.progress, job.file(SOURCE_FILE)
        assert source is not None, "every cleaning has a file"
        given = request.data.model_dump(exclude_defaults=True)
        return cls(
            id=job.id,
            created_at=int(job.created_at),
            started_at=int(job.started_at) if job.started_at else None,
            finished_at=int(job.finished_at) if job.finished_at else None,
            status=job.state,
            file=source,
            filename=request.filename,
            steps=request.steps,
            data=FileReading(**given) if given else None,
            cleaned_file=job.result.file if isinstance(job.result, CleaningResult) else None,
            progress=CleaningProgress(**progress.model_dump(include=set(CleaningProgress.model_fields)))
            if progress
            else None,
            estimated_finish=estimated_finish(job),
            error=JobError.of(job.error),
            report=job.report if isinstance(job.report, CleaningReport) else None,
            metadata=job.metadata,
        )


class CleaningEventObject(JobEventBody):
    """A cleaning's event. Metric events have their numbers in `data`."""

    object: Literal["cleaning.event"] = "cleaning.event"
    data: dict[str, Any] | None = Field(
        description="step, total_steps (rows), phase, eta_seconds, memory_bytes."
    )
