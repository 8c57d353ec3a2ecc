"""The adapters that wait for their parity check, and the verdicts.

A job whose adapter waits is in the phase `check`; the verdict ends the job, in the same transaction.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import and_, or_, select, update

from tunewright.jobs.kinds import JobError
from tunewright.store import job_rows
from tunewright.store.database import Database
from tunewright.store.inputs import UNFINISHED
from tunewright.store.job_rows import Event
from tunewright.store.outbox import ADAPTER_QUARANTINED, tell
from tunewright.store.records import Job, TunedModel
from tunewright.store.states import Desired, ModelKind, ModelState
from tunewright.store.tables import jobs, models

_IS_REQUESTED = models.c.parity["asked_at"].as_float().is_not(None)


@dataclass(frozen=True)
class PendingCheck:
    """An adapter that waits for its check, and the job that made it."""

    model: TunedModel
    job: Job | None

    @property
    def is_requested(self) -> bool:
        """Whether a user requested another check."""
        return "asked_at" in (self.model.parity or {})


class CheckStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    def waiting(self) -> Sequence[PendingCheck]:
        """Adapters to check now, oldest first: those that should be loaded or that a job waits for, and those for which
        a user requested a check. (Others are checked before they are loaded.)"""
        awaited = and_(models.c.checkpoint_step.is_(None), UNFINISHED)
        query = (
            select(models)
            .outerjoin(jobs, jobs.c.id == models.c.job_id)
            .where(models.c.kind == ModelKind.ADAPTER)
            .where(
                or_(
                    and_(
                        models.c.state == ModelState.CHECKING,
                        or_(models.c.desired == Desired.LOADED, awaited),
                    ),
                    _IS_REQUESTED,
                )
            )
            .order_by(models.c.seq)
        )
        with self._database.read() as connection:
            found = [TunedModel(**row._mapping) for row in connection.execute(query)]
            made_by = {one.job_id for one in found if one.job_id}
            rows = connection.execute(select(jobs).where(jobs.c.id.in_(made_by))).all() if made_by else []
            by_id = {job.id: job for job in job_rows.read(connection, rows)}
        return [PendingCheck(model, by_id.get(model.job_id or "")) for model in found]

    def verdicts(self, hashes: Collection[str]) -> dict[str, TunedModel]:
        """For adapters with these weights: the last measured model of each `content` of a check, which has the verdict
        in its `parity`."""
        query = (
            select(models)
            .where(models.c.sha256.in_(hashes), models.c.parity["content"].as_string().is_not(None))
            .order_by(models.c.parity["checked_at"].as_float())
        )
        if not hashes:
            return {}
        with self._database.read() as connection:
            found = [TunedModel(**row._mapping) for row in connection.execute(query)]
        return {model.parity["content"]: model for model in found if model.parity}

    def request(self, id: str) -> None:
        """Request another check of an adapter. One that is served stays served meanwhile."""
        with self._database.begin() as connection:
            row = connection.execute(
                select(models.c.state, models.c.parity).where(models.c.id == id)
            ).one_or_none()
            if row is None:
                return
            connection.execute(
                update(models)
                .where(models.c.id == id)
                .values(
                    desired=Desired.LOADED,
                    state=ModelState.READY if row.state == ModelState.READY else ModelState.CHECKING,
                    parity={**(row.parity or {}), "asked_at": time.time()},
                )
            )

    def record(self, id: str, parity: dict[str, Any], *, failure: JobError | None, event: Event) -> None:
        """Store the verdict: the adapter is ready, or quarantined where `failure` is given, which becomes the job's
        error.

        Does nothing where the adapter no longer waits for a check, since it was deleted meanwhile.
        """
        with self._database.begin() as connection:
            row = connection.execute(
                update(models)
                .where(models.c.id == id, or_(models.c.state == ModelState.CHECKING, _IS_REQUESTED))
                .values(state=ModelState.QUARANTINED if failure else ModelState.READY, parity=parity)
                .returning(models.c.job_id, models.c.name, models.c.checkpoint_step, models.c.project)
            ).one_or_none()
            if row is not None and failure:
                tell(connection, ADAPTER_QUARANTINED, id, row.project, model=row.name)
            if row is None or row.job_id is None:
                return
            job = job_rows.get(connection, row.job_id)
            if job is None:
                return
            job_rows.add_event(connection, job, event)
            if row.checkpoint_step is not None:
                return
            if failure:
                job_rows.fail(connection, job.id, failure)
            else:
                job_rows.made(connection, job.id, model=row.name)

    def force(self, id: str, *, who: str | None) -> None:
        """Serve an adapter although it is quarantined, and record that and the user."""
        with self._database.begin() as connection:
            row = connection.execute(
                select(models.c.state, models.c.parity).where(models.c.id == id)
            ).one_or_none()
            if row is not None and row.state == ModelState.QUARANTINED:
                parity = {**(row.parity or {}), "forced": {"at": time.time(), "who": who}}
                connection.execute(
                    update(models).where(models.c.id == id).values(state=ModelState.READY, parity=parity)
                )
