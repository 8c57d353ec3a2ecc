"""Projects: the tenants of the service. What belongs to one is not found by the keys of another (`store.confined`)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import insert, select, update

from tunewright.errors import InvalidRequest
from tunewright.ids import new_id
from tunewright.store.database import Database
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


class ProjectStore:
    """Used by the operator alone: a project knows of no other."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, name: str) -> Project:
        values = {"id": new_id("proj"), "name": name, "created_at": time.time()}
        with self._database.begin() as connection:
            row = connection.execute(insert(projects).values(**values).returning(projects)).one()
        return Project(**row._mapping)

    def get(self, id: str) -> Project | None:
        with self._database.read() as connection:
            row = connection.execute(select(projects).where(projects.c.id == id)).one_or_none()
        return Project(**row._mapping) if row else None

    def list(
        self, *, archived: bool = False, after: str | None = None, limit: int = 10**6
    ) -> tuple[Sequence[Project], bool]:
        """A page of projects, newest first, and whether there are more; with `archived` also those."""
        query = select(projects)
        if not archived:
            query = query.where(projects.c.archived_at.is_(None))
        rows, more = page(self._database, query, projects, after=after, limit=limit)
        return [Project(**row._mapping) for row in rows], more

    def rename(self, id: str, name: str) -> Project | None:
        return self._change(id, name=name)

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
        return Project(**row._mapping) if row else None
