"""As whom this database owns prefixes of buckets; see `registry/bucket_owner.py`. Only the supervisor and the scheduler
write here, one after the other."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

from sqlalchemy import Connection, delete, insert, select, update
from sqlalchemy.exc import SQLAlchemyError

from tunewright.registry.bucket_owner import BucketIdentity
from tunewright.store.database import Database
from tunewright.store.sqlite_file import reading
from tunewright.store.tables import bucket_owners


class BucketOwnerStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    def of(self, place: str) -> BucketIdentity:
        """This database's identity at a prefix, which is made where there is none."""
        with self._database.read() as connection:
            found = _find(connection, place)
        return found or self.renew(place)

    def begin_turn(self, place: str, current: str, following: str) -> None:
        """Note the turn that the mark has and the one that it is about to get."""
        with self._database.begin() as connection:
            connection.execute(
                update(bucket_owners)
                .where(bucket_owners.c.place == place)
                .values(turn=current, next_turn=following)
            )

    def renew(self, place: str) -> BucketIdentity:
        """Become another owner: of what was another's, or a copy's."""
        with self._database.begin() as connection:
            connection.execute(delete(bucket_owners).where(bucket_owners.c.place == place))
            self._insert(connection, place)
            found = _find(connection, place)
        assert found is not None, "it was inserted"
        return found

    def forget(self) -> None:
        """Own nothing: this database is a copy."""
        with self._database.begin() as connection:
            connection.execute(delete(bucket_owners))

    def _insert(self, connection: Connection, place: str) -> None:
        turn = secrets.token_hex(8)
        values = {"owner": secrets.token_hex(16), "turn": turn, "next_turn": turn, "since": time.time()}
        connection.execute(insert(bucket_owners).values(place=place, **values))


def carry_over(replaced: Path, restored: Path) -> None:
    """Let a database that replaces another one, both SQLite files that nothing else has open, own what that one owns,
    from now on. Safe to repeat. Raises DatabaseUnusable."""
    with reading(replaced, alone=True) as source:
        try:
            rows = [dict(row) for row in source.execute(select(bucket_owners)).mappings()]
        except SQLAlchemyError:  # of an earlier version, or none at all: it owns nothing
            return
    database = Database(f"sqlite:///{restored}")
    try:
        with database.begin() as sink:
            # once: after a kill, the log of the replaced one may be moved away already, and with it the last turn
            if rows and not sink.scalar(select(bucket_owners.c.place).limit(1)):
                sink.execute(insert(bucket_owners), [{**row, "since": time.time()} for row in rows])
    finally:
        database.close()


def restored_now(connection: Connection) -> None:
    """Note that the rows of this database were replaced, but for those of what it owns."""
    connection.execute(update(bucket_owners).values(since=time.time()))


def _find(connection: Connection, place: str) -> BucketIdentity | None:
    row = connection.execute(select(bucket_owners).where(bucket_owners.c.place == place)).one_or_none()
    return BucketIdentity(row.owner, (row.turn, row.next_turn), row.since) if row is not None else None
