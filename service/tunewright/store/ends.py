"""Jobs that a user has asked to end with what they have: their product is what is done until then."""

from __future__ import annotations

import time
from collections.abc import Collection

from sqlalchemy import insert, select

from tunewright.errors import InvalidRequest
from tunewright.store import job_rows
from tunewright.store.database import Database
from tunewright.store.inputs import INPUTS
from tunewright.store.records import Job
from tunewright.store.states import JobState
from tunewright.store.tables import job_ends

_NOT_STARTED = (JobState.VALIDATING_FILES, JobState.QUEUED)


class EndStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    def ask(self, id: str) -> Job | None:
        """Ask a job to end with what it has; one that has never started is cancelled at once. Repeated, it changes
        nothing. None where there is no such job. Raises InvalidRequest where it has ended otherwise."""
        with self._database.begin(alone=INPUTS) as connection:
            job = job_rows.get(connection, id, lock=True)
            if job is None or job.state is JobState.CANCELLED:
                return job
            if job.state in _NOT_STARTED and job.started_at is None:
                return job_rows.move(connection, id, job_rows.CANCELLED, finished_at=time.time())[0]
            at = connection.scalar(select(job_ends.c.at).where(job_ends.c.job_id == id))
            if at is not None:
                return job
            if job.state.is_final:
                raise InvalidRequest(
                    f"Job {id} has already ended ({job.state.value}). Only unfinished jobs can be cancelled.",
                    code="job_not_cancellable",
                )
            connection.execute(insert(job_ends).values(job_id=id, at=time.time()))
            text = "Asked to end with what is done"
            job_rows.add_event(connection, job, job_rows.message_event(text, level="warn"))
            return job

    def asked_at(self, id: str) -> float | None:
        """When the job was asked to end (Unix seconds); None where it was not."""
        return self.all_asked_at([id]).get(id)

    def all_asked_at(self, ids: Collection[str]) -> dict[str, float]:
        """The same for several: those that were asked."""
        query = select(job_ends.c.job_id, job_ends.c.at).where(job_ends.c.job_id.in_(ids))
        with self._database.read() as connection:
            return {row.job_id: row.at for row in connection.execute(query)}
