"""Adapters and full models, and which of them should be loaded."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, case, delete, exists, func, insert, select, union, update

from tunewright.ids import new_id
from tunewright.jobs.kinds import JobResult
from tunewright.store.alias_rows import needed_by_aliases, refuse_aliased, take_out
from tunewright.store.confined import everywhere
from tunewright.store.database import Database
from tunewright.store.holdings import count_adapters
from tunewright.store.inputs import (
    INPUTS,
    UNFINISHED,
    needed_by_a_job,
    refuse_deployed,
    refuse_needed_weights,
    refuse_unfinished,
)
from tunewright.store.job_rows import as_json, await_check, made, project_of
from tunewright.store.names import NameStore
from tunewright.store.paging import page
from tunewright.store.records import Engine, ResidencyRow, TunedModel
from tunewright.store.states import Desired, ModelKind, ModelState
from tunewright.store.tables import (
    checkpoints,
    deployments,
    engines,
    files,
    job_inputs,
    jobs,
    models,
    residency,
)


class ModelStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    def publish(
        self,
        values: Sequence[dict[str, Any]],
        *,
        job_id: str,
        result: JobResult | None = None,
        checkpoint_metrics: dict[int, dict[str, float]] | None = None,
        result_file: dict[str, Any] | None = None,
        report: dict[str, Any] | None = None,
    ) -> bool:
        """List a job's products and end the job, in one transaction. The first of `values` is the final model; where
        its state is `checking`, its check ends the job instead (`store.checks`).

        `result` is the job's result without the model's name; `checkpoint_metrics` are by step, for the values that are
        checkpoints; `result_file` is a row of `files`; `report` is what was measured of the final model.
        False where the job was cancelled meanwhile, or has products already; then nothing is listed.
        """
        final = values[0]
        stored = as_json(result) if result else {}
        with self._database.begin() as connection:
            if final.get("state") == ModelState.CHECKING:
                is_open = await_check(connection, job_id, result=stored, report=report)
            else:
                is_open = made(connection, job_id, model=final["name"], result=stored, report=report)
            if not is_open:
                return False
            project = project_of(connection, job_id)
            for row in values:
                prefix = "adapter" if row["kind"] == ModelKind.ADAPTER else "model"
                connection.execute(
                    insert(models).values(
                        id=new_id(prefix), created_at=time.time(), job_id=job_id, project=project, **row
                    )
                )
                step = row["checkpoint_step"]
                if step is not None:
                    connection.execute(
                        insert(checkpoints).values(
                            id=new_id("ftckpt"),
                            job_id=job_id,
                            step=step,
                            model=row["name"],
                            metrics=(checkpoint_metrics or {})[step],
                            created_at=time.time(),
                        )
                    )
            if result_file is not None:
                connection.execute(
                    insert(files).values(created_at=time.time(), project=project, **result_file)
                )
        return True

    def register(
        self, values: dict[str, Any], *, admit: Callable[[int], None] = lambda _: None
    ) -> TunedModel:
        """List an adapter that was not trained here, or return the existing one with its `id`. `admit` is given the
        number of adapters, in the transaction, and raises where there may not be more."""
        with self._database.begin(alone="register an adapter") as connection:
            row = connection.execute(select(models).where(models.c.id == values["id"])).one_or_none()
            if row is None:
                admit(count_adapters(connection))
                values = {"created_at": time.time(), **values}
                row = connection.execute(insert(models).values(**values).returning(models)).one()
        return TunedModel(**row._mapping)

    def get(self, name_or_id: str) -> TunedModel | None:
        query = select(models).where((models.c.name == name_or_id) | (models.c.id == name_or_id))
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        return TunedModel(**row._mapping) if row else None

    def by_sha256(self, sha256: str) -> TunedModel | None:
        """One of the models with these weights; None where there is none."""
        with self._database.read() as connection:
            row = connection.execute(select(models).where(models.c.sha256 == sha256).limit(1)).one_or_none()
        return TunedModel(**row._mapping) if row else None

    def made_by(self, job_id: str) -> bool:
        """Whether the job has products."""
        with self._database.read() as connection:
            return connection.scalar(select(exists().where(models.c.job_id == job_id))) or False

    def list(
        self, *, kind: ModelKind | None = None, after: str | None = None, limit: int = 10**6
    ) -> tuple[Sequence[TunedModel], bool]:
        query = select(models)
        if kind:
            query = query.where(models.c.kind == kind)
        rows, more = page(self._database, query, models, after=after, limit=limit)
        return [TunedModel(**row._mapping) for row in rows], more

    def want(self, name_or_id: str, desired: Desired) -> None:
        """Set whether the model should be loaded."""
        with self._database.begin() as connection:
            connection.execute(
                update(models)
                .where((models.c.name == name_or_id) | (models.c.id == name_or_id))
                .values(desired=desired)
            )

    def want_weights(self, sha256: str, desired: Desired) -> None:
        """Set whether the models with these weights should be loaded."""
        with self._database.begin() as connection:
            connection.execute(update(models).where(models.c.sha256 == sha256).values(desired=desired))

    def pin(self, name: str, pinned: bool) -> None:
        """Pin an adapter, which is then loaded and never evicted, or unpin it."""
        values = {"pinned": pinned} | ({"desired": Desired.LOADED} if pinned else {})
        with self._database.begin() as connection:
            connection.execute(update(models).where(models.c.name == name).values(**values))

    def pinned(self, base: str) -> set[str]:
        """Hashes of the pinned adapters of `base`."""
        with self._database.read() as connection:
            return set(
                connection.scalars(select(models.c.sha256).where(models.c.base == base, models.c.pinned))
            )

    def refuse_needed(self, model: TunedModel, *, force: bool = False) -> None:
        """Raises InvalidRequest where an unfinished job starts from the model, a deployment serves it or, without
        `force`, an alias has it."""
        with self._database.read() as connection:
            _refuse_needed(connection, model, force)

    def delete(self, model: TunedModel, *, force: bool = False, who: str | None = None) -> bool:
        """Delete a model's row, and its row of `checkpoints`, if any; False where it is not listed.

        With `force` it is first taken out of its aliases, by `who`. Raises what `refuse_needed` raises.
        """
        with self._database.begin(alone=INPUTS) as connection:
            _refuse_needed(connection, model, force)
            take_out(connection, model.name, who)
            return _unlist(connection, models.c.id == model.id)

    def idle_checkpoints(self) -> Sequence[TunedModel]:
        """Checkpoints that are not loaded, should not be loaded, are not pinned, are not needed by an alias or an
        unfinished job, and were not selected as the model of their job."""
        with self._database.read() as connection:
            query = select(models).where(_is_idle_checkpoint(connection)).order_by(models.c.seq)
            return [TunedModel(**row._mapping) for row in connection.execute(query)]

    def delete_idle_checkpoint(self, id: str) -> bool:
        """Delete a checkpoint's row if it is still idle; False where it is not."""
        with self._database.begin(alone=INPUTS) as connection:
            return _unlist(connection, models.c.id == id, _is_idle_checkpoint(connection))

    def weights_in_use(self, sha256: str | None = None) -> set[str]:
        """Hashes of the artifacts that belong to a model or that an unfinished job starts from, of any project: all, or
        only `sha256`."""
        listed = select(models.c.sha256)
        started_from = (
            select(job_inputs.c.sha256)
            .join(jobs, jobs.c.id == job_inputs.c.job_id)
            .where(job_inputs.c.sha256.is_not(None), UNFINISHED)
        )
        if sha256 is not None:
            listed = listed.where(models.c.sha256 == sha256)
            started_from = started_from.where(job_inputs.c.sha256 == sha256)
        with self._database.read() as connection:
            return set(connection.scalars(everywhere(union(listed, started_from))))

    def weights_at_work(self) -> set[str]:
        """Hashes of the artifacts whose files are read now, or may be at any time, of any project: unfinished jobs
        start from them, engines or checks have them."""
        unfinished_bases = select(jobs.c.base).where(UNFINISHED)
        queries = (
            select(job_inputs.c.sha256)
            .join(jobs, jobs.c.id == job_inputs.c.job_id)
            .where(job_inputs.c.sha256.is_not(None), UNFINISHED),
            select(models.c.sha256).where(
                models.c.kind == ModelKind.FULL,
                models.c.name.in_(select(engines.c.name))
                | models.c.name.in_(select(deployments.c.model))
                | models.c.name.in_(unfinished_bases),
            ),
            select(models.c.sha256).where(
                models.c.state == ModelState.CHECKING, models.c.desired == Desired.LOADED
            ),
            select(residency.c.sha256).join(
                engines, (engines.c.name == residency.c.engine) & (engines.c.run == residency.c.run)
            ),
        )
        with self._database.read() as connection:
            return set(connection.scalars(everywhere(union(*queries))))

    def wanted_adapters(self, base: str) -> dict[str, TunedModel]:
        """Adapters of `base` that should be loaded, by hash (two names may share one). Adapters that wait for their
        check are among them, since the engine has to score them."""
        query = select(models).where(
            models.c.base == base,
            models.c.kind == ModelKind.ADAPTER,
            models.c.desired == Desired.LOADED,
            models.c.state.not_in([ModelState.QUARANTINED, ModelState.MERGE_ONLY]),
        )
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(models.c.seq)).all()
        return {row.sha256: TunedModel(**row._mapping) for row in rows}

    def largest_rank(self, base: str) -> int | None:
        """The largest rank of an adapter of `base`; None where it has none."""
        query = select(func.max(models.c.rank)).where(
            models.c.base == base, models.c.kind == ModelKind.ADAPTER
        )
        with self._database.read() as connection:
            found = connection.scalar(query)
        return None if found is None else int(found)

    def resolve(self, name: str) -> tuple[TunedModel | None, Engine | None, ResidencyRow | None]:
        """The model, its engine and its residency there. One consistent view."""
        found = NameStore(self._database).read([name])[name]
        return found.model, found.engine, found.held


