"""What queries answered, asked again only when the database was changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from tunewright.store.database import Database

T = TypeVar("T")


class Latest:
    """Keeps the last answer of each query while no process has committed anything. For what is asked several times a
    second and changes rarely. On PostgreSQL every query is asked each time.

    Not thread-safe. The answers are shared: nobody may change them.
    """

    def __init__(self, database: Database) -> None:
        self._changes = database.changes()
        self._kept: dict[Callable[[], Any], tuple[object, Any]] = {}
        """(version of the database before the query, answer) by the query."""

    def __call__(self, query: Callable[[], T]) -> T:
        version = self._changes.version() if self._changes is not None else None
        kept = self._kept.get(query)
        if kept is not None and version is not None and kept[0] == version:
            answer: T = kept[1]
            return answer
        answer = query()
        self._kept[query] = version, answer
        return answer

    def close(self) -> None:
        self._kept.clear()
        if self._changes is not None:
            self._changes.close()
