"""Moves a finished job's products into the registry and lists them, all or none."""

from __future__ import annotations

import csv
import hashlib
import io
import tempfile
from pathlib import Path
from typing import Any

from tunewright.ids import model_name, result_file_id
from tunewright.registry.bases import BaseInfo
from tunewright.registry.data_folder import (
    DataFolder,
    adapter_config,
    adapter_sha256,
    folder_size,
    model_sha256,
)
from tunewright.store.records import Job
from tunewright.store.store import Store
from tunewright.trainer.folder import JobFolder, JobResult

_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def publish_products(
    store: Store, data: DataFolder, job: Job, base: BaseInfo, folder: JobFolder, result: JobResult
) -> None:
    """The final adapter (to be loaded) and its epochs' checkpoints (to be loaded when asked for), or the full model.

    Safe to repeat after a crash: artifacts are named by their content, and the listing is one transaction.
    """
    assert job.resolved is not None
    common = {
        "base": base.name,
        "base_fingerprint": base.fingerprint,
        "method": job.resolved["type"],
        "chat_template": job.chat_template,
    }
    name = model_name(job.base, job.suffix, job.id)
    if job.resolved["type"] == "full":
        sha256 = model_sha256(folder.model)
        path = data.publish(folder.model, sha256)
        products = [
            {
                **common, "name": name, "kind": "full", "sha256": sha256, "bytes": folder_size(path),
                "desired": "unloaded", "checkpoint_step": None, "rank": None, "alpha": None,
                "target_modules": None,
            }
        ]  # fmt: skip
    else:
        products = [_adapter(data, folder.adapter, name, None, common)]
        for step in sorted(result.checkpoints):
            path = folder.checkpoints / f"step-{step}"
            if (path / "complete.json").is_file():
                products.append(
                    _adapter(data, path, model_name(job.base, job.suffix, job.id, step), step, common)
                )
    store.models.publish(
        products,
        job_id=job.id,
        trained_tokens=result.trained_tokens,
        checkpoint_metrics=result.checkpoints,
        result_file=_metrics_file(store, data, job),
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


def _adapter(
    data: DataFolder, source: Path, name: str, step: int | None, common: dict[str, Any]
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="adapter-", dir=data.tmp) as temporary:
        only = Path(temporary)
        for file in _ADAPTER_FILES:
            (only / file).hardlink_to(source / file)
        sha256 = adapter_sha256(only)
        path = data.publish(only, sha256)
    config = adapter_config(path)
    modules = config["target_modules"]
    return {
        **common,
        "name": name,
        "kind": "adapter",
        "sha256": sha256,
        "bytes": folder_size(path),
        "desired": "loaded" if step is None else "unloaded",
        "checkpoint_step": step,
        "rank": config["r"],
        "alpha": float(config["lora_alpha"]),
        "target_modules": sorted(modules) if isinstance(modules, list) else [modules],
    }
