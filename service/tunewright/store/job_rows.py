"""Rows of jobs, with their inputs, devices and events. Every function runs in the transaction of its caller.

A job's state changes only here, and each change writes its event in the same transaction.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel
from sqlalchemy import Connection, Row, delete, exists, insert, select, update

from tunewright.ids import new_id
from tunewright.jobs.kinds import JobError, JobProgress, kind_named
from tunewright.store.outbox import tell_end
from tunewright.store.records import Job, JobInput, NewJob, TunedModel
from tunewright.store.states import JOB_MOVES, JobPhase, JobState, ModelState
from tunewright.store.tables import checkpoints, job_devices, job_events, job_inputs, jobs, models
from tunewright.store.usage import settle_devices

Event = dict[str, Any]
"""The columns level, type, message and data, and created_at where it is not the current time."""
UNFINISHED = tuple(state for state in JobState if not state.is_final)
ON_A_DEVICE = (JobState.RUNNING, JobState.PAUSING)
OF_PRODUCTS, OF_BASE = "product:", "before:"
"""How the keys of evaluations of a job's products and of its base begin, behind its id (`ensure`)."""


@dataclass(frozen=True)
class Move:
    """A change of a job's state, and the text of its event. The caller fills in each `{}` in the text."""

    sources: tuple[JobState, ...]
    target: JobState
    text: str
    level: str = "info"
    phase: JobPhase | None = None
    """The new phase; None leaves it as it is."""


VALIDATED = Move((JobState.VALIDATING_FILES,), JobState.QUEUED, "{}; moving job to queued state")
HELD = Move((JobState.QUEUED,), JobState.PAUSED, "The job has been paused")
PAUSE = Move((JobState.RUNNING,), JobState.PAUSING, "Pausing: a checkpoint is being saved")
PAUSED = Move((JobState.PAUSING,), JobState.PAUSED, "The job has been paused", phase=JobPhase.PREPARE)
RESUMED = Move((JobState.PAUSED,), JobState.QUEUED, "The job has been resumed; waiting for a device")
REQUEUED = Move((JobState.RUNNING,), JobState.QUEUED, "{}", phase=JobPhase.PREPARE)
STARTED = Move((JobState.QUEUED,), JobState.RUNNING, "{} started on {}", phase=JobPhase.RUN)
CANCELLED = Move(UNFINISHED, JobState.CANCELLED, "The job has been cancelled.", "warn")
SUCCEEDED = Move(ON_A_DEVICE, JobState.SUCCEEDED, "The job has successfully completed")
FAILED = Move(
    tuple(source for source, targets in JOB_MOVES.items() if JobState.FAILED in targets),
    JobState.FAILED,
    "The job failed: {}",
    "error",
)


def create(connection: Connection, new: NewJob, **columns: Any) -> Job:
    """Insert a job and its inputs. The caller has checked that the inputs exist."""
    kind = kind_named(new.kind)
    values = {
        "id": new_id(kind.id_prefix),
        "kind": new.kind,
        "state": JobState.VALIDATING_FILES,
        "created_at": time.time(),
        "base": new.base,
        "seed": new.seed,
        "metadata": new.metadata,
        "request": as_json(new.request),
        "idempotency_key": new.idempotency_key,
        "fingerprint": new.fingerprint,
        "api_key_id": new.api_key_id,
        **columns,
    }
    row = connection.execute(insert(jobs).values(**values).returning(jobs)).one()
    positions: dict[str, int] = defaultdict(int)
    for one in new.inputs:
        connection.execute(
            insert(job_inputs).values(
                job_id=row.id,
                role=one.role,
                position=positions[one.role],
                file_id=one.file_id,
                sha256=one.sha256,
            )
        )
        positions[one.role] += 1
    job = read_one(connection, row)
    add_event(connection, job, message_event(f"Created {kind.noun}: {job.id}"))
    return job


