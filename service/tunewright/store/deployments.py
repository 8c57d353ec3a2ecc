"""Deployments: models that are served beside the bases. Their desired state is here; the scheduler writes the actual
state to the rows of their engines.

A deployment and the row of its engine are created and removed together. These transactions run `alone=INPUTS`, since
the placement depends on all other deployments, and what an alias or an unfinished job needs must be kept.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, Select, delete, insert, select, update

from tunewright.errors import EngineUnavailable, InvalidRequest, NotFound, quoted
from tunewright.ids import new_id
from tunewright.store.alias_rows import get as get_alias
from tunewright.store.alias_rows import refuse_aliased, take_out
from tunewright.store.confined import everywhere
from tunewright.store.database import Database
from tunewright.store.engines import set_state
from tunewright.store.inputs import INPUTS, refuse_base_of_jobs
from tunewright.store.outbox import DEPLOYMENT_DELETED, DEPLOYMENT_FAILED, DEPLOYMENT_READY, tell
from tunewright.store.paging import page
from tunewright.store.records import Deployment, Engine, EngineInfo
from tunewright.store.states import DeploymentState, EngineState, ModelKind
from tunewright.store.tables import deployments, engines, models, residency

Deployed = tuple[Deployment, Engine | None]
"""A deployment and its engine, which is None only in a restored database that no service has run on yet."""
Place = Callable[[Sequence[Deployed]], dict[str, Any]]
"""Chooses the options of a new deployment, given all others. Raises InvalidRequest where there is no room."""


class DeploymentStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self, model: str, asked: Mapping[str, Any], place: Place, *, sha256: str | None = None
    ) -> Deployment:
        """Serve `model`, or return the deployment that the same request created before.

        `sha256`: the hash of the model's row, which must still exist. Raises InvalidRequest, NotFound, and
        EngineUnavailable where an earlier deployment of the model is being drained.
        """
        with self._database.begin(alone=INPUTS) as connection:
            found = connection.execute(select(deployments).where(deployments.c.model == model)).one_or_none()
            if found is not None:
                return _same(Deployment(**found._mapping), asked)
            if connection.scalar(select(engines.c.name).where(engines.c.name == model)) is not None:
                raise already_served(model)
            if (
                connection.scalar(everywhere(select(engines.c.name).where(engines.c.name == model)))
                is not None
            ):
                raise _taken(model)
            if get_alias(connection, model) is not None:
                raise InvalidRequest(
                    f"{model} is the name of an alias: give the alias another.", param="model"
                )
            still = select(models.c.id).where(models.c.name == model, models.c.sha256 == sha256)
            if sha256 is not None and connection.scalar(still) is None:
                raise NotFound(
                    f"No such model: {quoted(model)}. It was deleted.", param="model", code="model_not_found"
                )
            options = place(_everywhere(connection))
            row = {
                "id": new_id("deploy"),
                "model": model,
                "asked": dict(asked),
                "options": options,
                "created_at": time.time(),
                "state": DeploymentState.ACTIVE,
                "failures": 0,
                "was_ready": False,
            }
            made = connection.execute(insert(deployments).values(**row).returning(deployments)).one()
            connection.execute(
                insert(engines).values(
                    name=model, state=EngineState.STOPPED, run=0, project=made._mapping["project"]
                )
            )
        return Deployment(**made._mapping)

    def get(self, id_or_model: str) -> Deployed | None:
        which = (deployments.c.id == id_or_model) | (deployments.c.model == id_or_model)
        with self._database.read() as connection:
            row = connection.execute(_joined().where(which)).one_or_none()
        return _deployed(row) if row else None

    def all(self) -> Sequence[Deployed]:
        """All deployments, oldest first."""
        with self._database.read() as connection:
            return _all(connection)

    def everywhere(self) -> Sequence[Deployed]:
        """The deployments of all projects, which share the memory of the devices. None of them may be told."""
        with self._database.read() as connection:
            return _everywhere(connection)

    def list(self, *, after: str | None = None, limit: int = 10**6) -> tuple[Sequence[Deployed], bool]:
        """A page of deployments, newest first, and whether there are more."""
        rows, more = page(self._database, _joined(), deployments, after=after, limit=limit)
        return [_deployed(row) for row in rows], more

    def drain(self, id: str, until: float, *, force: bool = False, who: str | None = None) -> None:
        """Take the deployment down after its last request, at `until` (Unix seconds) at the latest. One that is being
        drained already keeps its first deadline.

        With `force` the model and the adapters on it are first taken out of their aliases, by `who`. Raises
        InvalidRequest where an unfinished job needs the model or, without `force`, an alias has it or an adapter on it.
        """
        with self._database.begin(alone=INPUTS) as connection:
            active = (deployments.c.id == id, deployments.c.state == DeploymentState.ACTIVE)
            model = connection.scalar(select(deployments.c.model).where(*active))
            if model is None:
                return
            refuse_base_of_jobs(connection, model)
            on_it = select(models.c.name).where(models.c.base == model, models.c.kind == ModelKind.ADAPTER)
            for name in [model, *connection.scalars(on_it)]:
                if force:
                    take_out(connection, name, who)
                else:
                    refuse_aliased(connection, name)
            values = {"state": DeploymentState.DRAINING, "drain_until": until}
            connection.execute(update(deployments).where(*active).values(**values))
            connection.execute(
                update(engines).where(engines.c.name == model).values(state=EngineState.DRAINING, reason=None)
            )

    def restart(self, id: str) -> None:
        """Have a deployment whose engine failed or is in backoff started now, and reset its failures."""
        down = engines.c.state.in_([EngineState.FAILED, EngineState.BACKOFF])
        with self._database.begin(alone=INPUTS) as connection:
            model = connection.scalar(select(deployments.c.model).where(deployments.c.id == id))
            changed = connection.execute(
                update(engines)
                .where(engines.c.name == model, down)
                .values(state=EngineState.STOPPED, reason=None)
            )
            if changed.rowcount:
                connection.execute(update(deployments).where(deployments.c.id == id).values(failures=0))

    # the scheduler's side

    def place(self, id: str, options: dict[str, Any]) -> None:
        """Store new options of a deployment that was placed again, since the devices changed."""
        with self._database.begin(alone=INPUTS) as connection:
            connection.execute(update(deployments).where(deployments.c.id == id).values(options=options))

    def count_failure(self, id: str) -> int:
        """Count a failed start. Returns the number of failed starts in a row."""
        failures = (
            update(deployments).where(deployments.c.id == id).values(failures=deployments.c.failures + 1)
        )
        with self._database.begin() as connection:
            return connection.scalar(failures.returning(deployments.c.failures)) or 0

    def is_ready(self, id: str, info: EngineInfo) -> None:
        """Record that its engine is ready, and reset its failures. The first time is told to webhooks."""
        with self._database.begin() as connection:
            row = connection.execute(select(deployments).where(deployments.c.id == id)).one_or_none()
            if row is None:
                return
            connection.execute(
                update(deployments).where(deployments.c.id == id).values(failures=0, was_ready=True)
            )
            set_state(connection, row.model, EngineState.READY, info=info, reason=None, ready_at=time.time())
            if not row.was_ready:
                tell(connection, DEPLOYMENT_READY, id, row.project, model=row.model)

    def fail(self, id: str, model: str, reason: str) -> None:
        """Record that its engine failed, and is not started again until a user asks."""
        with self._database.begin() as connection:
            set_state(connection, model, EngineState.FAILED, reason=reason)
            query = select(deployments.c.project).where(deployments.c.id == id)
            if (project := connection.scalar(query)) is not None:
                tell(connection, DEPLOYMENT_FAILED, id, project, model=model)

    def remove(self, id: str) -> None:
        """Remove a deployment whose process has ended, with the rows of its engine and of the adapters in it."""
        with self._database.begin(alone=INPUTS) as connection:
            row = connection.execute(
                delete(deployments)
                .where(deployments.c.id == id)
                .returning(deployments.c.model, deployments.c.project)
            ).one_or_none()
            if row is not None:
                connection.execute(delete(residency).where(residency.c.engine == row.model))
                connection.execute(delete(engines).where(engines.c.name == row.model))
                tell(connection, DEPLOYMENT_DELETED, id, row.project, model=row.model)

    def start_anew(self) -> None:
        """Reset failures at the start of the service, so that failed deployments are tried again."""
        with self._database.begin(alone=INPUTS) as connection:
            connection.execute(update(deployments).values(failures=0))
            connection.execute(
                update(engines)
                .where(engines.c.state == EngineState.FAILED)
                .values(state=EngineState.STOPPED, reason=None)
            )


def _same(found: Deployment, asked: Mapping[str, Any]) -> Deployment:
    if found.is_draining:
        raise EngineUnavailable(
            f"{found.model} is being taken down ({found.id}): try again when that is done.",
            code="deployment_draining",
        )
    if found.asked != dict(asked):
        given = ", ".join(f"{key} {json.dumps(value)}" for key, value in found.asked.items()) or "no options"
        raise InvalidRequest(
            f"{found.model} is deployed already, as {found.id}, with {given}. To change that, delete the deployment "
            "first.",
            param="engine",
            code="already_deployed",
        )
    return found


def already_served(model: str) -> InvalidRequest:
    """The error for a deployment of a base."""
    return InvalidRequest(
        f"{model} is a base, which is served already: send requests to it.",
        param="model",
        code="already_served",
    )


def _taken(model: str) -> InvalidRequest:
    """The error for a model of the operator's (`--deployable`) that serves another project."""
    return InvalidRequest(
        f"{model} cannot be deployed here now: it is served already.", param="model", code="already_deployed"
    )


def _joined() -> Select[Any]:
    source = deployments.outerjoin(engines, engines.c.name == deployments.c.model)
    columns = [
        column.label(f"{table.name}_{column.name}") for table in (deployments, engines) for column in table.c
    ]
    return select(*columns).select_from(source)


def _all(connection: Connection) -> Sequence[Deployed]:
    return [_deployed(row) for row in connection.execute(_joined().order_by(deployments.c.seq))]


def _everywhere(connection: Connection) -> Sequence[Deployed]:
    return [_deployed(row) for row in connection.execute(everywhere(_joined().order_by(deployments.c.seq)))]


def _deployed(row: Row[Any]) -> Deployed:
    values = row._mapping
    deployment = Deployment(**{c.name: values[f"deployments_{c.name}"] for c in deployments.c})
    if values["engines_name"] is None:
        return deployment, None
    return deployment, Engine(**{c.name: values[f"engines_{c.name}"] for c in engines.c})
