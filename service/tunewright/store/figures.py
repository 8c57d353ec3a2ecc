"""What the database tells of the state of the service, in figures: jobs, adapters, aliases, checks and gates. Reads
only, in one consistent view."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, case, func, select, true

from tunewright.registry.aliases import Alias, label_of
from tunewright.store.alias_rows import all_aliases
from tunewright.store.database import Database
from tunewright.store.records import Engine
from tunewright.store.states import JobState
from tunewright.store.tables import (
    alias_versions,
    engines,
    files,
    jobs,
    models,
    residency,
    webhook_deliveries,
)

_RUNNING = (JobState.RUNNING, JobState.PAUSING)
CHANGES = ("set", "rollback", "guard")
"""What makes a version of an alias; its deletion counts as set."""
GUARD = "guard"
"""Who rolls an alias back by itself (`api.gateway.guard`)."""


@dataclass(frozen=True)
class RunningJob:
    id: str
    kind: str
    base: str
    started_at: float | None
    attempt: int
    progress: Mapping[str, Any]
    """The data of its newest step."""


@dataclass(frozen=True)
class Figures:
    """Counts have their labels as keys."""

    jobs: Mapping[tuple[str, str], int]
    """By kind and state."""
    failed: Mapping[tuple[str, str], int]
    """By kind and the error's code."""
    oldest_queued: Mapping[str, float]
    """Unix seconds at which the oldest queued job was created, by kind."""
    running: Sequence[RunningJob]
    engines: Sequence[Engine]
    models: Mapping[tuple[str, str, str], int]
    """By kind, base and state."""
    names: frozenset[str]
    """Of all models, bases and aliases."""
    parity: Mapping[str, int]
    """Adapters, by the verdict of their last check."""
    resident: Mapping[tuple[str, str], int]
    """Adapters in the engines' present runs, by engine and state."""
    aliases: Sequence[Alias]
    changes: Mapping[tuple[str, str], int]
    """Versions, by the alias's label and what made them: set (which a deletion is too), rollback, guard."""
    alias_gates: Mapping[bool, int]
    """Versions whose new targets were judged, by whether they were forced."""
    export_gates: Mapping[tuple[bool, bool], int]
    """Exports that were measured, by whether the gate was passed, and whether they were published all the same."""
    files: tuple[int, int]
    """Number, and bytes."""
    deliveries: Mapping[str, int]
    """Of webhooks, by state."""


class FigureStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    def read(self) -> Figures:
        with self._database.read() as connection:
            return Figures(
                jobs=_counted(connection, jobs.c.kind, jobs.c.state),
                failed=_counted(
                    connection, jobs.c.kind, jobs.c.error["code"].as_string(),
                    where=jobs.c.state == JobState.FAILED,
                ),
                oldest_queued=_oldest_queued(connection),
                running=_running(connection),
                engines=[
                    Engine(**row._mapping)
                    for row in connection.execute(select(engines).order_by(engines.c.name))
                ],
                models=_counted(connection, models.c.kind, models.c.base, models.c.state),
                names=_names(connection),
                parity=_counted_one(
                    connection, models.c.parity["verdict"].as_string(), where=models.c.parity.is_not(None)
                ),
                resident=_resident(connection),
                aliases=all_aliases(connection),
                changes=_changes(connection),
                alias_gates=_counted_one(
                    connection, alias_versions.c.gate["forced"].as_boolean(),
                    where=alias_versions.c.gate.is_not(None),
                ),
                export_gates=_counted(
                    connection, jobs.c.report["gate"]["passed"].as_boolean(),
                    jobs.c.report["gate"]["forced"].as_boolean(), where=jobs.c.kind == "export",
                ),
                files=_files(connection),
                deliveries=_counted_one(connection, webhook_deliveries.c.state, where=true()),
            )  # fmt: skip


def _counted(connection: Connection, *values: Any, where: Any = None) -> dict[Any, int]:
    """The number of rows for each combination of values, without those in which one is null."""
    # in a subquery, since PostgreSQL takes two equal expressions with parameters for different ones
    named = [value.label(f"value_{number}") for number, value in enumerate(values)]
    found = select(*named).where(true() if where is None else where).subquery()
    rows = connection.execute(select(*found.c, func.count()).group_by(*found.c))
    return {tuple(row[:-1]): row[-1] for row in rows if None not in row[:-1]}


def _counted_one(connection: Connection, column: Any, where: Any) -> dict[Any, int]:
    return {key[0]: number for key, number in _counted(connection, column, where=where).items()}


def _oldest_queued(connection: Connection) -> dict[str, float]:
    query = (
        select(jobs.c.kind, func.min(jobs.c.created_at))
        .where(jobs.c.state == JobState.QUEUED)
        .group_by(jobs.c.kind)
    )
    return {row[0]: row[1] for row in connection.execute(query)}


def _running(connection: Connection) -> list[RunningJob]:
    query = (
        select(jobs.c.id, jobs.c.kind, jobs.c.base, jobs.c.started_at, jobs.c.attempt, jobs.c.progress)
        .where(jobs.c.state.in_(_RUNNING))
        .order_by(jobs.c.seq)
    )
    return [RunningJob(*row[:5], row[5] or {}) for row in connection.execute(query)]


def _names(connection: Connection) -> frozenset[str]:
    found = {alias.label for alias in all_aliases(connection)}
    for column in (models.c.name, engines.c.name):
        found.update(connection.scalars(select(column)))
    return frozenset(found)


def _resident(connection: Connection) -> dict[tuple[str, str], int]:
    query = (
        select(residency.c.engine, residency.c.state, func.count())
        .join(engines, (engines.c.name == residency.c.engine) & (engines.c.run == residency.c.run))
        .group_by(residency.c.engine, residency.c.state)
    )
    return {(row[0], row[1]): row[2] for row in connection.execute(query)}


def _changes(connection: Connection) -> dict[tuple[str, str], int]:
    is_rollback = alias_versions.c.rolled_back_to.is_not(None)
    what = case(
        (is_rollback & (alias_versions.c.who == GUARD), "guard"), (is_rollback, "rollback"), else_="set"
    )
    counts = _counted(connection, alias_versions.c.project, alias_versions.c.alias, what)
    return {(label_of(name, project), change): number for (project, name, change), number in counts.items()}


def _files(connection: Connection) -> tuple[int, int]:
    row = connection.execute(select(func.count(), func.coalesce(func.sum(files.c.bytes), 0))).one()
    return int(row[0]), int(row[1])
