"""Engines: the vLLM servers that should run, the state of the current run of each, and the adapters that it holds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from tunewright.store.database import Database
from tunewright.store.records import Engine, EngineInfo, ResidencyRow
from tunewright.store.states import DeploymentState, EngineState, Residency
from tunewright.store.tables import deployments, engines, models, residency

_MAY_CHANGE = engines.c.state != EngineState.DRAINING


class EngineStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    def declare(self, names: Sequence[str]) -> None:
        """Make the rows those of these bases and of the deployments, and delete others. A deployment whose model is one
        of the bases now is deleted too."""
        with self._database.begin() as connection:
            connection.execute(delete(deployments).where(deployments.c.model.in_(names)))
            wanted = dict.fromkeys(names, EngineState.STOPPED)
            owners: dict[str, str] = {}
            deployed = select(deployments.c.model, deployments.c.state, deployments.c.project)
            for model, state, project in connection.execute(deployed):
                draining = state == DeploymentState.DRAINING
                wanted[model] = EngineState.DRAINING if draining else EngineState.STOPPED
                owners[model] = project
            connection.execute(delete(engines).where(engines.c.name.not_in(wanted)))
            connection.execute(update(engines).where(engines.c.name.in_(names)).values(project=None))
            known = set(connection.scalars(select(engines.c.name)))
            for name, state in wanted.items():
                if name not in known:
                    connection.execute(
                        insert(engines).values(name=name, state=state, run=0, project=owners.get(name))
                    )

    def forget(self) -> None:
        """Delete the rows of all engines and of what they held: in a restored database they ran elsewhere."""
        with self._database.begin() as connection:
            connection.execute(delete(engines))
            connection.execute(delete(residency))

    def bases(self) -> Sequence[Engine]:
        """Engines whose model has no row in `models`."""
        query = select(engines).where(engines.c.name.not_in(select(models.c.name))).order_by(engines.c.name)
        with self._database.read() as connection:
            return [Engine(**row._mapping) for row in connection.execute(query)]

    def list(self) -> Sequence[Engine]:
        with self._database.read() as connection:
            rows = connection.execute(select(engines).order_by(engines.c.name)).all()
        return [Engine(**row._mapping) for row in rows]

    def get(self, name: str) -> Engine | None:
        with self._database.read() as connection:
            row = connection.execute(select(engines).where(engines.c.name == name)).one_or_none()
        return Engine(**row._mapping) if row else None

    def starting(self, name: str, socket: str, info: EngineInfo) -> Engine | None:
        """Begin a new run of the engine, which holds no adapters yet. None where the engine is being drained."""
        with self._database.begin() as connection:
            row = connection.execute(
                update(engines)
                .where(engines.c.name == name, _MAY_CHANGE)
                .values(
                    state=EngineState.STARTING,
                    run=engines.c.run + 1,
                    socket=socket,
                    info=info.model_dump(mode="json"),
                    reason=None,
                    started_at=time.time(),
                    ready_at=None,
                )
                .returning(engines)
            ).one_or_none()
            if row is None:
                return None
            connection.execute(delete(residency).where(residency.c.engine == name))
        return Engine(**row._mapping)

    def set_state(
        self, name: str, state: EngineState, *, info: EngineInfo | None = None, **values: Any
    ) -> None:
        """Set the state of the engine, unless it is being drained. `info`: None leaves it as it is."""
        with self._database.begin() as connection:
            set_state(connection, name, state, info=info, **values)

    def residents(self, engine: Engine) -> dict[str, ResidencyRow]:
        """The adapters in this run of the engine, by hash."""
        query = select(residency).where(residency.c.engine == engine.name, residency.c.run == engine.run)
        with self._database.read() as connection:
            return {row.sha256: ResidencyRow(**row._mapping) for row in connection.execute(query)}

    def set_residency(
        self,
        engine: Engine,
        sha256: str,
        state: Residency | None,
        *,
        error: str | None = None,
        number: int | None = None,
    ) -> None:
        """Record the state of an adapter in this run; None: the engine does not hold it."""
        key = (
            (residency.c.engine == engine.name)
            & (residency.c.run == engine.run)
            & (residency.c.sha256 == sha256)
        )
        with self._database.begin() as connection:
            connection.execute(delete(residency).where(key))
            if state is not None:
                connection.execute(
                    insert(residency).values(
                        engine=engine.name,
                        run=engine.run,
                        sha256=sha256,
                        state=state,
                        error=error,
                        at=time.time(),
                        number=number,
                    )
                )


def set_state(
    connection: Connection, name: str, state: EngineState, *, info: EngineInfo | None = None, **values: Any
) -> None:
    """`EngineStore.set_state`, in the transaction of its caller."""
    if info is not None:
        values["info"] = info.model_dump(mode="json")
    connection.execute(
        update(engines).where(engines.c.name == name, _MAY_CHANGE).values(state=state, **values)
    )