def engine_name() -> ColumnElement[str]:
    """The name of the engine that serves a row of `models`: its base's for an adapter, its own for a full model."""
    return case((models.c.kind == ModelKind.ADAPTER, models.c.base), else_=models.c.name)


def _refuse_needed(connection: Connection, model: TunedModel, force: bool) -> None:
    refuse_needed_weights(connection, model.name, model.sha256)
    refuse_unfinished(connection, model.name, model.job_id)
    refuse_deployed(connection, model.name)
    if not force:
        refuse_aliased(connection, model.name)


def _is_idle_checkpoint(connection: Connection) -> ColumnElement[bool]:
    return (
        models.c.checkpoint_step.is_not(None)
        & (models.c.desired == Desired.UNLOADED)
        & ~models.c.pinned
        & models.c.name.not_in(needed_by_aliases(connection))
        & ~exists().where(deployments.c.model == models.c.name)
        & ~needed_by_a_job(models.c.sha256)
        & ~exists().where(
            jobs.c.id == models.c.job_id, UNFINISHED | (jobs.c.report["model"].as_string() == models.c.name)
        )
        & ~exists().where(
            residency.c.sha256 == models.c.sha256,
            residency.c.engine == engines.c.name,
            residency.c.run == engines.c.run,
        )
    )


def _unlist(connection: Connection, *which: ColumnElement[bool]) -> bool:
    name = connection.scalar(delete(models).where(*which).returning(models.c.name))
    connection.execute(delete(checkpoints).where(checkpoints.c.model == name))
    return name is not None
