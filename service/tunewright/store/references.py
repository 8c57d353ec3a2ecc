"""The files, artifacts and job folders that a database refers to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, func, inspect, literal_column, select

from tunewright.store.copies import reading_database
from tunewright.store.states import JobState
from tunewright.store.tables import files, job_inputs, jobs, models


@dataclass(frozen=True)
class ListedFile:
    id: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class References:
    """What one state of the database refers to; lists are oldest first."""

    files: list[ListedFile]
    artifacts: dict[str, int]
    """Sizes in bytes by hash, of the weights of models and of those that unfinished jobs start from."""
    unfinished: list[str]
    """Ids of jobs that have not ended, so that their folders are needed."""
    finished: list[str]
    """Ids of jobs that have ended."""


def references(url: str) -> References:
    """What a database refers to; one of SQLite may be of any revision. Raises DatabaseUnusable."""
    with reading_database(url) as connection:
        artifacts = {
            sha256: int(size)
            for sha256, size in connection.execute(
                select(models.c.sha256, func.max(models.c.bytes))
                .group_by(models.c.sha256)
                .order_by(func.min(models.c.seq))
            )
        }
        for sha256 in connection.scalars(_started_from(connection)):
            artifacts.setdefault(sha256, 0)
        listed = select(files.c.id, files.c.bytes, files.c.sha256).order_by(files.c.seq)
        return References(
            files=[ListedFile(*row) for row in connection.execute(listed)],
            artifacts=artifacts,
            unfinished=list(connection.scalars(select(jobs.c.id).where(~_IS_OVER).order_by(jobs.c.seq))),
            finished=list(connection.scalars(select(jobs.c.id).where(_IS_OVER).order_by(jobs.c.seq))),
        )


def has_ended(url: str, job_id: str) -> bool:
    """Whether the job has ended (or is unknown) in a database that other processes may write to."""
    with reading_database(url) as connection:
        unfinished = connection.scalar(select(jobs.c.id).where(jobs.c.id == job_id, ~_IS_OVER))
    return unfinished is None


_IS_OVER = jobs.c.state.in_([state for state in JobState if state.is_final])


def _started_from(connection: Connection) -> Select[Any]:
    """Hashes of the weights that unfinished jobs start from. Before revision 0006 they were a column of `jobs`."""
    if inspect(connection).has_table(job_inputs.name):
        return (
            select(job_inputs.c.sha256)
            .join(jobs, jobs.c.id == job_inputs.c.job_id)
            .where(job_inputs.c.sha256.is_not(None), ~_IS_OVER)
        )
    parent: ColumnElement[str] = literal_column("jobs.parent_sha256")
    return select(parent).select_from(jobs).where(parent.is_not(None), ~_IS_OVER)
