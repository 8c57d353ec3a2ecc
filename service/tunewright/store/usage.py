"""What generations and jobs use, summed up by hour (UTC): tokens by project, key and model, and seconds of GPUs.

A sum is added to, never set: what is written twice is counted twice, and what was not committed is not there.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from sqlalchemy import ColumnElement, Connection, Table, func, select, true, update
from sqlalchemy.dialects import postgresql, sqlite

from tunewright.store.database import Database
from tunewright.store.tables import device_usage, job_devices, jobs, usage

HOUR, DAY = 3600, 86_400
_GPU = "cuda:"
"""How the names of GPUs begin; other devices that jobs hold are not counted."""


UsageKind = Literal["completions", "embeddings"]
"""Completions are chats and responses too."""
UsageSource = Literal["live", "batch", "evaluation", "grader", "shadow", "synthesis", "training"]
"""Who has asked: a client, or the service for one of these; shadow is a copy of a request for an alias's shadow, and
training are the answers from which a job learns. Plain texts, since keys are hashed for each request."""


class UsageKey(NamedTuple):
    hour: int
    """Unix seconds of its beginning."""
    project: str
    api_key_id: str
    """"" for none."""
    model: str
    kind: UsageKind
    source: UsageSource


class Used(NamedTuple):
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def plus(self, other: Used) -> Used:
        return Used(
            self.requests + other.requests,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
        )

    def minus(self, other: Used) -> Used:
        return Used(
            self.requests - other.requests,
            self.input_tokens - other.input_tokens,
            self.output_tokens - other.output_tokens,
        )


@dataclass(frozen=True)
class Asked:
    """Which sums are read: from `start` until before `end` (Unix seconds, whole hours), in buckets of `width` seconds,
    for each combination of the columns `by`. None: all."""

    start: int
    end: int
    width: int
    by: Sequence[str] = ()
    projects: Collection[str] | None = None
    api_keys: Collection[str] | None = None
    models: Collection[str] | None = None
    is_batch: bool | None = None


class Sums(NamedTuple):
    """The sums of one bucket and one combination of columns."""

    bucket: int
    """Unix seconds of its beginning."""
    group: Mapping[str, Any]
    """The values of the columns `by`."""
    used: Used


class Seconds(NamedTuple):
    bucket: int
    group: Mapping[str, Any]
    seconds: float


def hour_of(at: float) -> int:
    return int(at) // HOUR * HOUR


class UsageStore:
    """On a project's connection: what that project has used."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, rows: Mapping[UsageKey, Used]) -> None:
        """Add to the sums, in one transaction."""
        with self._database.begin() as connection:
            _add(connection, usage, [{**key._asdict(), **used._asdict()} for key, used in rows.items()])

    def tokens(self, asked: Asked, kind: UsageKind | None = None) -> Sequence[Sums]:
        """The sums of one kind of generations, or of all, by bucket."""
        is_batch = (usage.c.source == "batch").label("batch")
        columns = [is_batch if name == "batch" else usage.c[name] for name in asked.by]
        bucket = (usage.c.hour - usage.c.hour % asked.width).label("bucket")
        sums = [func.sum(usage.c[name]) for name in Used._fields]
        where = [*_within(usage, asked), true() if kind is None else usage.c.kind == kind]
        if asked.api_keys is not None:
            where.append(usage.c.api_key_id.in_(asked.api_keys))
        if asked.is_batch is not None:
            where.append((usage.c.source == "batch") == asked.is_batch)
        # in a subquery, since PostgreSQL takes two equal expressions with parameters for different ones
        found = select(bucket, *columns, *(usage.c[name] for name in Used._fields)).where(*where).subquery()
        groups = [found.c.bucket, *(found.c[name] for name in asked.by)]
        sums = [func.sum(found.c[name]) for name in Used._fields]
        query = select(*groups, *sums).group_by(*groups).order_by(*groups)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        end = 1 + len(asked.by)
        return [
            Sums(row[0], dict(zip(asked.by, row[1:end], strict=True)), Used(*(int(one) for one in row[end:])))
            for row in rows
        ]

    def gpu_seconds(self, asked: Asked) -> Sequence[Seconds]:
        """The time for which jobs had GPUs, with that of the present ones until now, by bucket. `by` may have project,
        api_key_id and model."""
        where = _within(device_usage, asked)
        if asked.api_keys is not None:
            where.append(device_usage.c.api_key_id.in_(asked.api_keys))
        found: dict[tuple[int, ...], float] = defaultdict(float)
        with self._database.read() as connection:
            rows: list[Mapping[Any, Any]] = [
                row._mapping for row in connection.execute(select(device_usage).where(*where))
            ]
            rows += _running(connection, asked)
        for row in rows:
            bucket = row["hour"] // asked.width * asked.width
            found[bucket, *(row[name] for name in asked.by)] += row["seconds"]
        return [
            Seconds(key[0], dict(zip(asked.by, key[1:], strict=True)), seconds)
            for key, seconds in sorted(found.items())
        ]

    def gpu_hours(self, since: int, *, key: str | None = None) -> float:
        """The hours for which jobs have had GPUs since then (Unix seconds, a whole hour), with those of running jobs;
        `key`: of the jobs that it has created alone."""
        until = hour_of(time.time()) + HOUR
        asked = Asked(since, until, HOUR, api_keys=None if key is None else [key])
        return sum(one.seconds for one in self.gpu_seconds(asked)) / HOUR


