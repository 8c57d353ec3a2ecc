"""The rows of jobs and of their events, in somebody's transaction."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, delete, exists, func, insert, select, update

from tunewright.ids import new_id
from tunewright.store.records import Job
from tunewright.store.states import JOB_MOVES, JobKind, JobState, ModelState
from tunewright.store.tables import checkpoints, job_events, jobs, models

Event = dict[str, Any]
"""level, type, message, data, and created_at where it is not now."""


def move(
    connection: Connection,
    id: str,
    sources: Iterable[JobState],
    target: JobState,
    event: Event,
    **values: Any,
) -> tuple[Job | None, bool]:
    """Move the job if it is in one of `sources`: the job as it is then, and whether it was moved."""
    row = connection.execute(
        update(jobs)
        .where(jobs.c.id == id, jobs.c.state.in_(list(sources)))
        .values(state=target, **values)
        .returning(jobs)
    ).one_or_none()
    moved = row is not None
    if moved:
        add_event(connection, id, event)
    else:
        row = connection.execute(select(jobs).where(jobs.c.id == id)).one_or_none()
    return (Job(**row._mapping) if row else None), moved


def earlier(
    connection: Connection, idempotency_key: str | None, fingerprint: str, twin_seconds: float
) -> Job | None:
    if idempotency_key is not None:
        query = select(jobs).where(jobs.c.idempotency_key == idempotency_key)
    else:
        query = (
            select(jobs)
            .where(jobs.c.fingerprint == fingerprint, jobs.c.idempotency_key.is_(None))
            .where(jobs.c.created_at > time.time() - twin_seconds)
            .where(jobs.c.state.not_in([JobState.CANCELLED, JobState.FAILED]))
            .order_by(jobs.c.seq.desc())
            .limit(1)
        )
    row = connection.execute(query).one_or_none()
    return Job(**row._mapping) if row else None


def await_verdict(
    connection: Connection, id: str, *, trained_tokens: int, report: dict[str, Any] | None = None
) -> bool:
    """The job's products are about to be listed, to be checked: it goes on until then (`succeed`, `fail`). False where
    it was cancelled before, or has products already."""
    waits = connection.execute(
        update(jobs)
        .where(jobs.c.id == id, jobs.c.state.in_([JobState.RUNNING, JobState.PAUSING]))
        .where(~exists().where(models.c.job_id == id))
        .values(trained_tokens=trained_tokens, report=report)
    )
    if waits.rowcount:
        add_event(
            connection,
            id,
            message_event("The adapter is made; checking it in the engine before it is listed"),
        )
    return bool(waits.rowcount)


def succeed(
    connection: Connection,
    id: str,
    *,
    model: str,
    trained_tokens: int | None = None,
    report: dict[str, Any] | None = None,
) -> bool:
    """End the job well, in the transaction that lists its product; False where it was cancelled before."""
    moved = connection.execute(
        update(jobs)
        .where(jobs.c.id == id, jobs.c.state.in_([JobState.RUNNING, JobState.PAUSING]))
        .values(
            state=JobState.SUCCEEDED,
            fine_tuned_model=model,
            trained_tokens=func.coalesce(trained_tokens, jobs.c.trained_tokens),
            report=jobs.c.report if report is None else report,
            finished_at=time.time(),
        )
        .returning(jobs.c.kind)
    ).one_or_none()
    if moved is not None:
        what = "fine-tuned model" if moved.kind == JobKind.FINE_TUNING else "model"
        add_event(connection, id, message_event(f"New {what} created: {model}"))
        add_event(connection, id, message_event("The job has successfully completed"))
    return moved is not None


def fail(
    connection: Connection,
    id: str,
    *,
    code: str,
    message: str,
    param: str | None = None,
    report: dict[str, Any] | None = None,
) -> Job | None:
    """End the job badly, where it is not over; the job as it is then."""
    measured = {} if report is None else {"report": report}
    return move(
        connection,
        id,
        (source for source, targets in JOB_MOVES.items() if JobState.FAILED in targets),
        JobState.FAILED,
        message_event(f"The job failed: {message}", level="error"),
        error={"code": code, "message": message, "param": param},
        finished_at=time.time(),
        **measured,
    )[0]


def unlist_unchecked(connection: Connection, id: str) -> None:
    """What the job made and nobody has checked yet."""
    unchecked = (models.c.job_id == id, models.c.state == ModelState.CHECKING)
    names = connection.scalars(delete(models).where(*unchecked).returning(models.c.name)).all()
    connection.execute(delete(checkpoints).where(checkpoints.c.model.in_(names)))


def message_event(text: str, *, level: str = "info") -> Event:
    return {"level": level, "type": "message", "message": text, "data": None}


def add_event(connection: Connection, job_id: str, event: Event) -> None:
    """In the transaction of what it tells."""
    row = {"id": new_id("ftevent"), "job_id": job_id, "created_at": time.time(), "data": None, **event}
    connection.execute(insert(job_events).values(**row))
