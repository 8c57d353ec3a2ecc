"""The audit log: who did what, and what was refused. Rows are added, and never changed; only `prune` deletes some."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from sqlalchemy import ColumnElement, Row, delete, insert, null, select

from tunewright.errors import InvalidRequest, quoted
from tunewright.ids import new_id
from tunewright.store.audit_tables import audit_logs
from tunewright.store.database import Database


@dataclass(frozen=True)
class Audited:
    """Something that was done. Texts of requests are cut to what the table takes."""

    type: str
    project: str = ""
    actor: str = ""
    """The id of the key."""
    subject: str | None = None
    """Whom a token was for."""
    peer: str | None = None
    request_id: str | None = None
    method: str | None = None
    path: str | None = None
    status: int | None = None
    resource: str | None = None
    """The id or name in the path."""
    details: Mapping[str, Any] | None = None
    effective_at: float = field(default_factory=time.time)
    """Unix seconds."""


@dataclass(frozen=True)
class AuditLog(Audited):
    seq: int = 0
    id: str = ""

    @classmethod
    def of(cls, row: Row[Any]) -> Self:
        return cls(**row._mapping)


@dataclass(frozen=True)
class AuditFilter:
    """None sets no condition. Times are Unix seconds."""

    from_time: float | None = None
    """Inclusive."""
    before_time: float | None = None
    """Exclusive."""
    types: Collection[str] | None = None
    projects: Collection[str] | None = None
    actors: Collection[str] | None = None
    subjects: Collection[str] | None = None
    resources: Collection[str] | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        at = audit_logs.c.effective_at
        found: list[ColumnElement[bool] | None] = [
            at >= self.from_time if self.from_time is not None else None,
            at < self.before_time if self.before_time is not None else None,
        ]
        for column, values in (
            ("type", self.types), ("project", self.projects), ("actor", self.actors), ("subject", self.subjects),
            ("resource", self.resources),
        ):  # fmt: skip
            found.append(audit_logs.c[column].in_(values) if values is not None else None)
        return [condition for condition in found if condition is not None]


class AuditStore:
    """On a project's connection: what was done in that project."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, done: Sequence[Audited]) -> None:
        """Add them in one transaction, in their order."""
        rows = [
            {
                **{name: _storable(value) for name, value in asdict(one).items()},
                "id": new_id("audit_log"),
                "details": dict(one.details) if one.details else null(),
            }
            for one in done
        ]
        with self._database.begin() as connection:
            for row in rows:
                connection.execute(insert(audit_logs).values(**row))

    def list(
        self,
        wanted: AuditFilter,
        *,
        after: str | None = None,
        before: str | None = None,
        limit: int = 10**6,
        ascending: bool = False,
    ) -> tuple[Sequence[AuditLog], bool]:
        """A page, newest first unless `ascending`, behind the id `after` or in front of the id `before`, and whether
        there are more in that direction. Raises InvalidRequest where there is no such id."""
        seq = audit_logs.c.seq
        query = select(audit_logs).where(*wanted.conditions())
        backwards = before is not None and after is None
        with self._database.read() as connection:
            for param, id, is_later in (("after", after, ascending), ("before", before, not ascending)):
                if id is None:
                    continue
                place = connection.scalar(select(seq).where(audit_logs.c.id == id))
                if place is None:
                    raise InvalidRequest(f"No such log to list {param}: {quoted(id)}.", param=param)
                query = query.where(seq > place if is_later else seq < place)
            upwards = ascending != backwards
            rows = connection.execute(
                query.order_by(seq.asc() if upwards else seq.desc()).limit(limit + 1)
            ).all()
        found = [AuditLog.of(row) for row in rows[:limit]]
        return found[::-1] if backwards else found, len(rows) > limit

    def prune(self, before: float) -> int:
        """Delete what was done before this time (Unix seconds). Returns how many rows there were."""
        with self._database.begin() as connection:
            return connection.execute(delete(audit_logs).where(audit_logs.c.effective_at < before)).rowcount


def _storable(value: Any) -> Any:
    """A text as every database takes it: the names of tokens and paths may have anything."""
    return value.replace("\0", "").encode(errors="replace").decode() if isinstance(value, str) else value
