"""Jobs of every kind: creation, claims of the scheduler, events of their processes, and their end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel
from sqlalchemy import Connection, and_, case, delete, exists, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from tunewright.errors import InvalidRequest
from tunewright.jobs.kinds import JobError, JobResult, kind_named
from tunewright.store import job_rows
from tunewright.store.database import Database
from tunewright.store.inputs import INPUTS, require_inputs
from tunewright.store.job_rows import Event
from tunewright.store.job_turns import next_queued
from tunewright.store.paging import page
from tunewright.store.records import Checkpoint, Job, JobEvent, NewJob, TunedModel
from tunewright.store.states import JobPhase, JobState
from tunewright.store.tables import checkpoints, job_devices, job_events, jobs, models
from tunewright.store.tables import files as file_rows
from tunewright.store.usage import settle_devices


class JobStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    # for the API

    def create(
        self,
        new: NewJob,
        *,
        repeat_seconds: float = 0.0,
        admit: Callable[[int], None] = lambda _: None,
        **columns: Any,
    ) -> Job:
        """Insert a job in `validating_files`, or return the one that an earlier try of the same request created.

        The jobs that follow it are inserted with it. Lookup and insertion are one transaction, so that simultaneous
        repeats create one job too. So is `admit`, which is given the number of jobs that wait (`count_waiting`) and
        raises where there may not be more: no simultaneous request adds to them. `columns` are further columns of the
        row. Raises InvalidRequest or NotFound where one of the inputs does not exist, and what `admit` raises.
        """
        with self._database.begin(alone=INPUTS) as connection:
            earlier = job_rows.earlier(connection, new.idempotency_key, new.fingerprint, repeat_seconds)
            if earlier is not None:
                return earlier
            admit(_count_waiting(connection))
            for one in (new, *new.then):
                require_inputs(connection, one)
            return job_rows.create_all(connection, new, **columns)

    def earlier(self, idempotency_key: str | None, fingerprint: str, repeat_seconds: float) -> Job | None:
        """The job that this request created before: by its key or, without one, if it was created from the same request
        within the last `repeat_seconds` and has neither failed nor been cancelled since."""
        with self._database.read() as connection:
            return job_rows.earlier(connection, idempotency_key, fingerprint, repeat_seconds)

    def count_waiting(self) -> int:
        """Number of jobs that have not ended and are not on a device."""
        with self._database.read() as connection:
            return _count_waiting(connection)

    def get(self, id: str, kind: str | None = None) -> Job | None:
        """The job, if it is of this kind; None means any kind."""
        with self._database.read() as connection:
            job = job_rows.get(connection, id)
        return job if job is not None and kind in (None, job.kind) else None

    def list(
        self, *, kind: str, after: str | None, limit: int, metadata: dict[str, str] | None = None
    ) -> tuple[Sequence[Job], bool]:
        """A page of jobs of one kind, newest first, and whether there are more; `metadata` pairs must all match."""
        query = select(jobs).where(jobs.c.kind == kind)
        for key, value in (metadata or {}).items():
            query = query.where(jobs.c.metadata[key].as_string() == value)
        rows, more = page(self._database, query, jobs, after=after, limit=limit)
        with self._database.read() as connection:
            return job_rows.read(connection, rows), more

    def of_pipeline(self, id: str) -> Sequence[Job]:
        """The jobs that follow each other, of which the first has this id, in their order; none where nothing follows
        it."""
        return self._jobs(jobs.c.pipeline == id)

    def cancel_pipeline(self, id: str) -> Sequence[Job]:
        """Cancel all of them that have not ended, as `cancel` does, at once: none is failed by the end of another."""
        with self._database.begin(alone=INPUTS) as connection:
            ids = connection.scalars(select(jobs.c.id).where(jobs.c.pipeline == id)).all()
            for job_id in ids:
                job_rows.cancel(connection, job_id, beside=ids)
        return self.of_pipeline(id)

    def succeeded_on(self, base: str, kind: str, limit: int) -> Sequence[Job]:
        """The newest jobs of a kind on a base that have succeeded, newest first."""
        of_base = (jobs.c.kind == kind, jobs.c.base == base, jobs.c.state == JobState.SUCCEEDED)
        with self._database.read() as connection:
            rows = connection.execute(
                select(jobs).where(*of_base).order_by(jobs.c.seq.desc()).limit(limit)
            ).all()
            return job_rows.read(connection, rows)

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
        """Cancel an unfinished job, as `job_rows.cancel` does. The scheduler ends a process that still runs. Raises
        InvalidRequest where the job has ended."""
        with self._database.begin(alone=INPUTS) as connection:
            job, moved = job_rows.cancel(connection, id)
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
        job, moved = self._move(id, job_rows.HELD)
        if job is not None and (job.phase, job.state) == (JobPhase.EVALUATE, JobState.RUNNING):
            raise InvalidRequest(f"Job {id} waits for its evaluations: pause these.", code="job_not_pausable")
        if not moved:
            job, moved = self._move(id, job_rows.PAUSE)
        if job is not None and job.state not in (JobState.PAUSING, JobState.PAUSED):
            raise InvalidRequest(
                f"Job {id} is {job.state.value}. Only queued and running jobs can be paused.",
                code="job_not_pausable",
            )
        return job

    def resume(self, id: str) -> Job | None:
        """Queue a paused job again. Raises InvalidRequest in other states."""
        job, moved = self._move(id, job_rows.RESUMED)
        if job is not None and not moved:
            hint = (
                "Wait until it is paused."
                if job.state is JobState.PAUSING
                else "Only paused jobs can be resumed."
            )
            raise InvalidRequest(f"Job {id} is {job.state.value}. {hint}", code="job_not_resumable")
        return job

    # for the scheduler

    def in_states(self, *states: JobState) -> Sequence[Job]:
        """Jobs in one of these states, oldest first."""
        return self._jobs(jobs.c.state.in_(states))

    def queued(self) -> Sequence[Job]:
        """Jobs that wait for their turn, oldest first."""
        return self.in_states(JobState.QUEUED)

    def on_devices(self) -> Sequence[Job]:
        """Jobs that hold a device, oldest first: running ones, and ended ones whose process may still run."""
        return self._jobs(_holds_a_device())

    def active(self) -> Sequence[Job]:
        """Jobs that the scheduler has to handle, oldest first: those that are being validated, are in one of the phases
        of a running job, or still hold a device."""
        states = (JobState.VALIDATING_FILES, *job_rows.ON_A_DEVICE)
        return self._jobs(or_(jobs.c.state.in_(states), _holds_a_device()))

    def ended_at(self) -> dict[str, float | None]:
        """For each job's id, when it ended (Unix seconds); None where it has not, or its process may still write."""
        unfinished = or_(jobs.c.state.in_(job_rows.UNFINISHED), _holds_a_device())
        ended = func.coalesce(jobs.c.finished_at, jobs.c.created_at)
        query = select(jobs.c.id, case((unfinished, None), else_=ended))
        with self._database.read() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def without_products(self) -> dict[str, float]:
        """When the jobs ended (Unix seconds), by their ids, that have ended and of which no product is listed."""
        query = select(jobs.c.id, func.coalesce(jobs.c.finished_at, jobs.c.created_at)).where(
            _is_forgettable()
        )
        with self._database.read() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def delete(self, id: str) -> bool:
        """Delete a job that has ended and of which no product is listed, with its events; False for any other."""
        with self._database.begin() as connection:
            gone = connection.execute(delete(jobs).where(jobs.c.id == id, _is_forgettable()))
            return gone.rowcount > 0

    def delete_events(self, ended_before: float) -> int:
        """Delete the events of jobs that ended before this time (Unix seconds). Returns how many there were."""
        ended = select(jobs.c.id).where(_is_over(), jobs.c.finished_at < ended_before)
        with self._database.begin() as connection:
            return connection.execute(delete(job_events).where(job_events.c.job_id.in_(ended))).rowcount

    def follow(self, id: str, role: str, model: TunedModel) -> bool:
        """Give a job that waits for another one its product, as an input with this role. False where the job has ended,
        has it already, or where the model was deleted just now."""
        with self._database.begin(alone=INPUTS) as connection:
            return job_rows.follow(connection, id, role, model)

    def mark_valid(
        self,
        id: str,
        resolved: dict[str, Any] | None,
        summary: str,
        warnings: Sequence[tuple[str, str]] = (),
    ) -> Job | None:
        """Queue a job whose inputs were found to be valid. Each of the warnings, (code, text), becomes an event."""
        with self._database.begin() as connection:
            job, moved = job_rows.move(connection, id, job_rows.VALIDATED, summary, resolved=resolved)
            if job is not None and moved:
                for code, text in warnings:
                    event = job_rows.message_event(text, level="warn") | {"data": {"code": code}}
                    job_rows.add_event(connection, job, event)
            return job

    def claim(
        self, devices: str | Sequence[str], bases: Sequence[str], kinds: Sequence[str] | None = None
    ) -> Job | None:
        """Give the queued job on one of `bases` that has the next turn (`store.job_turns`) as many of `devices` as it
        needs, those that are free and come first, all at once. None where no job waits, or where fewer are free: then
        no other job gets them either, so that one which needs many gets its turn. A device that is named alone, as a
        text, is enough for any job: the processes of a job share the CPU. `kinds`: those of the jobs; None: all.
        """
        offered = [devices] if isinstance(devices, str) else list(devices)
        held = select(job_devices.c.device).where(job_devices.c.device.in_(offered))
        try:
            with self._database.begin() as connection:
                id = next_queued(connection, bases, kinds)
                found = job_rows.get(connection, id) if id is not None else None
                if found is None:
                    return None
                kind = kind_named(found.kind)
                number = 1 if isinstance(devices, str) else kind.devices_of(found.resolved)
                taken = set(connection.scalars(held))
                given = [device for device in offered if device not in taken][:number]
                if len(given) < number:
                    return None
                now = time.time()
                rows = [{"device": device, "job_id": found.id, "since": now} for device in given]
                connection.execute(insert(job_devices), rows)
                noun, text = kind.noun.capitalize(), ", ".join(given)
                times = {"started_at": func.coalesce(jobs.c.started_at, now), "claimed_at": now}
                job, moved = job_rows.move(
                    connection, found.id, job_rows.STARTED, noun, text, **times, attempt=0
                )
                assert moved, "its row is locked"
                return job
        except IntegrityError:  # another scheduler took a device at the same moment
            return None

    def set_phase(self, id: str, phase: JobPhase) -> None:
        """Set the phase of a job that has not ended."""
        with self._database.begin() as connection:
            connection.execute(
                update(jobs)
                .where(jobs.c.id == id, jobs.c.state.in_(job_rows.ON_A_DEVICE))
                .values(phase=phase)
            )

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
        """Free the devices of a job whose process has ended."""
        with self._database.begin() as connection:
            job_rows.release(connection, id)

    def requeue(self, id: str, why: str, resolved: BaseModel | None = None) -> Job | None:
        """Queue a running job again; it will continue from its last checkpoint, with other resolved values if given."""
        changed = {"resolved": resolved.model_dump(mode="json")} if resolved is not None else {}
        return self._move(id, job_rows.REQUEUED, why, **changed)[0]

    def paused(self, id: str) -> Job | None:
        """Pause a job whose process has ended, and free its devices."""
        return self._move(id, job_rows.PAUSED)[0]

    def restart_clock(self, id: str, until: float) -> None:
        """Count the time for which the job had GPUs until then (Unix seconds), and go on from now: in between nothing
        of it ran."""
        with self._database.begin() as connection:
            settle_devices(connection, id, until, go_on_from=time.time())

    def rewind_events(self, id: str, size: int) -> None:
        """Lower the offset of a job without a process to the size of its events file in bytes, where the file is
        shorter: power was lost before the system wrote all of it. Otherwise the next lines would be skipped."""
        with self._database.begin() as connection:
            connection.execute(
                update(jobs).where(jobs.c.id == id, jobs.c.events_offset > size).values(events_offset=size)
            )

    def take_in(
        self,
        job: Job,
        *,
        new_offset: int,
        events: Sequence[Event],
        progress: dict[str, Any] | None,
        last_step: int,
    ) -> None:
        """Store the events that the job's process wrote behind the offset of `job`, exactly once.

        A new step resets the number of attempts.
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
                update(jobs)
                .where(jobs.c.id == job.id, jobs.c.events_offset == job.events_offset)
                .values(**values)
            )
            if taken.rowcount:
                job_rows.add_events(connection, job.id, job.kind, events)

    def succeed(
        self,
        id: str,
        result: JobResult,
        *,
        report: dict[str, Any] | None = None,
        files: Sequence[dict[str, Any]] = (),
    ) -> bool:
        """End a job whose product is no model, and list the files that it made: their rows.

        False where it was cancelled before; then nothing is listed.
        """
        with self._database.begin() as connection:
            found = job_rows.get(connection, id, lock=True)
            if found is None or found.state not in job_rows.ON_A_DEVICE:
                return False
            common = {"created_at": time.time(), "project": found.project}
            for file in files:
                connection.execute(insert(file_rows).values(**common, **file))
                text = f"New {kind_named(found.kind).product} created: {file['id']}"
                job_rows.add_event(connection, found, job_rows.message_event(text))
            return job_rows.succeed(connection, id, result=job_rows.as_json(result), report=report)

    def fail(self, id: str, error: JobError, *, report: dict[str, Any] | None = None) -> Job | None:
        with self._database.begin() as connection:
            return job_rows.fail(connection, id, error, report=report)

    def add_event(self, job: Job, event: Event) -> None:
        with self._database.begin() as connection:
            job_rows.add_event(connection, job, event)

    def _jobs(self, *conditions: Any) -> Sequence[Job]:
        with self._database.read() as connection:
            rows = connection.execute(select(jobs).where(*conditions).order_by(jobs.c.seq)).all()
            return job_rows.read(connection, rows)

    def _move(self, id: str, how: job_rows.Move, *details: str, **values: Any) -> tuple[Job | None, bool]:
        with self._database.begin() as connection:
            return job_rows.move(connection, id, how, *details, **values)


def _count_waiting(connection: Connection) -> int:
    waiting = (JobState.VALIDATING_FILES, JobState.QUEUED, JobState.PAUSED)
    return connection.scalar(select(func.count()).where(jobs.c.state.in_(waiting))) or 0


def _is_over() -> Any:
    """The job has ended, and so has its process."""
    return and_(jobs.c.state.not_in(job_rows.UNFINISHED), ~_holds_a_device())


def _is_forgettable() -> Any:
    return and_(_is_over(), ~exists().where(models.c.job_id == jobs.c.id))


def _holds_a_device() -> Any:
    return exists().where(job_devices.c.job_id == jobs.c.id)
