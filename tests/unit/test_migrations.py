"""Each migration on a database of the version before it, with rows in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from alembic import command
from sqlalchemy import Connection, text

from tunewright.store.database import Database, _alembic
from tunewright.store.records import Lineage
from tunewright.store.sqlite_file import sqlite_path
from tunewright.store.states import JobKind, ModelState, Source
from tunewright.store.store import Store

JOB: dict[str, Any] = {
    "id": "ftjob-1", "state": "succeeded", "created_at": 1.0, "model": "tiny", "base": "tiny",
    "parent_sha256": "d" * 64, "training_file": "file-1", "validation_file": "file-2", "seed": 7, "method": "{}",
    "tuning": "{}", "fingerprint": "f", "attempt": 1, "events_offset": 0, "last_step": 2,
}  # fmt: skip
MODEL: dict[str, Any] = {
    "id": "adapter-1", "name": "ft:tiny::1", "kind": "adapter", "sha256": "a" * 64, "base": "tiny",
    "base_fingerprint": "b" * 64, "job_id": "ftjob-1", "checkpoint_step": None, "method": "lora", "rank": 8,
    "alpha": 16.0, "target_modules": '["q_proj"]', "bytes": 10, "created_at": 1.0, "desired": "loaded",
}  # fmt: skip


def insert(connection: Connection, table: str, **values: Any) -> None:
    names = ", ".join(values)
    connection.execute(
        text(f"INSERT INTO {table} ({names}) VALUES ({', '.join(':' + n for n in values)})"), values
    )


def event(connection: Connection, number: int, type: str, data: dict[str, Any] | None) -> None:
    values = {
        "id": f"ftevent-{number}",
        "job_id": "ftjob-1",
        "created_at": 1.0,
        "level": "info",
        "type": type,
    }
    insert(connection, "job_events", **values, message="m", data=json.dumps(data) if data else None)


@pytest.fixture
def old(url: str) -> Iterator[Connection]:
    """A database at revision 0001, in the transaction that fills it."""
    path = sqlite_path(url)
    if path is not None:
        path.unlink()
    database = Database(url)
    with database.begin() as connection:
        if path is None:
            connection.execute(text("DROP SCHEMA public CASCADE"))
            connection.execute(text("CREATE SCHEMA public"))
        config = _alembic()
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    with database.begin() as connection:
        yield connection
    database.close()


def test_models_of_the_first_version_get_their_lineage(old: Connection, url: str) -> None:
    insert(old, "jobs", **JOB)
    file = {"filename": "a", "purpose": "fine-tune", "bytes": 1, "created_at": 1.0}
    insert(old, "files", id="file-1", sha256="1" * 64, **file)
    event(old, 1, "metrics", {"step": 1, "train_loss": 9.0})
    event(old, 2, "metrics", {"step": 2, "train_loss": 0.5, "valid_loss": 0.25, "grad_norm": 3.0})
    event(old, 3, "message", None)
    insert(old, "models", **MODEL)
    checkpoint = {"name": "ft:tiny::1:ckpt-step-1", "checkpoint_step": 1, "id": "adapter-2"}
    insert(old, "models", **{**MODEL, **checkpoint})
    metrics = json.dumps({"train_loss": 9.0})
    insert(
        old, "checkpoints", id="ftckpt-1", job_id="ftjob-1", step=1, model=checkpoint["name"], metrics=metrics,
        created_at=1.0,
    )  # fmt: skip
    insert(
        old, "models", **{**MODEL, "id": "adapter-3", "name": "of a job that is gone", "job_id": "ftjob-none"}
    )
    old.commit()

    store = Store.open(url)
    store.database.upgrade()
    final = store.models.get("adapter-1")
    assert final is not None
    assert (final.source, final.state, final.pinned) == (Source.JOB, ModelState.READY, False)
    assert (final.parity, final.last_used_at, final.target_modules) == (None, None, ["q_proj"])
    assert final.lineage == Lineage(
        parent_sha256="d" * 64,
        training_file="file-1",
        training_sha256="1" * 64,
        validation_file="file-2",
        validation_sha256=None,
        seed=7,
        metrics={"train_loss": 0.5, "valid_loss": 0.25},
    ), "the validation file was deleted"
    middle, orphan = store.models.get("adapter-2"), store.models.get("adapter-3")
    assert middle is not None
    assert middle.lineage is not None
    assert middle.lineage.metrics == {"train_loss": 9.0}
    assert orphan is not None
    assert orphan.lineage is None
    store.close()


def test_jobs_of_earlier_versions_are_fine_tuning_jobs(old: Connection, url: str) -> None:
    insert(old, "jobs", **JOB)
    old.commit()
    store = Store.open(url)
    store.database.upgrade()
    job = store.jobs.get("ftjob-1", JobKind.FINE_TUNING)
    assert job is not None
    assert (job.kind, job.report, job.training_file) == (JobKind.FINE_TUNING, None, "file-1")
    assert store.deployments.all() == []
    store.close()
