"""What the judge of an alias's guard has made of answers, of the alias's present version alone."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from sqlalchemy import delete, insert, select

from tunewright.metrics.win_rates import Outcome
from tunewright.store.database import Database
from tunewright.store.tables import alias_judgements, aliases

MOST = 2000
"""Comparisons of a target, after which no more are made."""


class AliasJudgementStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    def add(
        self, alias: str, version: int, *, model: str, against: str, outcome: Outcome
    ) -> Sequence[Outcome]:
        """Store what came of a comparison, and delete those of earlier versions. Returns all of this model, oldest
        first; none where the alias has another version now."""
        of_alias = alias_judgements.c.alias == alias
        with self._database.begin() as connection:
            current = connection.scalar(select(aliases.c.version).where(aliases.c.name == alias))
            if current != version:
                return []
            connection.execute(
                delete(alias_judgements).where(of_alias, alias_judgements.c.version != version)
            )
            connection.execute(
                insert(alias_judgements).values(
                    alias=alias,
                    version=version,
                    model=model,
                    against=against,
                    outcome=outcome,
                    at=time.time(),
                )
            )
            query = select(alias_judgements.c.outcome).where(of_alias, alias_judgements.c.model == model)
            return list(connection.scalars(query.order_by(alias_judgements.c.seq)))

    def of(self, alias: str, version: int) -> Mapping[tuple[str, str], Sequence[Outcome]]:
        """The outcomes, oldest first, of each target against the shadow: by both names."""
        query = select(alias_judgements).where(
            alias_judgements.c.alias == alias, alias_judgements.c.version == version
        )
        found: dict[tuple[str, str], list[Outcome]] = {}
        with self._database.read() as connection:
            for row in connection.execute(query.order_by(alias_judgements.c.seq)):
                found.setdefault((row.model, row.against), []).append(row.outcome)
        return found
