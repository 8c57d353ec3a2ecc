"""Lists of models, each with its engine and its residency there. One query for each page."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, Table, and_, case, or_, select

from tunewright.store.database import Database
from tunewright.store.models import engine_name
from tunewright.store.paging import page
from tunewright.store.records import Engine, ModelWithEngine, ResidencyRow, TunedModel
from tunewright.store.states import UNCHECKED, Desired, ModelKind, ModelState, Residency
from tunewright.store.tables import engines, models, residency


@dataclass(frozen=True)
class AdapterFilter:
    """The conditions of a list of adapters; None sets no condition."""

    base: str | None = None
    job_id: str | None = None
    state: str | None = None
    """A value of `ModelWithEngine.state`."""
    loaded: bool | None = None


class Listings:
    def __init__(self, database: Database) -> None:
        self._database = database

    def models(self) -> Sequence[ModelWithEngine]:
        """All models that may be served, newest first; of the checkpoints only those that should be loaded."""
        shown = and_(
            models.c.state == ModelState.READY,
            models.c.checkpoint_step.is_(None) | (models.c.desired == Desired.LOADED),
        )
        with self._database.read() as connection:
            rows = connection.execute(_joined().where(shown).order_by(models.c.seq.desc())).all()
        return [_listed(row) for row in rows]

    def named(self, names: Collection[str]) -> dict[str, ModelWithEngine]:
        """The existing models among these names, by name."""
        with self._database.read() as connection:
            rows = connection.execute(_joined().where(models.c.name.in_(names))).all()
        return {listed.model.name: listed for listed in map(_listed, rows)}

    def adapters(
        self, wanted: AdapterFilter, *, after: str | None, limit: int
    ) -> tuple[Sequence[ModelWithEngine], bool]:
        """A page of adapters, newest first, checkpoints among them, and whether there are more."""
        query = _joined().where(models.c.kind == ModelKind.ADAPTER)
        if wanted.base is not None:
            query = query.where(models.c.base == wanted.base)
        if wanted.job_id is not None:
            query = query.where(models.c.job_id == wanted.job_id)
        if wanted.state is not None:
            query = query.where(_state() == wanted.state)
        if wanted.loaded is not None:
            is_loaded = _state() == Residency.LOADED
            query = query.where(is_loaded if wanted.loaded else ~is_loaded)
        rows, more = page(self._database, query, models, after=after, limit=limit)
        return [_listed(row) for row in rows], more


def _joined() -> Select[Any]:
    held = and_(
        residency.c.engine == engines.c.name,
        residency.c.run == engines.c.run,
        residency.c.sha256 == models.c.sha256,
    )
    source = models.outerjoin(engines, engines.c.name == engine_name()).outerjoin(residency, held)
    columns = [c.label(f"{table.name}_{c.name}") for table in (models, engines, residency) for c in table.c]
    return select(*columns).select_from(source)


def _state() -> ColumnElement[str]:
    """`ModelWithEngine.state` as a SQL expression."""
    unheld = case((models.c.desired == Desired.LOADED, "loading"), else_="unloaded")
    is_awaited = or_(models.c.desired == Desired.LOADED, models.c.parity["asked_at"].as_float().is_not(None))
    return case(
        (and_(models.c.state == ModelState.CHECKING, ~is_awaited), UNCHECKED),
        (models.c.state != ModelState.READY, models.c.state),
        (residency.c.state.is_not(None), residency.c.state),
        else_=unheld,
    )


def _listed(row: Row[Any]) -> ModelWithEngine:
    values = row._mapping

    def of(table: Table) -> dict[str, Any]:
        return {column.name: values[f"{table.name}_{column.name}"] for column in table.c}

    return ModelWithEngine(
        TunedModel(**of(models)),
        Engine(**of(engines)) if values["engines_name"] is not None else None,
        ResidencyRow(**of(residency)) if values["residency_sha256"] is not None else None,
    )
