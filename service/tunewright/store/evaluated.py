"""Jobs whose products are evaluated before they end: the evaluations, what they have found, and the end of the job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import BaseModel
from sqlalchemy import select, update

from tunewright.store import job_rows
from tunewright.store.database import Database
from tunewright.store.inputs import INPUTS, require_inputs
from tunewright.store.job_rows import Event
from tunewright.store.records import Job, NewJob, TunedModel
from tunewright.store.states import Desired
from tunewright.store.tables import checkpoints, jobs, models


class EvaluatedStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, job_id: str, key: str) -> Job | None:
        """The evaluation that the job has asked for under this key; None where there is none, or another one like it is
        used."""
        with self._database.read() as connection:
            row = connection.execute(
                select(jobs).where(jobs.c.idempotency_key == f"{job_id}:{key}")
            ).one_or_none()
            return job_rows.read_one(connection, row) if row else None

    def ensure(self, new: NewJob, job_id: str) -> Job | None:
        """`job_rows.ensure`; None where the job has ended meanwhile. Raises InvalidRequest or NotFound where one of the
        inputs does not exist."""
        with self._database.begin(alone=INPUTS) as connection:
            job = job_rows.get(connection, job_id, lock=True)
            if job is None or job.state.is_final:
                return None
            require_inputs(connection, new)
            return job_rows.ensure(connection, new, job_id)

    def products(self, job_id: str) -> Sequence[TunedModel]:
        """What the job has made: its final model, then its checkpoints in the order of their steps."""
        query = select(models).where(models.c.job_id == job_id)
        with self._database.read() as connection:
            found = [TunedModel(**row._mapping) for row in connection.execute(query)]
        return sorted(found, key=lambda model: model.checkpoint_step or 0)

    def record(
        self, job_id: str, report: BaseModel, event: Event, metrics: Mapping[str, dict[str, float]]
    ) -> bool:
        """Store what was found so far, tell it, and add `metrics` to those of checkpoints, by their models' names.
        False where the job has ended meanwhile."""
        with self._database.begin() as connection:
            job = job_rows.get(connection, job_id, lock=True)
            if job is None or job.state.is_final:
                return False
            connection.execute(
                update(jobs).where(jobs.c.id == job_id).values(report=job_rows.as_json(report))
            )
            for model, values in metrics.items():
                of_model = (checkpoints.c.job_id == job_id, checkpoints.c.model == model)
                known = connection.scalar(select(checkpoints.c.metrics).where(*of_model))
                if known is not None:
                    connection.execute(
                        update(checkpoints).where(*of_model).values(metrics={**known, **values})
                    )
            job_rows.add_event(connection, job, event)
            return True

    def end(self, job_id: str, model: str, report: BaseModel, events: Sequence[Event]) -> bool:
        """End the job with success: `model` is its model, and is loaded; its other products are not, unless they are
        pinned. False where the job has ended meanwhile."""
        with self._database.begin() as connection:
            job = job_rows.get(connection, job_id, lock=True)
            if job is None or job.state.is_final:
                return False
            for event in events:
                job_rows.add_event(connection, job, event)
            others = (models.c.job_id == job_id, models.c.name != model, ~models.c.pinned)
            connection.execute(update(models).where(*others).values(desired=Desired.UNLOADED))
            connection.execute(update(models).where(models.c.name == model).values(desired=Desired.LOADED))
            return job_rows.succeed(connection, job_id, model=model, report=job_rows.as_json(report))
