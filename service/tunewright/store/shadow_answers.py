"""The answers of shadows to copies of requests: the newest of each alias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, insert, select

from tunewright.ids import new_id
from tunewright.store.database import Database
from tunewright.store.paging import page
from tunewright.store.tables import aliases, shadow_answers

KEPT = 1000
"""Most answers that are kept for each alias."""


@dataclass(frozen=True)
class ShadowAnswer:
    """A shadow's answer to the copy of a request."""

    seq: int
    id: str
    alias: str
    model: str
    answered_by: str
    """The model that answered the request itself."""
    path: str
    at: float
    seconds: float
    status: int
    request: Any
    """The body; for a long one its beginning, as text."""
    answer: Any
    project: str = "default"


class ShadowAnswerStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    def add(
        self,
        *,
        alias: str,
        model: str,
        answered_by: str,
        path: str,
        at: float,
        seconds: float,
        status: int,
        request: Any,
        answer: Any,
    ) -> None:
        """Store an answer, unless the alias was deleted meanwhile, and delete the alias's oldest where it has too
        many."""
        of_alias = shadow_answers.c.alias == alias
        with self._database.begin() as connection:
            if connection.scalar(select(aliases.c.name).where(aliases.c.name == alias)) is None:
                return
            connection.execute(
                insert(shadow_answers).values(
                    id=new_id("shadow"),
                    alias=alias,
                    model=model,
                    answered_by=answered_by,
                    path=path,
                    at=at,
                    seconds=seconds,
                    status=status,
                    request=request,
                    answer=answer,
                )
            )
            newest = select(shadow_answers.c.seq).where(of_alias).order_by(shadow_answers.c.seq.desc())
            too_many = connection.scalar(newest.offset(KEPT).limit(1))
            if too_many is not None:
                connection.execute(delete(shadow_answers).where(of_alias, shadow_answers.c.seq <= too_many))

    def list(
        self, alias: str, *, after: str | None = None, limit: int = KEPT
    ) -> tuple[Sequence[ShadowAnswer], bool]:
        """A page of answers, newest first, and whether there are more."""
        query = select(shadow_answers).where(shadow_answers.c.alias == alias)
        rows, more = page(self._database, query, shadow_answers, after=after, limit=limit)
        return [ShadowAnswer(**row._mapping) for row in rows], more
