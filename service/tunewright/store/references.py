"""The files, artifacts and job folders that a SQLite database of any revision refers to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, func, inspect, literal_column, select

from tunewright.store.sqlite_file import reading
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


def references(path: Path) -> References:
    """What the database file at `path` refers to. Raises DatabaseUnusable."""
    with reading(path) as connection:
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


def has_ended(path: Path, job_id: str) -> bool:
    """Whether the job has ended (or is unknown) in the database file at `path`, which other processes may write to."""
    with reading(path) as connection:
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
