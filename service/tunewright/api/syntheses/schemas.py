"""Syntheses: requests, their state and their reports."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from tunewright.api.fine_tuning.data import FileReading
from tunewright.api.jobs.schemas import JobError, JobEventBody, Metadata, estimated_finish
from tunewright.kinds.synthesis.kind import request_of, source_of
from tunewright.kinds.synthesis.models import SynthesisPlan, SynthesisResult
from tunewright.store.records import Job
from tunewright.store.states import JobState
from tunewright.synthesizer.report import SynthesisReport
from tunewright.synthesizer.tasks import MOST_REQUESTS, Deduplication, Task
from tunewright.wire import Body, Text, Wire


class CreateSynthesis(Body):
    """The teacher, the rows, and what is made of them."""

    model: str = Field(
        min_length=1,
        max_length=512,
        description="The teacher: a base, an adapter, a deployed model, or an alias with one target, of which the "
        "present target is asked.",
    )
    file: Text = Field(max_length=64, description="The id of a file for fine-tune. It stays as it is.")
    task: Task = Field(
        description="answers: the last answer of each row is cut away, and the teacher answers. paraphrases: it "
        "rewrites what the user says. rows: it writes new rows like those of the file."
    )
    rows: int | None = Field(
        None,
        ge=1,
        le=MOST_REQUESTS,
        description="How many rows of the file are drawn; for the task rows those that are shown. Default: "
        "all, for the task rows up to 20,000.",
    )
    temperature: float = Field(0.7, ge=0, le=2, description="0: the likeliest token each time.")
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int | None = Field(
        None,
        ge=1,
        le=131_072,
        description="Of an answer; a longer one is dropped. Default: 1024, at most half of the teacher's context.",
    )
    seed: int = Field(
        0, ge=0, le=2**31 - 1, description="Of the rows that are drawn, and of each request to the teacher."
    )
    deduplicate: Deduplication | None = Field(
        None, description="How copies are removed. Default: the same rows, and those that are alike."
    )
    data: FileReading | None = Field(
        None,
        description='How the file is read. `{"columns": {"text": "question"}}` takes a column of prompts alone, for '
        "the task answers.",
    )
    metadata: Metadata = Field(None, description="Up to 16 pairs, kept with the synthesis.")


class TeacherObject(Wire):
    """The teacher, as it was when the synthesis was created."""

    name: str
    asked: str = Field(description="The name in the request: another one where that was an alias.")
    content: str = Field(description="The hash of its weights, or the fingerprint of a base.")


class SynthesisProgress(Wire):
    """The answers so far."""

    step: int = Field(description="Answers that are there.")
    total_steps: int = Field(description="Those that are asked for; more, once rows that were dropped are.")
    phase: str | None = None
    eta_seconds: float | None = None


class SynthesisObject(Wire):
    """A job in which a teacher that is served here makes training rows, which are a new file."""

    id: str
    object: Literal["synthesis"] = "synthesis"
    created_at: int
    started_at: int | None
    finished_at: int | None
    status: JobState
    model: str = Field(description="The teacher: never an alias.")
    teacher: TeacherObject
    file: str
    filename: str
    task: Task
    rows: int | None
    temperature: float
    top_p: float
    max_tokens: int | None = Field(description="Null until it is known.")
    seed: int
    deduplicate: Deduplication
    data: FileReading | None = Field(description="How the file is read, where that was said.")
    made_file: str | None = Field(description="The new file, once it is listed: JSONL for fine-tune.")
    dropped_file: str | None = Field(
        description="JSONL with a line for each request that became no row: `request`, `row` (in the file), `reason`, "
        "`message`, `answer` and `score`. Null where there is none."
    )
    progress: SynthesisProgress | None
    estimated_finish: int | None
    error: JobError | None
    report: SynthesisReport | None = Field(
        description="How many rows were made and dropped, and why, and the tokens; also where no row was made. "
        "`requests` is the sum of `rows_made` and of all that was dropped."
    )
    metadata: dict[str, str] | None
    model_config = ConfigDict(protected_namespaces=())

    @classmethod
    def of(cls, job: Job) -> SynthesisObject:
        request, progress = request_of(job), job.progress
        given = request.data.model_dump(exclude_defaults=True)
        result = job.result if isinstance(job.result, SynthesisResult) else SynthesisResult()
        return cls(
            id=job.id,
            created_at=int(job.created_at),
            started_at=int(job.started_at) if job.started_at else None,
            finished_at=int(job.finished_at) if job.finished_at else None,
            status=job.state,
            model=request.teacher.name,
            teacher=TeacherObject(**request.teacher.model_dump(include={"name", "asked", "content"})),
            file=source_of(job),
            filename=request.filename,
            task=request.task,
            rows=request.rows,
            temperature=request.temperature,
            top_p=request.top_p,
            max_tokens=job.resolved.max_tokens
            if isinstance(job.resolved, SynthesisPlan)
            else request.max_tokens,
            seed=job.seed,
            deduplicate=request.deduplicate,
            data=FileReading(**given) if given else None,
            made_file=result.file,
            dropped_file=result.dropped_file,
            progress=SynthesisProgress(**progress.model_dump(include=set(SynthesisProgress.model_fields)))
            if progress
            else None,
            estimated_finish=estimated_finish(job),
            error=JobError.of(job.error),
            report=job.report if isinstance(job.report, SynthesisReport) else None,
            metadata=job.metadata,
        )


class SynthesisEventObject(JobEventBody):
    """A synthesis's event. Metric events have their numbers in `data`."""

    object: Literal["synthesis.event"] = "synthesis.event"
    data: dict[str, Any] | None = Field(description="step, total_steps (answers), phase, eta_seconds.")