def create_all(connection: Connection, new: NewJob, **columns: Any) -> Job:
    """Insert a job and those that follow it; returns the first."""
    first = columns.pop("id", None) or new_id(kind_named(new.kind).id_prefix)
    pipeline = {"pipeline": first} if new.then else {}
    job = before = _create_behind(connection, new, first, **pipeline, **columns)
    for one in new.then:
        id = new_id(kind_named(one.kind).id_prefix)
        before = _create_behind(connection, one, id, pipeline=first, after=before.id)
    return job


def _create_behind(connection: Connection, new: NewJob, id: str, **columns: Any) -> Job:
    """Insert the evaluations that come before a job, and the job."""
    for one in new.first:
        ensure(connection, one, id)
    return create(connection, new, id=id, **columns)


def ensure(connection: Connection, new: NewJob, job_id: str) -> Job:
    """The evaluation that a job has asked for: the one with its key; else one with the same fingerprint, unless that is
    empty, that has neither failed nor been cancelled; else it is created. Its key stands behind the job's id."""
    key = f"{job_id}:{new.idempotency_key}"
    alike = (
        jobs.c.kind == new.kind,
        jobs.c.fingerprint == new.fingerprint,
        jobs.c.state.not_in([JobState.FAILED, JobState.CANCELLED]),
    )
    row = connection.execute(select(jobs).where(jobs.c.idempotency_key == key)).one_or_none()
    if row is None and new.fingerprint:
        row = connection.execute(
            select(jobs).where(*alike).order_by(jobs.c.seq.desc()).limit(1)
        ).one_or_none()
    if row is not None:
        return read_one(connection, row)
    request = new.request.model_copy(update={"job": job_id})
    return create(connection, replace(new, idempotency_key=key, request=request))


def follow(connection: Connection, id: str, role: str, model: TunedModel) -> bool:
    """Give a job that waits the model from which it goes on. False where it does not wait, or the model is gone."""
    job = get(connection, id, lock=True)
    there = connection.scalar(select(models.c.id).where(models.c.sha256 == model.sha256).limit(1))
    if job is None or job.state is not JobState.VALIDATING_FILES or job.weights(role) or there is None:
        return False
    row = {"job_id": id, "role": role, "position": 0, "file_id": None, "sha256": model.sha256}
    connection.execute(insert(job_inputs).values(**row))
    request = job.request.model_copy(update={"model": model.name})
    connection.execute(update(jobs).where(jobs.c.id == id).values(request=as_json(request)))
    add_event(connection, job, message_event(f"{job.after} has succeeded; going on from {model.name}"))
    return True


def as_json(model: BaseModel) -> dict[str, Any]:
    return model.model_dump(mode="json")


def read(connection: Connection, rows: Sequence[Row[Any]]) -> list[Job]:
    """Rows of `jobs` as records. Raises LookupError where a job's kind is not registered."""
    if not rows:
        return []
    ids = [row._mapping["id"] for row in rows]
    inputs: dict[str, list[JobInput]] = defaultdict(list)
    found = select(job_inputs).where(job_inputs.c.job_id.in_(ids))
    for one in connection.execute(found.order_by(job_inputs.c.role, job_inputs.c.position)):
        inputs[one.job_id].append(JobInput(one.role, one.file_id, one.sha256))
    devices: dict[str, list[str]] = defaultdict(list)
    held = select(job_devices).where(job_devices.c.job_id.in_(ids)).order_by(job_devices.c.device)
    for one in connection.execute(held):
        devices[one.job_id].append(one.device)
    return [
        _record(row, tuple(inputs[row._mapping["id"]]), tuple(devices[row._mapping["id"]])) for row in rows
    ]


def read_one(connection: Connection, row: Row[Any]) -> Job:
    return read(connection, [row])[0]


def get(connection: Connection, id: str, *, lock: bool = False) -> Job | None:
    """The job. With `lock` no other transaction changes its row before this one ends (on SQLite only one writes)."""
    query = select(jobs).where(jobs.c.id == id)
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    return read_one(connection, row) if row else None


def project_of(connection: Connection, id: str) -> str:
    """The project of a job, which must exist: that of its products."""
    return str(connection.execute(select(jobs.c.project).where(jobs.c.id == id)).scalar_one())


