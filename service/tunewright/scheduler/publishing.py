"""Moves a finished job's products into the registry and lists them, all or none."""

from __future__ import annotations

import csv
import hashlib
import io
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tunewright.ids import model_name, result_file_id
from tunewright.jobs.folder import JobFolder, JobResult
from tunewright.registry.adapter_check import CONFIG_FILE, WEIGHTS_FILE, check_numbers
from tunewright.registry.bases import BaseInfo
from tunewright.registry.data_folder import (
    DataFolder,
    adapter_config,
    adapter_sha256,
    folder_size,
    model_sha256,
)
from tunewright.registry.mergeable import merge_only
from tunewright.store.records import Job, Lineage
from tunewright.store.states import Desired, ModelState
from tunewright.store.store import Store


def publish_products(
    store: Store,
    data: DataFolder,
    job: Job,
    base: BaseInfo,
    folder: JobFolder,
    result: JobResult,
    *,
    check_adapters: bool = False,
) -> None:
    """The final adapter (to be loaded) and its epochs' checkpoints (to be loaded when asked for), or the full model.

    With `check_adapters`, adapters wait for the parity gate, and the job waits for the verdict on its final one. Safe
    to repeat after a crash: artifacts are named by their content, and the listing is one transaction. Raises
    InvalidAdapter where a weight is NaN or infinite: then nothing is listed.
    """
    assert job.resolved is not None
    common = {
        "base": base.name,
        "base_fingerprint": base.fingerprint,
        "method": job.resolved["type"],
        "chat_template": job.chat_template,
    }
    name = model_name(job.base, job.suffix, job.id)
    lineage = _lineage(store, job, result.metrics)
    with ExitStack() as kept:
        if job.resolved["type"] == "full":
            common["lineage"] = asdict(lineage)
            products = [model_row(data, kept, folder.model, name, common)]
        else:
            common["state"] = ModelState.CHECKING if check_adapters else ModelState.READY
            products = [
                adapter_row(data, kept, folder.adapter, name, None, {**common, "lineage": asdict(lineage)})
            ]
            for step in sorted(result.checkpoints):
                path = folder.checkpoints / f"step-{step}"
                if (path / "complete.json").is_file():
                    checkpoint = model_name(job.base, job.suffix, job.id, step)
                    made_from = asdict(replace(lineage, metrics=result.checkpoints[step]))
                    products.append(
                        adapter_row(data, kept, path, checkpoint, step, {**common, "lineage": made_from})
                    )
        kept.enter_context(data.keeping(result_file_id(job.id)))
        store.models.publish(
            products,
            job_id=job.id,
            trained_tokens=result.trained_tokens,
            checkpoint_metrics=result.checkpoints,
            result_file=_metrics_file(store, data, job),
        )


def _lineage(store: Store, job: Job, metrics: dict[str, float]) -> Lineage:
    training, validation = (
        store.files.get(id) if id is not None else None for id in (job.training_file, job.validation_file)
    )
    return Lineage(
        parent_sha256=job.parent_sha256,
        training_file=job.training_file,
        training_sha256=training.sha256 if training else None,
        validation_file=job.validation_file,
        validation_sha256=validation.sha256 if validation else None,
        seed=job.seed,
        metrics=metrics or None,
    )


_COLUMNS = (
    "step", "train_loss", "train_mean_token_accuracy", "valid_loss", "valid_mean_token_accuracy", "learning_rate",
    "grad_norm", "tokens_per_second",
)  # fmt: skip


def _metrics_file(store: Store, data: DataFolder, job: Job) -> dict[str, Any]:
    """OpenAI's result file: the metrics of every step, as CSV. Written under its name; returns its row."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    after, more = None, True
    while more:
        events, more = store.jobs.events(job.id, after=after, limit=1000, ascending=True)
        writer.writerows(event.data for event in events if event.type == "metrics" and event.data)
        after = events[-1].id if events else None
    content = text.getvalue().encode()
    id = result_file_id(job.id)
    temporary = data.tmp / id
    temporary.write_bytes(content)
    data.keep_file(temporary, id)
    return {
        "id": id,
        "filename": "step_metrics.csv",
        "purpose": "fine-tune-results",
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def model_row(
    data: DataFolder, kept: ExitStack, source: Path, name: str, common: dict[str, Any]
) -> dict[str, Any]:
    """Publish the folder of a whole model; `kept` holds it until its row is written."""
    sha256 = model_sha256(source)
    kept.enter_context(data.keeping(sha256))
    path = data.publish(source, sha256)
    return {
        **common, "name": name, "kind": "full", "sha256": sha256, "bytes": folder_size(path),
        "desired": Desired.UNLOADED, "checkpoint_step": None, "rank": None, "alpha": None, "target_modules": None,
    }  # fmt: skip


def adapter_row(
    data: DataFolder, kept: ExitStack, source: Path, name: str, step: int | None, common: dict[str, Any]
) -> dict[str, Any]:
    """Publish a PEFT folder; `kept` holds it until its row is written. Raises InvalidAdapter where a number is NaN or
    infinite."""
    with tempfile.TemporaryDirectory(prefix="adapter-", dir=data.tmp) as temporary:
        only = Path(temporary)
        for file in (CONFIG_FILE, WEIGHTS_FILE):
            (only / file).hardlink_to(source / file)
        check_numbers(only / WEIGHTS_FILE)
        sha256 = adapter_sha256(only)
        kept.enter_context(data.keeping(sha256))
        path = data.publish(only, sha256)
    config = adapter_config(path)
    modules = config["target_modules"]
    if merge_only(config):
        common = {**common, "state": ModelState.MERGE_ONLY}
    is_wanted = step is None and not merge_only(config)
    return {
        **common,
        "name": name,
        "kind": "adapter",
        "sha256": sha256,
        "bytes": folder_size(path),
        "desired": Desired.LOADED if is_wanted else Desired.UNLOADED,
        "checkpoint_step": step,
        "rank": config["r"],
        "alpha": float(config["lora_alpha"]),
        "target_modules": sorted(modules) if isinstance(modules, list) else [modules],
    }
