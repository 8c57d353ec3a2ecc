"""What the names in requests stand for: aliases, bases, tuned models, and what their engines hold. Reads only."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Connection, select

from tunewright.registry.aliases import Alias
from tunewright.store.alias_rows import parse_alias
from tunewright.store.database import Database
from tunewright.store.policies import policies_named
from tunewright.store.records import Engine, ResidencyRow, TunedModel
from tunewright.store.states import ModelKind
from tunewright.store.tables import aliases, engines, models, residency


@dataclass(frozen=True)
class Named:
    """What a name stands for: an alias; a base, which is an engine; or a model, with the engine that serves it and its
    residency there. All are None where there is no such name."""

    alias: Alias | None = None
    model: TunedModel | None = None
    engine: Engine | None = None
    held: ResidencyRow | None = None


class NameStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    def read(self, names: Collection[str], *, of_jobs: bool = False) -> dict[str, Named]:
        """What each of the names stands for, in one consistent view. `of_jobs`: also the policies of running jobs,
        which only the service itself asks."""
        with self._database.read() as connection:
            by_alias = {
                row.name: parse_alias(row)
                for row in connection.execute(select(aliases).where(aliases.c.name.in_(names)))
            }
            by_model = {
                row.name: TunedModel(**row._mapping)
                for row in connection.execute(select(models).where(models.c.name.in_(names)))
            }
            if of_jobs:
                by_model |= policies_named(connection, names)
            served_by = {name: engine_of(by_model[name]) if name in by_model else name for name in names}
            by_engine = {
                row.name: Engine(**row._mapping)
                for row in connection.execute(select(engines).where(engines.c.name.in_(served_by.values())))
            }
            held = _held(connection, {model.sha256 for model in by_model.values()})
        found = {}
        for name in names:
            model, engine = by_model.get(name), by_engine.get(served_by[name])
            row = held.get((engine.name, engine.run, model.sha256)) if model and engine else None
            found[name] = Named(by_alias.get(name), model, engine, row)
        return found


def engine_of(model: TunedModel) -> str:
    """The name of the engine that serves a model: its base's for an adapter, its own for a full model."""
    return model.base if model.kind is ModelKind.ADAPTER else model.name


def _held(connection: Connection, hashes: Collection[str]) -> dict[tuple[str, int, str], ResidencyRow]:
    """The residency of these weights in every run of every engine."""
    if not hashes:
        return {}
    rows = connection.execute(select(residency).where(residency.c.sha256.in_(hashes)))
    return {(row.engine, row.run, row.sha256): ResidencyRow(**row._mapping) for row in rows}
