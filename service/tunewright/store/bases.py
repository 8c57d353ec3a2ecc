"""Which of the operator's bases and deployables a project may use. Without a row it may use all."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Connection, delete, insert, select

from tunewright.store.database import Database
from tunewright.store.tables import project_bases


class BaseStore:
    """On a project's connection."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def allowed(self) -> frozenset[str] | None:
        """The names of those that the project may use; None: all, also where the store is that of all projects."""
        if self._database.project is None:
            return None
        with self._database.read() as connection:
            return frozenset(connection.scalars(select(project_bases.c.base))) or None


def set_bases(connection: Connection, project: str, bases: Collection[str] | None) -> None:
    """Let the project use these alone; None: all."""
    connection.execute(delete(project_bases).where(project_bases.c.project == project))
    if bases:
        connection.execute(insert(project_bases), [{"project": project, "base": base} for base in set(bases)])


def bases_of(connection: Connection, projects: Collection[str]) -> dict[str, list[str]]:
    """The names by project, of those that are limited."""
    found: dict[str, list[str]] = {}
    query = select(project_bases).where(project_bases.c.project.in_(projects)).order_by(project_bases.c.base)
    for row in connection.execute(query):
        found.setdefault(row.project, []).append(row.base)
    return found
