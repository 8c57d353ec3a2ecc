"""Exports: adapters are combined, merged into their base and quantized, and the loss of quality is measured."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

from pydantic import BaseModel

from tunewright.engine.trust import trusts_code
from tunewright.export.folder import Calibration, Combine, ExportSpec, Rows, SourceAdapter
from tunewright.ids import model_name
from tunewright.jobs.folder import JobFolder
from tunewright.kinds.data import DataOptions, check_data
from tunewright.kinds.export.models import (
    CALIBRATION_FILE,
    SOURCE,
    VALIDATION_FILE,
    ExportReport,
    ExportRequest,
)
from tunewright.kinds.kind import JobRefused, Kind, Service, Validated, fetch_weights
from tunewright.kinds.products import adapter_row, lineage_of_files, model_row, state_of_new_adapter
from tunewright.kinds.rows import shares_of, sources_of
from tunewright.registry.bases import BaseInfo
from tunewright.rows.formats import FileReport
from tunewright.store.records import Job, Lineage
from tunewright.store.states import ModelMethod, Source


class Export(Kind):
    name = "export"
    id_prefix, event_prefix = "export", "exportevent"
    noun = "export"
    request, report = ExportRequest, ExportReport
    path = "/v1/exports"
    module, process = "tunewright.export", "export"
    saves = "its last complete step"
    on_kill = (
        "an export needs memory for about one layer of the model in float32, and for the results on its rows"
    )

    def name_of_input(self, request: BaseModel, role: str, position: int) -> str:
        assert isinstance(request, ExportRequest)
        return request.models[position].model if request.models else request.model

    def validate(self, service: Service, job: Job, base: BaseInfo) -> Validated:
        request = request_of(job)
        fetch_weights(service, job, SOURCE)
        fingerprints = {
            model.base_fingerprint
            for sha256 in job.weights(SOURCE)
            if (model := service.store.of(job.project).models.by_sha256(sha256)) is not None
        }
        if fingerprints - {base.fingerprint}:
            raise JobRefused(
                "base_changed",
                f"{request.model} was trained on another model, which was named {job.base} then",
                "model",
            )
        template = request.chat_template or base.chat_template
        data = {CALIBRATION_FILE: request.calibration_data, VALIDATION_FILE: request.validation_data}
        checked = [
            f"{role} {_checked(service, id, role, template, base.name, data[role]).rows} rows"
            for role in (CALIBRATION_FILE, VALIDATION_FILE)
            for id in job.files(role)
        ]
        return Validated(None, f"Files validated ({', '.join(checked) or 'none are needed'})")

    def spec(self, service: Service, job: Job, base: BaseInfo) -> ExportSpec:
        request, settings = request_of(job), service.settings
        assert job.device is not None, "only jobs that hold a device are launched"
        sources = job.weights(SOURCE)
        adapters = [
            SourceAdapter(
                model=source.model,
                weight=source.weight,
                sha256=sha256,
                path=str(service.workspace.artifacts.local(sha256)),
                lineage=_lineage_of_source(service, source.model),
            )
            for source, sha256 in zip(request.models, sources, strict=bool(request.models))
        ]
        full_model = service.workspace.artifacts.local(sources[0]) if sources and not adapters else None
        files = service.workspace
        calibration = shares_of(job.files(CALIBRATION_FILE), request.calibration_shares)
        validation = shares_of(job.files(VALIDATION_FILE), request.validation_shares)
        has_template = bool(request.chat_template or base.chat_template)
        return ExportSpec(
            job_id=job.id,
            model=_name(job),
            format=request.format,
            source=request.model,
            base_name=base.name,
            base_hub_id=base.hub_id,
            base_path=str(full_model or base.path),
            trust_remote_code=trusts_code(settings.models, service.store, base.name),
            adapters=adapters,
            combine=Combine(**request.combine.model_dump(), max_rank=settings.serving.max_lora_rank)
            if request.combine
            else None,
            chat_template=request.chat_template,
            seed=job.seed,
            device=job.device.split(":")[0],
            calibration=Calibration(
                files=sources_of(
                    calibration,
                    files,
                    request.calibration_data.reading(has_template, "training"),
                    service.store.files.get,
                ),
                rows=request.calibration_rows or 0,
                group_size=request.group_size or 0,
            )
            if calibration
            else None,
            rows=Rows(
                files=sources_of(
                    validation,
                    files,
                    request.validation_data.reading(has_template, "held_out"),
                    service.store.files.get,
                ),
                rows_from=request.rows_from,
                count=request.rows,
            ),
            max_merged_kl=request.max_kl if request.format == "merged" else settings.exports.max_merged_kl,
            max_awq_kl=request.max_kl if request.format == "awq" else None,
            force=request.force,
            facts={"export": job.id, **asdict(_lineage(service, job))},
        )

    def publish(self, service: Service, job: Job, base: BaseInfo, folder: JobFolder) -> None:
        request = request_of(job)
        outcome = folder.read_outcome()
        assert outcome is not None, "only what has succeeded is published"
        common = {
            "base": base.name,
            "base_fingerprint": base.fingerprint,
            "chat_template": request.chat_template,
            "source": Source.EXPORT,
            "lineage": asdict(_lineage(service, job)),
        }
        with ExitStack() as kept:
            if request.format == "adapter":
                common |= {"method": ModelMethod.LORA, "state": state_of_new_adapter(service.settings.parity)}
                product = adapter_row(
                    service.workspace.artifacts, kept, folder.adapter, _name(job), None, common
                )
            else:
                common["method"] = ModelMethod(request.format)
                product = model_row(service.workspace.artifacts, kept, folder.model, _name(job), common)
            service.store.models.publish([product], job_id=job.id, report=outcome.report)


def request_of(job: Job) -> ExportRequest:
    assert isinstance(job.request, ExportRequest), f"{job.id} is no export"
    return job.request


def _checked(
    service: Service, id: str, role: str, template: str | None, base: str, data: DataOptions
) -> FileReport:
    return check_data(service.workspace.file(id), role, template, base, data, method=None)


def _lineage_of_source(service: Service, name: str) -> dict[str, Any]:
    """The known properties of an adapter, for the model card."""
    model = service.store.models.get(name)
    if model is None:
        return {}
    known = {"method": model.method, "rank": model.rank, "alpha": model.alpha, "job": model.job_id}
    known |= asdict(model.lineage) if model.lineage else {}
    return {key: value for key, value in known.items() if value is not None}


def _lineage(service: Service, job: Job) -> Lineage:
    request, sources = request_of(job), job.weights(SOURCE)
    adapters = [
        {"model": source.model, "sha256": sha256, "weight": source.weight}
        for source, sha256 in zip(request.models, sources, strict=bool(request.models))
    ]
    return replace(
        lineage_of_files(service.store, job.file(CALIBRATION_FILE), job.file(VALIDATION_FILE)),
        parent_sha256=sources[0] if sources else None,
        seed=job.seed,
        origin=request.model,
        models=adapters or None,
    )


def _name(job: Job) -> str:
    return model_name(job.base, request_of(job).suffix, job.id)
