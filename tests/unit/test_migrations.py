"""Each migration on a database of the version before it, with rows in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from alembic import command
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from tunewright.api.exports.schemas import ExportObject
from tunewright.kinds.fine_tuning.kind import request_of
from tunewright.kinds.fine_tuning.models import FineTuningResult
from tunewright.store.database import Database, _alembic
from tunewright.store.records import Lineage
from tunewright.store.sqlite_file import sqlite_path
from tunewright.store.states import FileStatus, JobPhase, JobState, ModelState, Source
from tunewright.store.store import Store

pytestmark = pytest.mark.each_database

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


def test_files_of_earlier_versions_are_to_be_checked(old: Connection, url: str) -> None:
    file = {"filename": "a", "bytes": 1, "created_at": 1.0, "sha256": "1" * 64}
    insert(old, "files", id="file-1", purpose="fine-tune", **file)
    insert(old, "files", id="file-2", purpose="fine-tune-results", **file)
    old.commit()
    store = Store.open(url)
    store.database.upgrade()
    found = {record.id: (record.status, record.report) for record, _ in store.files.last_used()}
    assert found == {"file-1": (FileStatus.UPLOADED, None), "file-2": (FileStatus.PROCESSED, None)}
    assert [record.id for record in store.files.unchecked()] == ["file-1"]
    checked = store.files.finish_check("file-1", FileStatus.ERROR, {"problem": "é"})
    assert checked == store.files.get("file-1")
    assert checked is not None
    assert (checked.status, checked.report) == (FileStatus.ERROR, {"problem": "é"})
    assert store.files.finish_check("file-none", FileStatus.ERROR, {}) is None
    store.close()


def test_jobs_of_earlier_versions_are_fine_tuning_jobs(old: Connection, url: str) -> None:
    insert(old, "jobs", **JOB)
    old.commit()
    store = Store.open(url)
    store.database.upgrade()
    job = store.jobs.get("ftjob-1", "fine_tuning")
    assert job is not None
    assert (job.kind, job.report, job.file("training_file")) == ("fine_tuning", None, "file-1")
    assert store.deployments.all() == []
    store.close()


def at_revision(connection: Connection, revision: str) -> None:
    """Migrate to a later revision, in the transaction of the connection."""
    config = _alembic()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


HYPERPARAMETERS = {"n_epochs": 3, "batch_size": "auto", "learning_rate_multiplier": 0.5}
TUNING = {"type": "lora", "rank": 8, "alpha": "auto", "target_modules": ["q_proj"], "use_dora": True}
RESOLVED_OF_0005 = {
    "type": "lora", "learning_rate": 1e-4, "n_epochs": 3, "batch_size": 8, "per_device_batch_size": 8,
    "gradient_accumulation_steps": 1, "max_length": 512, "truncation": "truncate", "warmup_ratio": 0.03,
    "lr_scheduler_type": "cosine", "max_grad_norm": 1.0, "weight_decay": 0.0, "rank": 8, "alpha": 16.0, "dropout": 0.0,
    "target_modules": "all-linear", "use_rslora": False, "quantization": None,
}  # fmt: skip
EXPORT_OF_0005 = {
    "format": "awq",
    "models": [
        {"model": "ft:tiny:a:1", "sha256": "1" * 64, "weight": 0.5},
        {"model": "ft:tiny:b:2", "sha256": "2" * 64, "weight": 0.25},
    ],
    "combine": {"method": "ties", "density": 0.25, "rank": 4},
    "calibration_rows": 32, "group_size": 64, "rows": 16, "rows_from": "validation_file", "max_kl": 0.2, "force": True,
    "notes": ["a note"],
}  # fmt: skip
QUALITY = {
    "source": "adapter", "models": [{"name": "awq", "loss": 0.5, "kl": 0.1, "top1_agreement": 1.0}], "rows": 16,
    "tokens": 99, "rows_from": "validation_file",
}  # fmt: skip
GATE = {"max_kl": 0.2, "noise": None, "kl": 0.1, "passed": True, "forced": False}


def insert_job(connection: Connection, id: str, **values: Any) -> None:
    encoded = {k: json.dumps(v) if isinstance(v, dict) else v for k, v in values.items()}
    insert(connection, "jobs", **{**JOB, "id": id, "fingerprint": id, "parent_sha256": None, **encoded})


@pytest.fixture
def at_0005(old: Connection) -> Connection:
    at_revision(old, "0005")
    return old


def upgraded(connection: Connection, url: str) -> Store:
    connection.commit()
    store = Store.open(url)
    store.database.upgrade()
    return store


def test_what_a_fine_tuning_job_was_asked_for_and_became_is_kept(at_0005: Connection, url: str) -> None:
    method = {"type": "supervised", "supervised": {"hyperparameters": HYPERPARAMETERS}}
    insert_job(
        at_0005, "ftjob-1", kind="fine_tuning", method=method, tuning=TUNING, resolved=RESOLVED_OF_0005, suffix="s",
        chat_template="{{ x }}", fine_tuned_model="ft:tiny:s:1", trained_tokens=7, parent_sha256="d" * 64,
        job_metadata={"a": "b"}, idempotency_key="k", model="ft:tiny:parent:9",
        error={"code": "c", "message": "m", "param": None}, progress={"step": 2, "total_steps": 2, "train_loss": 0.5},
    )  # fmt: skip
    event(at_0005, 1, "metrics", {"step": 1})
    store = upgraded(at_0005, url)
    job = store.jobs.get("ftjob-1")
    assert job is not None
    request = request_of(job)
    assert (request.model, request.suffix, request.chat_template) == ("ft:tiny:parent:9", "s", "{{ x }}")
    assert request.hyperparameters.model_dump() == HYPERPARAMETERS | dict.fromkeys(
        ["beta", "compute_multiplier", "eval_interval", "eval_samples"], "auto"
    )
    assert (request.tuning.rank, request.tuning.alpha, request.tuning.use_dora) == (8, "auto", True)
    assert job.resolved is not None
    assert job.resolved.model_dump() == {
        **RESOLVED_OF_0005,
        "use_dora": False,
        "order_batch_size": None,
        "gradient_checkpointing": None,
        "torch_compile": None,
        "gpus": 1,
        "sharding": "none",
        "group_by_length": False,
        "lr_scheduler_kwargs": {},
        "dataloader_workers": 0,
        "method": "supervised",
        **dict.fromkeys(["beta", "loss_type", "label_smoothing", "desirable_weight", "undesirable_weight"]),
        **dict.fromkeys(["algorithm", "num_generations", "max_completion_length", "temperature", "sampling"]),
        **dict.fromkeys(["eval_samples", "eval_interval", "loraplus_lr_ratio", "neftune_alpha"]),
        **dict.fromkeys(["early_stopping", "best_checkpoint", "init"]),
        "packing": False,
    }
    assert job.result == FineTuningResult(model="ft:tiny:s:1", trained_tokens=7)
    assert (job.file("training_file"), job.file("validation_file")) == ("file-1", "file-2")
    assert (job.weights("parent"), job.metadata, job.idempotency_key) == (["d" * 64], {"a": "b"}, "k")
    assert job.error is not None
    assert job.progress is not None
    assert (job.error.code, job.progress.train_loss) == ("c", 0.5)
    assert [e.data for e in store.jobs.events("ftjob-1", after=None, limit=9)[0]] == [{"step": 1}]
    store.close()


def test_what_an_export_was_asked_for_and_became_is_kept(at_0005: Connection, url: str) -> None:
    insert_job(
        at_0005, "export-1", kind="export", tuning=EXPORT_OF_0005, resolved=EXPORT_OF_0005, suffix="x",
        model="ft:tiny:a:1", parent_sha256="1" * 64, fine_tuned_model="ft:tiny:x:1",
        report={"quality": QUALITY, "gate": GATE, "bytes": 5, "details": {"merge": {"seconds": 1.0}}},
    )  # fmt: skip
    whole = {**EXPORT_OF_0005, "models": [], "combine": None, "format": "awq"}
    insert_job(at_0005, "export-2", kind="export", tuning=whole, training_file="", parent_sha256="3" * 64)
    store = upgraded(at_0005, url)
    job, of_whole = store.jobs.get("export-1"), store.jobs.get("export-2")
    assert job is not None
    assert of_whole is not None
    shown = ExportObject.of(job)
    assert [(source.model, source.weight) for source in shown.models] == [
        ("ft:tiny:a:1", 0.5),
        ("ft:tiny:b:2", 0.25),
    ]
    assert shown.combine is not None
    assert (shown.combine.method, shown.combine.density, shown.combine.rank) == ("ties", 0.25, 4)
    assert (shown.format, shown.calibration_rows, shown.group_size, shown.force) == ("awq", 32, 64, True)
    assert (shown.calibration_file, shown.validation_file) == ("file-1", "file-2")
    assert (shown.exported_model, shown.suffix, shown.notes) == ("ft:tiny:x:1", "x", ["a note"])
    assert shown.report is not None
    assert (shown.report.bytes, shown.report.quality.tokens) == (5, 99)
    assert job.weights("source") == ["1" * 64, "2" * 64]
    assert (of_whole.weights("source"), of_whole.file("calibration_file")) == (["3" * 64], None)
    assert job.resolved is None
    store.close()


def test_jobs_go_on_in_the_phase_that_they_were_in(at_0005: Connection, url: str) -> None:
    states = ("validating_files", "queued", "running", "paused", "failed")
    for state in states:
        device = "cuda:0" if state == "running" else None
        insert_job(at_0005, f"ftjob-{state}", state=state, device=device)
    insert_job(at_0005, "ftjob-checked", state="running")
    insert(at_0005, "models", **{**MODEL, "job_id": "ftjob-checked", "state": "checking"})
    store = upgraded(at_0005, url)
    jobs = {state: store.jobs.get(f"ftjob-{state}") for state in (*states, "checked")}
    assert all(jobs.values())
    phases = {state: job.phase for state, job in jobs.items() if job}
    waiting = dict.fromkeys(("validating_files", "queued", "paused"), JobPhase.PREPARE)
    assert phases == {**waiting, "running": JobPhase.RUN, "failed": JobPhase.RUN, "checked": JobPhase.CHECK}
    assert {state: job.devices for state, job in jobs.items() if job and job.devices} == {
        "running": ("cuda:0",)
    }
    assert store.jobs.claim("cuda:0", ["tiny"]) is None, "it is held"
    store.jobs.release("ftjob-running")
    claimed = store.jobs.claim("cuda:0", ["tiny"])
    assert claimed is not None
    assert (claimed.id, claimed.state) == ("ftjob-queued", JobState.RUNNING)
    with pytest.raises(DBAPIError, match="illegal job move"), store.database.begin() as connection:
        connection.execute(text("UPDATE jobs SET state = 'queued' WHERE id = 'ftjob-failed'"))
    store.close()
