"""The parity gate's side of the models: which of them wait to be checked, and what became of it.

A job whose adapter waits goes on running, without a device; the verdict ends it, in the same transaction.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import and_, or_, select, update

from tunewright.store.database import Database
from tunewright.store.inputs import UNFINISHED
from tunewright.store.job_rows import Event, add_event, fail, succeed
from tunewright.store.records import Job, TunedModel
from tunewright.store.states import Desired, ModelState
from tunewright.store.tables import jobs, models

_ASKED = models.c.parity["asked_at"].as_float().is_not(None)


@dataclass(frozen=True)
class Waiting:
    """An adapter that is to be checked, and the job that made it."""

    model: TunedModel
    job: Job | None

    @property
    def is_asked(self) -> bool:
        """Whether somebody asked for it to be checked again."""
        return "asked_at" in (self.model.parity or {})


class CheckStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    def waiting(self) -> Sequence[Waiting]:
        """Adapters to check now, oldest first: those that are wanted loaded or that a job waits for, and those that
        somebody asked about. (Others are checked when they are to be loaded.)"""
        awaited = and_(models.c.checkpoint_step.is_(None), UNFINISHED)
        query = (
            select(models, *(column.label(f"of_job_{column.name}") for column in jobs.c))
            .outerjoin(jobs, jobs.c.id == models.c.job_id)
            .where(models.c.kind == "adapter")
            .where(
                or_(
                    and_(
                        models.c.state == ModelState.CHECKING,
                        or_(models.c.desired == Desired.LOADED, awaited),
                    ),
                    _ASKED,
                )
            )
            .order_by(models.c.seq)
        )
        with self._database.read() as connection:
            rows = [row._mapping for row in connection.execute(query)]
        return [
            Waiting(
                TunedModel(**{column.name: row[column.name] for column in models.c}),
                Job(**{column.name: row[f"of_job_{column.name}"] for column in jobs.c})
                if row["of_job_seq"]
                else None,
            )
            for row in rows
        ]

    def ask(self, id: str) -> None:
        """Have it checked again. One that is served is served meanwhile."""
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

    def record(
        self, id: str, parity: dict[str, Any], *, failure: tuple[str, str] | None, event: Event
    ) -> None:
        """The verdict: ready, or quarantined where there is a `failure` (code and message, for the job's error).

        Nothing where nobody waits for one any more: it was deleted meanwhile.
        """
        with self._database.begin() as connection:
            row = connection.execute(
                update(models)
                .where(models.c.id == id, or_(models.c.state == ModelState.CHECKING, _ASKED))
                .values(state=ModelState.QUARANTINED if failure else ModelState.READY, parity=parity)
                .returning(models.c.job_id, models.c.name, models.c.checkpoint_step)
            ).one_or_none()
            if row is None or row.job_id is None:
                return
            if connection.scalar(select(jobs.c.id).where(jobs.c.id == row.job_id)) is None:
                return
            add_event(connection, row.job_id, event)
            if row.checkpoint_step is not None:
                return
            if failure:
                fail(connection, row.job_id, code=failure[0], message=failure[1])
            else:
                succeed(connection, row.job_id, model=row.name)

    def force(self, id: str, *, who: str | None) -> None:
        """Serve an adapter all the same if it is quarantined, with the fact on record."""
        with self._database.begin() as connection:
            row = connection.execute(
                select(models.c.state, models.c.parity).where(models.c.id == id)
            ).one_or_none()
            if row is not None and row.state == ModelState.QUARANTINED:
                parity = {**(row.parity or {}), "forced": {"at": time.time(), "who": who}}
                connection.execute(
                    update(models).where(models.c.id == id).values(state=ModelState.READY, parity=parity)
                )
