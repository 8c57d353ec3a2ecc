"""Which queued job is the next to be claimed: projects take turns, and within a project it is the oldest, behind the
evaluations for which one of its jobs waits: these would else wait for all that were queued while that job ran.

A project's turn is the later, the later one of its jobs was started; one that has had none comes first. So of `n`
projects with queued jobs each starts one of any `n` in a row, however many another one has queued (decision 0059).
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from sqlalchemy import ColumnElement, Connection, FromClause, and_, case, exists, func, select

from tunewright.store.limits import Limits
from tunewright.store.states import JobPhase, JobState
from tunewright.store.tables import jobs, projects

ORDER_SECONDS = 60.0
"""Seconds after the creation of a job in which no later one of its project starts before its files are read."""
RUNNING = (JobState.RUNNING, JobState.PAUSING)


def next_queued(connection: Connection, bases: Sequence[str], kinds: Sequence[str] | None) -> str | None:
    """The id of the job on one of the bases, and of one of the kinds, that has the next turn; its row is locked.

    A job waits for older ones of its project whose files are still read, at most `ORDER_SECONDS` for each, and a
    project that has as many jobs running as it may have gets no turn.
    """
    suits: list[ColumnElement[bool]] = [jobs.c.base.in_(bases)]
    older = jobs.alias("older")
    is_overtaking = exists().where(
        older.c.state == JobState.VALIDATING_FILES,
        older.c.after.is_(None),  # others may wait for long
        older.c.base.in_(bases),
        *([] if kinds is None else [older.c.kind.in_(kinds)]),
        older.c.project == jobs.c.project,
        older.c.seq < jobs.c.seq,
        older.c.created_at > time.time() - ORDER_SECONDS,
    )
    if kinds is not None:
        suits.append(jobs.c.kind.in_(kinds))
    turns = (
        select(jobs.c.project, func.max(jobs.c.claimed_at).label("last"))
        .where(*suits, jobs.c.claimed_at.is_not(None))
        .group_by(jobs.c.project)
        .subquery("turns")
    )
    asking = jobs.alias("asking")
    is_waited_for = exists().where(
        asking.c.id == jobs.c.request["job"].as_string(), _waits_for_evaluations(asking)
    )
    query = (
        select(jobs.c.id)
        .outerjoin(turns, turns.c.project == jobs.c.project)
        .where(jobs.c.state == JobState.QUEUED, *suits, ~is_overtaking)
        .order_by(func.coalesce(turns.c.last, 0.0), case((is_waited_for, 0), else_=1), jobs.c.seq)
        .limit(1)
        .with_for_update(skip_locked=True, of=jobs)
    )
    if full := _at_their_limit(connection):
        query = query.where(jobs.c.project.not_in(full))
    found: str | None = connection.scalar(query)
    return found


def _waits_for_evaluations(rows: FromClause) -> ColumnElement[bool]:
    """Whether a job, a row of `jobs` or of an alias of it, has done its own work."""
    return and_(rows.c.state == JobState.RUNNING, rows.c.phase == JobPhase.EVALUATE)


def _at_their_limit(connection: Connection) -> list[str]:
    """The projects that have as many jobs running as they may have. One that waits for its evaluations does not count:
    they need its place."""
    limited = select(projects.c.id, projects.c.limits).where(projects.c.limits.is_not(None))
    most = {row.id: Limits.of(row.limits).running_jobs for row in connection.execute(limited)}
    most = {project: number for project, number in most.items() if number is not None}
    if not most:
        return []
    count = (
        select(jobs.c.project, func.count())
        .where(jobs.c.project.in_(most), jobs.c.state.in_(RUNNING), ~_waits_for_evaluations(jobs))
        .group_by(jobs.c.project)
    )
    running = {row[0]: row[1] for row in connection.execute(count)}
    return [project for project, number in most.items() if running.get(project, 0) >= (number or 0)]
