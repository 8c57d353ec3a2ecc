"""What a project has, as far as it may be limited: bytes, adapters, and the limits themselves."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Select, func, select

from tunewright.store.database import Database
from tunewright.store.limits import NO_LIMITS, Limits
from tunewright.store.states import ModelKind
from tunewright.store.tables import files, models, projects, upload_parts, uploads
from tunewright.store.uploads import is_pending


class HoldingStore:
    """On a project's connection."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def limits(self) -> Limits:
        project = self._database.project
        with self._database.read() as connection:
            row = connection.execute(select(projects.c.limits).where(projects.c.id == project)).one_or_none()
        return Limits.of(row.limits) if row else NO_LIMITS

    def stored_bytes(self) -> int:
        """Of its files, of the weights of its models, each once, and of parts of uploads that can be completed."""
        weights = select(models.c.sha256, func.max(models.c.bytes).label("bytes")).group_by(models.c.sha256)
        parts = (
            select(func.sum(upload_parts.c.bytes))
            .join(uploads, uploads.c.id == upload_parts.c.upload_id)
            .where(is_pending())
        )
        return sum(
            self._number(query)
            for query in (
                select(func.sum(files.c.bytes)), select(func.sum(weights.subquery().c.bytes)), parts,
            )
        )  # fmt: skip

    def adapters(self) -> int:
        """Adapters that are listed, without checkpoints."""
        with self._database.read() as connection:
            return count_adapters(connection)

    def _number(self, query: Select[Any]) -> int:
        with self._database.read() as connection:
            return int(connection.scalar(query) or 0)


def count_adapters(connection: Connection) -> int:
    """Adapters that are listed, without checkpoints."""
    listed = (models.c.kind == ModelKind.ADAPTER, models.c.checkpoint_step.is_(None))
    return connection.scalar(select(func.count()).select_from(models).where(*listed)) or 0
