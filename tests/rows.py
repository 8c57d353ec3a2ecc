"""Minimal rows for the store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel
from sqlalchemy import insert

from postgres import missing
from tunewright.kinds import EXPORT, FINE_TUNING
from tunewright.kinds.export.models import ExportRequest
from tunewright.kinds.fine_tuning.models import FineTuningRequest
from tunewright.plan.defaults import Resolved, resolve
from tunewright.plan.options import HyperparameterOptions, TuningOptions
from tunewright.store.records import EngineInfo, Job, JobInput, NewJob
from tunewright.store.store import Store
from tunewright.store.tables import job_devices

BACKENDS = ["sqlite"] if missing() else ["sqlite", "postgresql"]

FILE: dict[str, Any] = {
    "id": "file-1", "filename": "train.jsonl", "purpose": "fine-tune", "size": 1, "sha256": "0" * 64,
    "created_at": 1.0,
}  # fmt: skip
"""The training file of `new_job`: there is no job without its file."""
PRODUCT: dict[str, Any] = {
    "name": "ft:tiny::1", "kind": "adapter", "sha256": "a" * 64, "base": "tiny", "base_fingerprint": "b" * 64,
    "checkpoint_step": None, "method": "lora", "rank": 8, "alpha": 16.0, "target_modules": ["q_proj"],
    "chat_template": None, "bytes": 10, "desired": "loaded",
}  # fmt: skip
Publish = Callable[..., bool]
"""The fixture `publish_model`: rows as changes to `PRODUCT`, and the job that they belong to."""

_NEW = ("base", "seed", "metadata", "idempotency_key", "fingerprint")


def create_job(
    store: Store,
    *,
    model: str | None = None,
    training_file: str = FILE["id"],
    further_files: Sequence[str] = (),
    validation_file: str | None = None,
    parent_sha256: str | None = None,
    request: dict[str, Any] | None = None,
    device: str | None = None,
    repeat_seconds: float = 0.0,
    **columns: Any,
) -> Job:
    """A fine-tuning job on base `tiny`. `request` are fields of its request, `device` is one that it holds, and
    `columns` are further columns of its row."""
    new = {"base": "tiny", "seed": 1, "fingerprint": "f"} | {k: columns.pop(k) for k in _NEW if k in columns}
    files = [("training_file", training_file), *(("training_file", id) for id in further_files)]
    files.append(("validation_file", validation_file))
    inputs = [JobInput(role, file_id=id) for role, id in files if id]
    inputs += [JobInput("parent", sha256=parent_sha256)] if parent_sha256 else []
    asked = FineTuningRequest(model=model or new["base"], **(request or {}))
    job = NewJob(kind=FINE_TUNING.name, request=asked, inputs=tuple(inputs), **new)
    if isinstance(columns.get("resolved"), BaseModel):
        columns["resolved"] = columns["resolved"].model_dump()
    created = store.jobs.create(job, repeat_seconds=repeat_seconds, **columns)
    if device is not None:
        with store.database.begin() as connection:
            connection.execute(insert(job_devices).values(device=device, job_id=created.id))
    return store.jobs.get(created.id) or created


def create_export(store: Store, *sources: tuple[str, str], **columns: Any) -> Job:
    """An export of adapters on base `tiny`: their names and hashes."""
    request = ExportRequest(
        model=sources[0][0],
        format="merged",
        models=[{"model": name} for name, _ in sources],
        rows=8,
        rows_from="probes",
    )
    inputs = tuple(JobInput("source", sha256=sha256) for _, sha256 in sources)
    new = NewJob(kind=EXPORT.name, base="tiny", request=request, seed=1, inputs=inputs, fingerprint="f")
    return store.jobs.create(new, **columns)


def resolved(type: str = "lora") -> Resolved:
    """The resolved options of a fine-tuning job."""
    return resolve(
        tuning=TuningOptions(type=type),
        hyperparameters=HyperparameterOptions(),
        rows=32,
        context=1024,
        max_rank=64,
        device="cpu",
    )


def engine_info(**changes: Any) -> EngineInfo:
    """The information of an engine on the base of `PRODUCT`."""
    least = {"device": "cpu", "internal_name": "base-1", "fingerprint": PRODUCT["base_fingerprint"]}
    return EngineInfo(**{**least, **changes})