def _record(row: Row[Any], inputs: tuple[JobInput, ...], devices: tuple[str, ...]) -> Job:
    values = dict(row._mapping)
    del values["claimed_at"]  # for turns alone (`store.job_turns`)
    kind = kind_named(values["kind"])

    def parsed(column: str, model: type[BaseModel] | None) -> Any:
        value = values[column]
        return None if value is None or model is None else model.model_validate(value)

    values |= {
        "state": JobState(values["state"]),
        "phase": JobPhase(values["phase"]),
        "request": parsed("request", kind.request),
        "resolved": parsed("resolved", kind.resolved),
        "result": parsed("result", kind.result),
        "report": parsed("report", kind.report),
        "error": parsed("error", JobError),
        "progress": parsed("progress", JobProgress),
    }
    return Job(**values, inputs=inputs, devices=devices)


def move(connection: Connection, id: str, how: Move, *details: str, **values: Any) -> tuple[Job | None, bool]:
    """Move the job if it is in a source state of the move. Returns the job as it is then, and whether it was moved."""
    if how.phase is not None:
        values["phase"] = how.phase
    row = connection.execute(
        update(jobs)
        .where(jobs.c.id == id, jobs.c.state.in_(how.sources))
        .values(state=how.target, **values)
        .returning(jobs)
    ).one_or_none()
    if row is None:
        return get(connection, id), False
    if how.target not in ON_A_DEVICE and not how.target.is_final:
        release(connection, id)
        row = connection.execute(select(jobs).where(jobs.c.id == id)).one()
    job = read_one(connection, row)
    add_event(connection, job, message_event(how.text.format(*details), level=how.level))
    if how.target.is_final:
        tell_end(connection, job)
    return job, True


def release(connection: Connection, id: str) -> None:
    """Free the devices that the job holds, and add the time for which it had GPUs to what its project has used."""
    settle_devices(connection, id, time.time(), go_on_from=None)
    connection.execute(delete(job_devices).where(job_devices.c.job_id == id))


def earlier(
    connection: Connection, idempotency_key: str | None, fingerprint: str, repeat_seconds: float
) -> Job | None:
    """The job that the same request created before: by its key, or else one with the same fingerprint that is at most
    `repeat_seconds` old and was neither cancelled nor failed."""
    if idempotency_key is not None:
        query = select(jobs).where(jobs.c.idempotency_key == idempotency_key)
    else:
        query = (
            select(jobs)
            .where(jobs.c.fingerprint == fingerprint, jobs.c.idempotency_key.is_(None))
            .where(jobs.c.created_at > time.time() - repeat_seconds)
            .where(jobs.c.state.not_in([JobState.CANCELLED, JobState.FAILED]))
            .order_by(jobs.c.seq.desc())
            .limit(1)
        )
    row = connection.execute(query).one_or_none()
    return read_one(connection, row) if row else None


def await_check(
    connection: Connection, id: str, *, result: dict[str, Any], report: dict[str, Any] | None = None
) -> bool:
    """Move the job to the phase `check`, before its products are listed; the check then ends the job (`succeed`,
    `fail`). False where it was cancelled before, or has products already. Where `report` is not given, what was stored
    before is kept."""
    measured = {} if report is None else {"report": report}
    row = connection.execute(
        update(jobs)
        .where(jobs.c.id == id, jobs.c.state.in_(ON_A_DEVICE))
        .where(~exists().where(models.c.job_id == id))
        .values(phase=JobPhase.CHECK, result=result, **measured)
        .returning(jobs)
    ).one_or_none()
    if row is None:
        return False
    text = "The adapter is made; checking it in the engine before it is listed"
    add_event(connection, read_one(connection, row), message_event(text))
    return True


def succeed(
    connection: Connection,
    id: str,
    *,
    model: str | None = None,
    result: dict[str, Any] | None = None,
    report: dict[str, Any] | None = None,
) -> bool:
    """End the job with success, in the transaction that lists its product, if it has one; False where it was cancelled
    before.

    Where `result` or `report` is not given, what was stored before a check is kept.
    """
    found = get(connection, id, lock=True)
    if found is None or found.state not in ON_A_DEVICE:
        return False
    stored = as_json(found.result) if found.result else {}
    values: dict[str, Any] = {
        "result": {**stored, **(result or {}), "model": model},
        "finished_at": time.time(),
    }
    if report is not None:
        values["report"] = report
    if model is not None:
        add_event(connection, found, message_event(f"New {kind_named(found.kind).product} created: {model}"))
    return move(connection, id, SUCCEEDED, **values)[1]


