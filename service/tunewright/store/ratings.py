"""What people have chosen of the pairs of an evaluation's answers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import bindparam, delete, insert, select

from tunewright.store.database import Database
from tunewright.store.tables import jobs, ratings


@dataclass(frozen=True)
class Rating:
    """What a person says of the answers to one row."""

    other: int
    """The number of the model with which the evaluated one is compared, from 1."""
    row: int
    rater: str
    outcome: str
    """Of the evaluated model: win, tie or loss."""


class RatingStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, job_id: str, rater: str, given: Sequence[Rating]) -> bool:
        """Store ratings in the place of the same person's earlier ones of the same pairs; all or none. False where the
        evaluation is no longer listed."""
        at = time.time()
        with self._database.begin() as connection:
            if connection.scalar(select(jobs.c.id).where(jobs.c.id == job_id).with_for_update()) is None:
                return False
            if given:
                earlier = (
                    ratings.c.job_id == job_id,
                    ratings.c.rater == rater,
                    ratings.c.other == bindparam("of_other"),
                    ratings.c.row == bindparam("of_row"),
                )
                same = [{"of_other": one.other, "of_row": one.row} for one in given]
                connection.execute(delete(ratings).where(*earlier), same)
                common = {"job_id": job_id, "rater": rater, "at": at}
                rows = [
                    {**common, "other": one.other, "row": one.row, "outcome": one.outcome} for one in given
                ]
                connection.execute(insert(ratings), rows)
        return True

    def of(self, job_id: str) -> Sequence[Rating]:
        """By model, row and person."""
        query = (
            select(ratings.c.other, ratings.c.row, ratings.c.rater, ratings.c.outcome)
            .where(ratings.c.job_id == job_id)
            .order_by(ratings.c.other, ratings.c.row, ratings.c.rater)
        )
        with self._database.read() as connection:
            return [Rating(*row) for row in connection.execute(query)]
