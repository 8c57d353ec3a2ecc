"""Exports: their data, what their process is told, and their products."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from tunewright.config import Settings
from tunewright.export.folder import (
    Calibration,
    Combine,
    ExportSpec,
    Rows,
    SourceAdapter,
)
from tunewright.ids import model_name
from tunewright.jobs.folder import JobFolder
from tunewright.registry.bases import BaseInfo
from tunewright.registry.workspace import Workspace
from tunewright.scheduler.fine_tuning import check_data
from tunewright.scheduler.publishing import adapter_row, model_row
from tunewright.scheduler.served import trusts
from tunewright.scheduler.work import JobRefused
from tunewright.store.records import Job, Lineage
from tunewright.store.states import ModelState, Source
from tunewright.store.store import Store


class Exports:
    """The `Work` of these jobs. `job.tuning` is an export as `api.exporting` has checked it."""

    module = "tunewright.export"
    path = "/v1/exports"
    process = "export"
    saves = "what is done of it"
    on_kill = "an export needs about a layer of the model in float32, and what it computes of its rows"

    def __init__(self, settings: Settings, store: Store, workspace: Workspace) -> None:
        self._settings = settings
        self._store = store
        self._workspace = workspace

    def validate(self, job: Job, base: BaseInfo) -> tuple[dict[str, Any], str]:
        fingerprints = {
            model.base_fingerprint
            for sha256 in _sources(job)
            if (model := self._store.models.by_sha256(sha256)) is not None
        }
        if fingerprints - {base.fingerprint}:
            raise JobRefused(
                "base_changed",
                f"{job.model} was trained on another model that was named {job.base} then",
                "model",
            )
        template = job.chat_template or base.chat_template
        told = []
        for param, file in (
            ("calibration_file", job.training_file),
            ("validation_file", job.validation_file),
        ):
            if file:
                report = check_data(self._workspace.file(file), param, template, base.name)
                told.append(f"{param} {report.rows} rows")
        return job.tuning, f"Files validated ({', '.join(told) or 'none are needed'})"

    def spec(self, job: Job, base: BaseInfo) -> ExportSpec:
        assert job.device is not None and job.resolved is not None
        asked = job.resolved
        adapters = [
            SourceAdapter(
                **source,
                path=str(self._workspace.artifacts.local(source["sha256"])),
                lineage=self._lineage_of(source["model"]),
            )
            for source in asked["models"]
        ]
        base_path = base.path
        if job.parent_sha256 is not None and not adapters:  # a whole model that was made here
            base_path = self._workspace.artifacts.local(job.parent_sha256)
        return ExportSpec(
            job_id=job.id,
            model=_name(job),
            format=asked["format"],
            source=job.model,
            base_name=base.name,
            base_hub_id=base.hub_id,
            base_path=str(base_path),
            trust_remote_code=trusts(self._settings, self._store, base.name),
            adapters=adapters,
            combine=Combine(**asked["combine"], max_rank=self._settings.max_lora_rank)
            if asked["combine"]
            else None,
            chat_template=job.chat_template,
            seed=job.seed,
            device=job.device.split(":")[0],
            calibration=Calibration(
                file=str(self._workspace.file(job.training_file)),
                rows=asked["calibration_rows"],
                group_size=asked["group_size"],
            )
            if asked["format"] == "awq"
            else None,
            rows=Rows(
                file=str(self._workspace.file(job.validation_file)) if job.validation_file else None,
                rows_from=asked["rows_from"],
                count=asked["rows"],
            ),
            max_merged_kl=asked["max_kl"] if asked["format"] == "merged" else self._settings.max_merged_kl,
            max_awq_kl=asked["max_kl"] if asked["format"] == "awq" else None,
            force=asked["force"],
            facts={"export": job.id, **asdict(self._lineage(job))},
        )

    def publish(self, job: Job, base: BaseInfo, folder: JobFolder) -> None:
        outcome = folder.read_outcome()
        assert outcome is not None and job.resolved is not None, "only what has succeeded is published"
        common = {
            "base": base.name,
            "base_fingerprint": base.fingerprint,
            "chat_template": job.chat_template,
            "source": Source.EXPORT,
            "lineage": asdict(self._lineage(job)),
        }
        with ExitStack() as kept:
            if job.resolved["format"] == "adapter":
                checked = self._settings.parity == "on"
                common |= {
                    "method": "lora",
                    "state": ModelState.CHECKING if checked else ModelState.READY,
                }
                product = adapter_row(
                    self._workspace.artifacts, kept, folder.adapter, _name(job), None, common
                )
            else:
                common["method"] = job.resolved["format"]
                product = model_row(self._workspace.artifacts, kept, folder.model, _name(job), common)
            self._store.models.publish([product], job_id=job.id, report=outcome.report)

    def _lineage_of(self, name: str) -> dict[str, Any]:
        model = self._store.models.get(name)
        if model is None:
            return {}
        told = {"method": model.method, "rank": model.rank, "alpha": model.alpha, "job": model.job_id}
        told |= asdict(model.lineage) if model.lineage else {}
        return {key: value for key, value in told.items() if value is not None}

    def _lineage(self, job: Job) -> Lineage:
        training, validation = (
            self._store.files.get(id) if id else None for id in (job.training_file, job.validation_file)
        )
        return Lineage(
            parent_sha256=job.parent_sha256,
            training_file=job.training_file or None,
            training_sha256=training.sha256 if training else None,
            validation_file=job.validation_file,
            validation_sha256=validation.sha256 if validation else None,
            seed=job.seed,
            origin=job.model,
            models=job.tuning["models"] or None,
        )


def _sources(job: Job) -> set[str]:
    named = {source["sha256"] for source in job.tuning["models"]}
    return named | ({job.parent_sha256} if job.parent_sha256 else set())


def _name(job: Job) -> str:
    return model_name(job.base, job.suffix, job.id)
