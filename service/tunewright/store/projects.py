"""Projects: the tenants of the service. What belongs to one is not found by the keys of another (`store.confined`)."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Self

from sqlalchemy import Connection, Row, insert, null, select, update

from tunewright.errors import InvalidRequest
from tunewright.ids import new_id
from tunewright.store.bases import bases_of, set_bases
from tunewright.store.database import Database
from tunewright.store.limits import NO_LIMITS, Limits
from tunewright.store.paging import page
from tunewright.store.tables import DEFAULT_PROJECT, projects


@dataclass(frozen=True)
class Project:
    """Times are Unix seconds."""

    seq: int
    id: str
    name: str
    created_at: float
    archived_at: float | None
    """Since then its keys are refused."""
    limits: Limits
    bases: tuple[str, ...] | None = None
    """The bases and deployables that it may use; None: all."""

    @classmethod
    def of(cls, row: Row[Any], bases: Collection[str] | None) -> Self:
        limits = Limits.of(row.limits)
        return cls(**{**row._mapping, "limits": limits, "bases": tuple(bases) if bases else None})


class ProjectStore:
    """Used by the operator alone: a project knows of no other."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, name: str, limits: Limits = NO_LIMITS, bases: Collection[str] | None = None) -> Project:
        values = {
            "id": new_id("proj"), "name": name, "created_at": time.time(), "limits": limits.stored() or null(),
        }  # fmt: skip
        with self._database.begin() as connection:
            row = connection.execute(insert(projects).values(**values).returning(projects)).one()
            set_bases(connection, row.id, bases)
            return _read(connection, row)

    def get(self, id: str) -> Project | None:
        with self._database.read() as connection:
            row = connection.execute(select(projects).where(projects.c.id == id)).one_or_none()
            return _read(connection, row) if row else None

    def list(
        self, *, archived: bool = False, after: str | None = None, limit: int = 10**6
    ) -> tuple[Sequence[Project], bool]:
        """A page of projects, newest first, and whether there are more; with `archived` also those."""
        query = select(projects)
        if not archived:
            query = query.where(projects.c.archived_at.is_(None))
        rows, more = page(self._database, query, projects, after=after, limit=limit)
        with self._database.read() as connection:
            bases = bases_of(connection, [row.id for row in rows])
        return [Project.of(row, bases.get(row.id)) for row in rows], more

    def names(self, ids: Collection[str]) -> dict[str, str]:
        """The names of these projects, by their ids."""
        query = select(projects.c.id, projects.c.name).where(projects.c.id.in_(ids))
        with self._database.read() as connection:
            return {row.id: row.name for row in connection.execute(query)}

    def limit_bases(self, id: str, bases: Collection[str] | None) -> None:
        """Let it use these bases and deployables alone; None: all. What it has made of others stays."""
        with self._database.begin() as connection:
            set_bases(connection, id, bases)

    def modify(self, id: str, *, name: str | None = None, limits: Limits | None = None) -> Project | None:
        """Give it another name, or other limits in the place of all that it has; None leaves them."""
        changed: dict[str, object] = {} if name is None else {"name": name}
        if limits is not None:
            changed |= {"limits": limits.stored() or null()}
        return self._change(id, **changed) if changed else self.get(id)

    def archive(self, id: str) -> Project | None:
        """Refuse the project's keys from now on; what belongs to it stays. Raises InvalidRequest for `default`."""
        if id == DEFAULT_PROJECT:
            raise InvalidRequest(
                f"The project {DEFAULT_PROJECT} has what belongs to no other, and cannot be archived.",
                param="project_id",
            )
        found = self.get(id)
        if found is None or found.archived_at is not None:
            return found
        return self._change(id, archived_at=time.time())

    def _change(self, id: str, **values: object) -> Project | None:
        changed = update(projects).where(projects.c.id == id).values(**values).returning(projects)
        with self._database.begin() as connection:
            row = connection.execute(changed).one_or_none()
            return _read(connection, row) if row else None


def _read(connection: Connection, row: Row[Any]) -> Project:
    return Project.of(row, bases_of(connection, [row.id]).get(row.id))
