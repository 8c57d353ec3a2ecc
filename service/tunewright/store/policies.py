"""Policies: the weights with which running jobs of the method reinforcement sample from the engines of their bases.

A job has one at a time, an adapter in its own folder, which its next one replaces. It is no row of `models`: nothing
lists it, no client can name it, and it is wanted only while the job's process runs.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, delete, exists, insert, select, update

from tunewright.store.database import Database
from tunewright.store.records import TunedModel
from tunewright.store.states import Desired, JobPhase, JobState, ModelKind, ModelMethod, ModelState, Source
from tunewright.store.tables import jobs, policies

_PREFIX = "policy of "
_SAMPLES: ColumnElement[bool] = jobs.c.state.in_([JobState.RUNNING, JobState.PAUSING]) & (
    jobs.c.phase == JobPhase.RUN
)
"""Whether a job's process runs, or is started again."""


class Policy(TunedModel):
    """As an adapter, for whoever loads it and sends requests to it. Its files are in the folder of the job `job_id`."""


def policy_name(job_id: str) -> str:
    """The name of a job's policy within the service."""
    return f"{_PREFIX}{job_id}"


class PolicyStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, job_id: str, sha256: str, base_fingerprint: str) -> bool:
        """Make these weights the job's policy; False where the job's process does not run any more."""
        values = {"sha256": sha256, "base_fingerprint": base_fingerprint, "at": time.time()}
        with self._database.begin() as connection:
            running = select(jobs.c.id).where(jobs.c.id == job_id, _SAMPLES).with_for_update()
            if connection.scalar(running) is None:
                return False
            changed = update(policies).where(policies.c.job_id == job_id).values(**values)
            if not connection.execute(changed).rowcount:
                connection.execute(insert(policies).values(job_id=job_id, **values))
            connection.execute(
                delete(policies).where(~exists().where(jobs.c.id == policies.c.job_id, _SAMPLES))
            )
        return True

    def drop(self, sha256: str) -> None:
        """These weights are no policy any more, since their engine needed the room; who samples puts them again."""
        with self._database.begin() as connection:
            connection.execute(delete(policies).where(policies.c.sha256 == sha256))

    def get(self, name: str) -> Policy | None:
        """By `policy_name`; None where it has none, or its process does not run."""
        with self._database.read() as connection:
            return policies_named(connection, [name]).get(name)

    def wanted(self, base: str) -> dict[str, Policy]:
        """The policies that the engine of the base should hold, by hash."""
        with self._database.read() as connection:
            found = connection.execute(_running().where(jobs.c.base == base)).all()
        return {row.sha256: _policy(row) for row in found}


def policies_named(connection: Connection, names: Collection[str]) -> dict[str, Policy]:
    """Those among the names that are a policy's."""
    ids = [name.removeprefix(_PREFIX) for name in names if name.startswith(_PREFIX)]
    if not ids:
        return {}
    found = connection.execute(_running().where(jobs.c.id.in_(ids))).all()
    return {policy_name(row.job_id): _policy(row) for row in found}


def _running() -> Select[Any]:
    return (
        select(policies, jobs.c.base, jobs.c.project)
        .join(jobs, jobs.c.id == policies.c.job_id)
        .where(_SAMPLES)
    )


def _policy(row: Row[Any]) -> Policy:
    return Policy(
        seq=0,
        id=row.job_id,
        name=policy_name(row.job_id),
        kind=ModelKind.ADAPTER,
        sha256=row.sha256,
        base=row.base,
        base_fingerprint=row.base_fingerprint,
        job_id=row.job_id,
        checkpoint_step=None,
        method=ModelMethod.LORA,
        rank=None,
        alpha=None,
        target_modules=None,
        chat_template=None,
        bytes=0,
        created_at=row.at,
        desired=Desired.LOADED,
        source=Source.JOB,
        lineage=None,
        state=ModelState.READY,
        parity=None,
        pinned=False,
        last_used_at=None,
        project=row.project,
    )