def settle_devices(connection: Connection, job_id: str, until: float, *, go_on_from: float | None) -> None:
    """Add the time for which the job had GPUs until then (Unix seconds) to the sums, in the transaction of the caller.
    `go_on_from`: from when on its time is counted next; None: it has no devices any more."""
    held = select(job_devices.c.since).where(
        job_devices.c.job_id == job_id,
        job_devices.c.since.is_not(None),
        job_devices.c.device.startswith(_GPU),
    )
    since = connection.scalars(held).all()
    if since:
        job = connection.execute(
            select(jobs.c.project, jobs.c.api_key_id, jobs.c.base, jobs.c.kind).where(jobs.c.id == job_id)
        ).one()
        key = {
            "project": job.project, "api_key_id": job.api_key_id or "", "model": job.base, "kind": job.kind,
        }  # fmt: skip
        _add(
            connection,
            device_usage,
            [
                {**key, "hour": hour, "seconds": seconds}
                for begin in since
                for hour, seconds in _by_hour(begin, until)
            ],
        )
    if go_on_from is not None:
        connection.execute(update(job_devices).where(job_devices.c.job_id == job_id).values(since=go_on_from))


def _running(connection: Connection, asked: Asked) -> list[Mapping[Any, Any]]:
    """The same columns for the time that is not in the table yet."""
    key = func.coalesce(jobs.c.api_key_id, "").label("api_key_id")
    query = (
        select(jobs.c.project, key, jobs.c.base.label("model"), job_devices.c.since)
        .join(job_devices, job_devices.c.job_id == jobs.c.id)
        .where(job_devices.c.since.is_not(None), job_devices.c.device.startswith(_GPU))
    )
    if asked.projects is not None:
        query = query.where(jobs.c.project.in_(asked.projects))
    if asked.models is not None:
        query = query.where(jobs.c.base.in_(asked.models))
    if asked.api_keys is not None:
        query = query.where(func.coalesce(jobs.c.api_key_id, "").in_(asked.api_keys))
    return [
        {**row._mapping, "hour": hour, "seconds": seconds}
        for row in connection.execute(query)
        for hour, seconds in _by_hour(row.since, time.time())
        if asked.start <= hour < asked.end
    ]


def _by_hour(begin: float, end: float) -> Iterator[tuple[int, float]]:
    """The seconds between two times, by the hours in which they are."""
    while begin < end:
        hour = hour_of(begin)
        until = min(end, hour + HOUR)
        yield hour, until - begin
        begin = until


def _within(table: Table, asked: Asked) -> list[ColumnElement[bool]]:
    where = [table.c.hour >= asked.start, table.c.hour < asked.end]
    if asked.projects is not None:
        where.append(table.c.project.in_(asked.projects))
    if asked.models is not None:
        where.append(table.c.model.in_(asked.models))
    return where


def _add(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows, or add their sums to those that are there."""
    if not rows:
        return
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    added = insert(table)
    keys = list(table.primary_key.columns)
    sums = {
        column.name: column + added.excluded[column.name] for column in table.c if column not in set(keys)
    }
    connection.execute(
        added.on_conflict_do_update(index_elements=keys, set_=sums), [dict(row) for row in rows]
    )
