"""Jobs, of fine-tuning and of exports: creation, the scheduler's claims, what trainers report, and how jobs end."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import case, func, insert, select, update

from tunewright.errors import InvalidRequest
from tunewright.ids import new_id
from tunewright.store import job_rows
from tunewright.store.database import Database
from tunewright.store.inputs import INPUTS, UNFINISHED, require_inputs
from tunewright.store.job_rows import Event
from tunewright.store.paging import page
from tunewright.store.records import Checkpoint, Job, JobEvent
from tunewright.store.states import JobKind, JobState
from tunewright.store.tables import checkpoints, job_events, jobs

_PREFIXES = {JobKind.FINE_TUNING: "ftjob", JobKind.EXPORT: "export"}
_NAMES = {JobKind.FINE_TUNING: "fine-tuning job", JobKind.EXPORT: "export"}


class JobStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    # what the API does

    def create(self, values: dict[str, Any], *, twin_seconds: float = 0.0) -> Job:
        """Insert a job in `validating_files`, or give the one that an earlier try of the same request made.

        Looked up and inserted in one transaction, so that retries at the same moment make one job too. Raises
        InvalidRequest or NotFound where a file or the model it starts from is not there.
        """
        kind = values.get("kind", JobKind.FINE_TUNING)
        row = {
            "id": new_id(_PREFIXES[kind]),
            "created_at": time.time(),
            "state": JobState.VALIDATING_FILES,
            **values,
        }
        with self._database.begin(alone=INPUTS) as connection:
            earlier = job_rows.earlier(
                connection, row.get("idempotency_key"), row["fingerprint"], twin_seconds
            )
            if earlier is not None:
                return earlier
            require_inputs(connection, row)
            job = Job(**connection.execute(insert(jobs).values(**row).returning(jobs)).one()._mapping)
            job_rows.add_event(
                connection, job.id, job_rows.message_event(f"Created {_NAMES[job.kind]}: {job.id}")
            )
        return job

    def earlier(self, idempotency_key: str | None, fingerprint: str, twin_seconds: float) -> Job | None:
        """The job that this request made before: by its key, or, without one, if it was made from the same request
        within the last `twin_seconds` and was not ended since."""
        with self._database.read() as connection:
            return job_rows.earlier(connection, idempotency_key, fingerprint, twin_seconds)

    def count_waiting(self) -> int:
        """Jobs that are neither over nor on a device."""
        waiting = (JobState.VALIDATING_FILES, JobState.QUEUED, JobState.PAUSED)
        with self._database.read() as connection:
            return connection.scalar(select(func.count()).where(jobs.c.state.in_(waiting))) or 0

    def get(self, id: str, kind: JobKind | None = None) -> Job | None:
        """Of any kind, or of one."""
        query = select(jobs).where(jobs.c.id == id)
        if kind is not None:
            query = query.where(jobs.c.kind == kind)
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        return Job(**row._mapping) if row else None

    def list(
        self,
        *,
        after: str | None,
        limit: int,
        metadata: dict[str, str] | None = None,
        kind: JobKind = JobKind.FINE_TUNING,
    ) -> tuple[Sequence[Job], bool]:
        """A page of jobs, newest first, and whether there are more; `metadata` pairs must all match."""
        query = select(jobs).where(jobs.c.kind == kind)
        for key, value in (metadata or {}).items():
            query = query.where(jobs.c.job_metadata[key].as_string() == value)
        rows, more = page(self._database, query, jobs, after=after, limit=limit)
        return [Job(**row._mapping) for row in rows], more

    def events(
        self, job_id: str, *, after: str | None, limit: int, ascending: bool = False
    ) -> tuple[Sequence[JobEvent], bool]:
        query = select(job_events).where(job_events.c.job_id == job_id)
        rows, more = page(self._database, query, job_events, after=after, limit=limit, ascending=ascending)
        return [JobEvent(**row._mapping) for row in rows], more

    def checkpoints(self, job_id: str, *, after: str | None, limit: int) -> tuple[Sequence[Checkpoint], bool]:
        query = select(checkpoints).where(checkpoints.c.job_id == job_id)
        rows, more = page(self._database, query, checkpoints, after=after, limit=limit)
        return [Checkpoint(**row._mapping) for row in rows], more

    def cancel(self, id: str) -> Job | None:
        """Cancel in any state; the scheduler ends a trainer that still runs, and what was made but not yet checked is
        unlisted. Raises InvalidRequest when final."""
        with self._database.begin(alone=INPUTS) as connection:
            job, moved = job_rows.move(
                connection,
                id,
                (s for s in JobState if not s.is_final),
                JobState.CANCELLED,
                job_rows.message_event("The job has been cancelled.", level="warn"),
                finished_at=time.time(),
            )
            if moved:
                job_rows.unlist_unchecked(connection, id)
        if job is not None and not moved:
            raise InvalidRequest(
                f"Job {id} has already ended ({job.state.value}). Only unfinished jobs can be cancelled.",
                code="job_not_cancellable",
            )
        return job

    def pause(self, id: str) -> Job | None:
        """Hold a queued job, or have a running one save and stop; a job that is paused already stays so.

        Raises InvalidRequest in other states.
        """
        job, moved = self._move(
            id, (JobState.QUEUED,), JobState.PAUSED, job_rows.message_event("The job has been paused")
        )
        if not moved:
            job, moved = self._move(
                id,
                (JobState.RUNNING,),
                JobState.PAUSING,
                job_rows.message_event("Pausing: a checkpoint is being saved"),
            )
        if job is not None and job.state not in (JobState.PAUSING, JobState.PAUSED):
            raise InvalidRequest(
                f"Job {id} is {job.state.value}. Only queued and running jobs can be paused.",
                code="job_not_pausable",
            )
        return job

    def resume(self, id: str) -> Job | None:
        """Queue a paused job again. Raises InvalidRequest in other states."""
        job, moved = self._move(
            id,
            (JobState.PAUSED,),
            JobState.QUEUED,
            job_rows.message_event("The job has been resumed; waiting for a device"),
        )
        if job is not None and not moved:
            hint = (
                "Wait until it is paused."
                if job.state is JobState.PAUSING
                else "Only paused jobs can be resumed."
            )
            raise InvalidRequest(f"Job {id} is {job.state.value}. {hint}", code="job_not_resumable")
        return job

    # what the scheduler does

    def in_states(self, *states: JobState) -> Sequence[Job]:
        """Oldest first."""
        with self._database.read() as connection:
            rows = connection.execute(select(jobs).where(jobs.c.state.in_(states)).order_by(jobs.c.seq)).all()
        return [Job(**row._mapping) for row in rows]

    def on_devices(self) -> Sequence[Job]:
        """Jobs that hold a device: running ones, and ended ones whose trainer has not been seen to end."""
        with self._database.read() as connection:
            rows = connection.execute(
                select(jobs).where(jobs.c.device.is_not(None)).order_by(jobs.c.seq)
            ).all()
        return [Job(**row._mapping) for row in rows]

    def over_since(self) -> dict[str, float | None]:
        """Every job, and when it ended; None while it is not over or its trainer may still write."""
        query = select(
            jobs.c.id, func.coalesce(jobs.c.finished_at, jobs.c.created_at), UNFINISHED, jobs.c.device
        )
        with self._database.read() as connection:
            return {
                id: None if unfinished or device is not None else ended
                for id, ended, unfinished, device in connection.execute(query)
            }

    def mark_valid(self, id: str, resolved: dict[str, Any], summary: str) -> Job | None:
        """Its data is good: queue it, with what every "auto" became."""
        return self._move(
            id,
            (JobState.VALIDATING_FILES,),
            JobState.QUEUED,
            job_rows.message_event(summary),
            resolved=resolved,
        )[0]

    def claim(self, device: str, bases: Sequence[str]) -> Job | None:
        """Give `device` to the oldest queued job on one of `bases`, in one statement; None where none waits or the
        device is taken."""
        waiting = (
            select(jobs.c.id)
            .where(jobs.c.state == JobState.QUEUED, jobs.c.base.in_(bases))
            .order_by(jobs.c.seq)
            .limit(1)
            .scalar_subquery()
        )
        holder = select(jobs.c.seq).where(jobs.c.device == device).exists()
        with self._database.begin() as connection:
            row = connection.execute(
                update(jobs)
                .where(jobs.c.id == waiting, jobs.c.state == JobState.QUEUED, ~holder)
                .values(
                    state=JobState.RUNNING,
                    device=device,
                    started_at=func.coalesce(jobs.c.started_at, time.time()),
                    attempt=0,
                )
                .returning(jobs)
            ).one_or_none()
            if row is None:
                return None
            job = Job(**row._mapping)
            job_rows.add_event(
                connection,
                job.id,
                job_rows.message_event(f"{_NAMES[job.kind].capitalize()} started on {device}"),
            )
        return job

    def count_attempt(self, id: str) -> int:
        with self._database.begin() as connection:
            return int(
                connection.execute(
                    update(jobs)
                    .where(jobs.c.id == id)
                    .values(attempt=jobs.c.attempt + 1)
                    .returning(jobs.c.attempt)
                ).scalar_one()
            )

    def release(self, id: str) -> None:
        """Its trainer is gone: the device is free."""
        with self._database.begin() as connection:
            connection.execute(update(jobs).where(jobs.c.id == id).values(device=None))

    def requeue(self, id: str, why: str) -> Job | None:
        """Back to the queue, to go on from its last checkpoint."""
        return self._move(id, (JobState.RUNNING,), JobState.QUEUED, job_rows.message_event(why), device=None)[
            0
        ]

    def paused(self, id: str) -> Job | None:
        """Its trainer is gone and its device free."""
        return self._move(
            id,
            (JobState.PAUSING,),
            JobState.PAUSED,
            job_rows.message_event("The job has been paused"),
            device=None,
        )[0]

    def rewind_events(self, id: str, size: int) -> None:
        """No trainer runs and its events file has `size` bytes: fewer than were taken in, where power was lost before
        the system wrote them. What is appended next counts again."""
        with self._database.begin() as connection:
            connection.execute(
                update(jobs).where(jobs.c.id == id, jobs.c.events_offset > size).values(events_offset=size)
            )

    def take_in(
        self,
        id: str,
        *,
        offset: int,
        new_offset: int,
        events: Sequence[Event],
        progress: dict[str, Any] | None,
        last_step: int,
    ) -> None:
        """Add what the trainer wrote between two offsets of its events file, exactly once.

        A new step starts the count of attempts anew.
        """
        values: dict[str, Any] = {
            "events_offset": new_offset,
            "last_step": last_step,
            "attempt": case((jobs.c.last_step < last_step, 0), else_=jobs.c.attempt),
        }
        if progress is not None:
            values["progress"] = progress
        with self._database.begin() as connection:
            taken = connection.execute(
                update(jobs).where(jobs.c.id == id, jobs.c.events_offset == offset).values(**values)
            )
            if not taken.rowcount:
                return
            for event in events:
                job_rows.add_event(connection, id, event)

    def fail(
        self,
        id: str,
        *,
        code: str,
        message: str,
        param: str | None = None,
        report: dict[str, Any] | None = None,
    ) -> Job | None:
        with self._database.begin() as connection:
            return job_rows.fail(connection, id, code=code, message=message, param=param, report=report)

    def add_event(self, id: str, event: Event) -> None:
        with self._database.begin() as connection:
            job_rows.add_event(connection, id, event)

    def _move(
        self, id: str, sources: Iterable[JobState], target: JobState, event: Event, **values: Any
    ) -> tuple[Job | None, bool]:
        with self._database.begin() as connection:
            return job_rows.move(connection, id, sources, target, event, **values)
