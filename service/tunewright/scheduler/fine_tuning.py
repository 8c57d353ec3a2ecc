"""Fine-tuning jobs: their data, what their trainer is told, and their products."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunewright.config import Settings
from tunewright.jobs.folder import JobFolder, JobSpec
from tunewright.plan.defaults import resolve
from tunewright.registry.bases import BaseInfo
from tunewright.registry.workspace import Workspace
from tunewright.rows.formats import DataFormat, FileReport, InvalidData, check_file
from tunewright.scheduler.publishing import publish_products
from tunewright.scheduler.served import trusts
from tunewright.scheduler.work import JobRefused
from tunewright.store.records import Job
from tunewright.store.store import Store


class FineTuning:
    """The `Work` of these jobs."""

    module = "tunewright.trainer"
    path = "/v1/fine_tuning/jobs"
    process = "trainer"
    saves = "its last checkpoint"
    on_kill = "lower batch_size or max_length, or use type qlora"

    def __init__(self, settings: Settings, store: Store, workspace: Workspace, *, on_gpu: bool) -> None:
        self._settings = settings
        self._store = store
        self._workspace = workspace
        self._device = "cuda" if on_gpu else "cpu"

    def validate(self, job: Job, base: BaseInfo) -> tuple[dict[str, Any], str]:
        parent = self._store.models.by_sha256(job.parent_sha256) if job.parent_sha256 else None
        if parent is not None and parent.base_fingerprint != base.fingerprint:
            raise JobRefused(
                "base_changed",
                f"{job.model} was trained on another model that was named {job.base} then",
                "model",
            )
        report = self._check(job, base, "training_file", job.training_file)
        if job.validation_file is not None:
            self._check(job, base, "validation_file", job.validation_file)
        method = job.method.get(job.method.get("type", "supervised")) or {}
        resolved = resolve(
            tuning=job.tuning,
            hyperparameters=method.get("hyperparameters") or {},
            rows=report.rows,
            context=base.context,
            max_rank=self._max_rank(job.base),
            device=self._device,
        )
        summary = f"Files validated ({report.rows} rows, {report.format.value})"
        if resolved.use_dora:
            summary += ". vLLM serves no DoRA: the adapter will be merge_only; merge it to serve it (POST /v1/exports)"
        return resolved.as_dict(), summary

    def spec(self, job: Job, base: BaseInfo) -> JobSpec:
        assert job.device is not None and job.resolved is not None
        parent = self._workspace.artifacts.local(job.parent_sha256) if job.parent_sha256 else None
        is_full = job.resolved["type"] == "full"
        return JobSpec(
            job_id=job.id,
            base_name=base.name,
            base_hub_id=base.hub_id,
            base_path=str(parent if parent and is_full else base.path),
            trust_remote_code=trusts(self._settings, self._store, base.name),
            parent_adapter=str(parent) if parent and not is_full else None,
            training_file=str(self._workspace.file(job.training_file)),
            validation_file=str(self._workspace.file(job.validation_file)) if job.validation_file else None,
            chat_template=job.chat_template,
            seed=job.seed,
            device=job.device.split(":")[0],
            tuning=job.resolved,
        )

    def publish(self, job: Job, base: BaseInfo, folder: JobFolder) -> None:
        result = folder.read_result()
        assert result is not None, "only what has succeeded is published"
        check = self._settings.parity == "on"
        publish_products(self._store, self._workspace, job, base, folder, result, check_adapters=check)

    def _max_rank(self, base: str) -> int:
        """That the engine of the base serves."""
        found = self._store.deployments.get(base)
        return int(found[0].options["max_lora_rank"]) if found else self._settings.max_lora_rank

    def _check(self, job: Job, base: BaseInfo, param: str, file: str) -> FileReport:
        return check_data(
            self._workspace.file(file), param, job.chat_template or base.chat_template, base.name
        )


def check_data(path: Path, param: str, chat_template: str | None, base: str) -> FileReport:
    """Of a file of rows that are to go through `chat_template`. Raises JobRefused."""
    try:
        report = check_file(path)
    except InvalidData as error:
        raise JobRefused(f"invalid_{param}", str(error), param) from error
    if report.format is DataFormat.CHAT and not chat_template:
        raise JobRefused(
            f"invalid_{param}",
            f"base {base} has no chat template, so it cannot train on chat data: give the job a `chat_template`, or "
            "use prompt/completion rows",
            param,
        )
    return report