def made(
    connection: Connection,
    id: str,
    *,
    model: str,
    result: dict[str, Any] | None = None,
    report: dict[str, Any] | None = None,
) -> bool:
    """The product of a job is listed, and was checked: end the job with success or, where it has asked for that, have
    the product evaluated first. False where it was cancelled before, or is being evaluated already."""
    found = get(connection, id, lock=True)
    if found is None or found.state not in ON_A_DEVICE or found.phase is JobPhase.EVALUATE:
        return False
    if not kind_named(found.kind).is_evaluated(found.request):
        return succeed(connection, id, model=model, result=result, report=report)
    stored = as_json(found.result) if found.result else {}
    values: dict[str, Any] = {"phase": JobPhase.EVALUATE, "result": {**stored, **(result or {})}}
    connection.execute(update(jobs).where(jobs.c.id == id).values(**values))
    add_event(connection, found, message_event(f"{model} is made; evaluating it"))
    return True


def cancel(connection: Connection, id: str, *, beside: Collection[str] = ()) -> tuple[Job | None, bool]:
    """Cancel an unfinished job, with the evaluations of its products, and of its base where no other job may use them:
    none but those `beside` it, which are cancelled too. Products that were not checked yet are no longer listed.
    Returns the job as it is then, and whether it was moved."""
    job, moved = move(connection, id, CANCELLED, finished_at=time.time())
    if moved and job is not None:
        unlist_unchecked(connection, id)
        needless = [OF_PRODUCTS, *(() if _others_evaluate(connection, job, beside) else (OF_BASE,))]
        for key in needless:
            of_job = jobs.c.idempotency_key.startswith(f"{id}:{key}", autoescape=True)
            for one in connection.scalars(select(jobs.c.id).where(of_job)).all():
                move(connection, one, CANCELLED, finished_at=time.time())
    return job, moved


def _others_evaluate(connection: Connection, job: Job, without: Collection[str]) -> bool:
    """Whether another unfinished job of the project on the same base asks for evaluations, and so may use those of the
    base."""
    alike = (jobs.c.kind == job.kind, jobs.c.base == job.base, jobs.c.project == job.project)
    others = select(jobs).where(*alike, jobs.c.state.in_(UNFINISHED), jobs.c.id.not_in([job.id, *without]))
    found = read(connection, connection.execute(others).all())
    return any(kind_named(one.kind).is_evaluated(one.request) for one in found)


def fail(
    connection: Connection, id: str, error: JobError, *, report: dict[str, Any] | None = None
) -> Job | None:
    """End the job with an error, unless it has ended. Returns the job as it is then."""
    measured = {} if report is None else {"report": report}
    return move(
        connection, id, FAILED, error.message, error=as_json(error), finished_at=time.time(), **measured
    )[0]


def unlist_unchecked(connection: Connection, id: str) -> None:
    """Delete the rows of the job's products that no check has judged yet."""
    unchecked = (models.c.job_id == id, models.c.state == ModelState.CHECKING)
    names = connection.scalars(delete(models).where(*unchecked).returning(models.c.name)).all()
    connection.execute(delete(checkpoints).where(checkpoints.c.model.in_(names)))


def message_event(text: str, *, level: str = "info") -> Event:
    return {"level": level, "type": "message", "message": text, "data": None}


def add_event(connection: Connection, job: Job, event: Event) -> None:
    """Store an event, in the transaction of the change that it describes."""
    add_events(connection, job.id, job.kind, [event])


def add_events(connection: Connection, id: str, kind: str, events: Iterable[Event]) -> None:
    prefix = kind_named(kind).event_prefix
    for event in events:
        row = {"id": new_id(prefix), "job_id": id, "created_at": time.time(), "data": None, **event}
        connection.execute(insert(job_events).values(**row))
