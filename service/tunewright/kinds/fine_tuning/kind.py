"""Fine-tuning jobs: a base or an earlier model is trained on a file of rows."""

from __future__ import annotations

from pydantic import BaseModel

from tunewright.engine.trust import trusts_code
from tunewright.errors import InvalidRequest
from tunewright.jobs.folder import JobFolder, Outcome
from tunewright.kinds.fine_tuning.evaluated import JUDGE, TrainingReport
from tunewright.kinds.fine_tuning.evaluating import evaluate
from tunewright.kinds.fine_tuning.grading_models import (
    models_that_grade,
    told_of_models,
    weights_that_grade,
)
from tunewright.kinds.fine_tuning.mixing import check_files, weights_of
from tunewright.kinds.fine_tuning.models import (
    GRADING_MODEL,
    PARENT,
    VALIDATION_FILE,
    FineTuningRequest,
    FineTuningResult,
)
from tunewright.kinds.fine_tuning.parents import fixed_by
from tunewright.kinds.fine_tuning.planning import (
    decided_checkpointing,
    finished_jobs,
    machine_beside_engines,
    rates_of,
    refuse_quantized,
    warnings_of,
)
from tunewright.kinds.fine_tuning.publishing import publish_products
from tunewright.kinds.fine_tuning.reporting import (
    has_tensorboard,
    keys_of,
    mlflow_run,
    reported,
    why_not_all,
)
from tunewright.kinds.fine_tuning.sampling import engine_sampling, with_sampling
from tunewright.kinds.kind import JobRefused, Kind, Service, Validated, fetch_weights
from tunewright.plan.defaults import Resolved, resolve
from tunewright.plan.fitting import with_less_memory
from tunewright.plan.methods import METHODS
from tunewright.plan.stopping import MARGIN
from tunewright.registry.bases import BaseInfo
from tunewright.store.records import Job
from tunewright.trainer.spec import FurtherFile, TrainingResult, TrainingSpec


class FineTuning(Kind):
    name = "fine_tuning"
    id_prefix, event_prefix = "ftjob", "ftevent"
    noun, product = "fine-tuning job", "fine-tuned model"
    request, resolved, result = FineTuningRequest, Resolved, FineTuningResult
    report = TrainingReport
    path = "/v1/fine_tuning/jobs"
    module, process = "tunewright.trainer", "trainer"
    saves = "its last checkpoint"
    follows_with = PARENT
    on_kill = "lower batch_size or max_length, or use type qlora"

    def devices_of(self, resolved: BaseModel | None) -> int:
        return resolved.gpus if isinstance(resolved, Resolved) else 1

    def validate(self, service: Service, job: Job, base: BaseInfo) -> Validated:
        request = request_of(job)
        fetch_weights(service, job, PARENT)
        parents = job.weights(PARENT)
        parent = service.store.of(job.project).models.by_sha256(parents[0]) if parents else None
        if parent is not None and parent.base_fingerprint != base.fingerprint:
            raise JobRefused(
                "base_changed",
                f"{request.model} was trained on another model, which was named {job.base} then",
                "model",
            )
        try:
            refuse_quantized(base)
        except InvalidRequest as error:
            raise JobRefused("unsupported_base", str(error), error.param) from error
        template = request.chat_template or base.chat_template
        files = check_files(service, job, request, template, base.name)
        device = "cuda" if service.on_gpu else "cpu"
        tuning = request.tuning
        if job.after is not None and parent is not None:
            tuning = fixed_by(service.workspace.artifacts, parent, tuning, request.method)
        resolved = resolve(
            tuning=tuning,
            hyperparameters=request.hyperparameters,
            rows=files.rows,
            context=base.context,
            max_rank=_max_rank(service, job.base),
            device=device,
            method=request.method,
        )
        _check_generation(resolved, files.rows)
        if resolved.best_checkpoint == MARGIN and len(files.labels) == 1:
            raise JobRefused(
                "invalid_validation_file",
                f"all held-out answers are {'good' if True in files.labels else 'bad'}, and {MARGIN} compares good "
                "ones with bad ones: hold out both, or go by another metric",
                "validation_file",
            )
        resolved, where = with_sampling(service.store, job.base, resolved, request.tuning.sampling)
        summary = f"Files validated ({files.summary}){where}{told_of_models(request)}"
        if service.on_gpu and request.tuning.gradient_checkpointing == "auto":
            machine = machine_beside_engines(service.settings, service.store, service.devices)
            resolved, why = decided_checkpointing(base, resolved, machine)
            summary += f". gradient_checkpointing is {why}"
        if resolved.use_dora and not METHODS[request.method].scores:
            summary += ". vLLM serves no DoRA: the adapter will be merge_only; merge it to serve it (POST /v1/exports)"
        unreported = why_not_all(service.settings, request)
        told = (("integration_inactive", unreported),) if unreported else ()
        warnings = (*told, *files.warnings, *warnings_of(base, resolved, files.rows, device))
        return Validated(resolved, summary, warnings)

    def spec(self, service: Service, job: Job, base: BaseInfo) -> TrainingSpec:
        request, resolved = request_of(job), resolved_of(job)
        assert job.device is not None, "only jobs that hold a device are launched"
        parents = job.weights(PARENT)
        parent = service.workspace.artifacts.local(parents[0]) if parents else None
        weights, validation = weights_of(job, request), job.file(VALIDATION_FILE)
        training, *further = weights
        is_full = resolved.type == "full"
        has_template = bool(request.chat_template or base.chat_template)
        if request.data.validation_share:
            validation = training
        hashes = {
            id: file.sha256 for id in (*weights, validation) if id and (file := service.store.files.get(id))
        }
        return TrainingSpec(
            job_id=job.id,
            base_name=base.name,
            base_hub_id=base.hub_id,
            base_path=str(parent if parent and is_full else base.path),
            trust_remote_code=trusts_code(service.settings.models, service.store, base.name),
            parent_adapter=str(parent) if parent and not is_full else None,
            training_file=str(service.workspace.file(training)),
            weight=weights[training],
            further_files=tuple(
                FurtherFile(file=str(service.workspace.file(id)), sha256=hashes.get(id), weight=weights[id])
                for id in further
            ),
            reading=request.data.reading(has_template, "training"),
            validation_file=str(service.workspace.file(validation)) if validation else None,
            validation_reading=request.data.reading(has_template, "held_out"),
            training_sha256=hashes.get(training),
            validation_sha256=hashes.get(validation) if validation else None,
            token_cache=str(service.workspace.token_cache.folder),
            chat_template=request.chat_template,
            seed=job.seed,
            device=job.device.split(":")[0],
            method=request.method,
            tuning=resolved,
            grader=request.grader,
            python_graders=service.settings.jobs.python_graders,
            grading_models=models_that_grade(service, job, request),
            sampling=engine_sampling(service.workspace, job, resolved, base),
            wandb=reported(service.settings, job),
            tensorboard=has_tensorboard(service.settings, job),
            mlflow=mlflow_run(service.settings, job),
            earlier=tuple(finished_jobs(service.store, base)),
            rates=rates_of(service.settings),
        )

    def environment(self, service: Service, job: Job) -> dict[str, str]:
        return keys_of(service.settings, job)

    def is_evaluated(self, request: BaseModel) -> bool:
        return isinstance(request, FineTuningRequest) and request.evaluate is not None

    def evaluate(self, service: Service, job: Job) -> None:
        evaluate(service.store.of(job.project), job)

    def name_of_input(self, request: BaseModel, role: str, position: int) -> str:
        if role == GRADING_MODEL and isinstance(request, FineTuningRequest):
            return weights_that_grade(request)[position].name
        if role != JUDGE or not isinstance(request, FineTuningRequest) or request.evaluate is None:
            return super().name_of_input(request, role, position)
        judges = [one.request.judge for one in request.evaluate.measures if one.request.judge is not None]
        return judges[0].model.name if judges and judges[0].model is not None else role

    def publish(self, service: Service, job: Job, base: BaseInfo, folder: JobFolder) -> None:
        result = folder.read_result(TrainingResult)
        assert result is not None, "only what has succeeded is published"
        publish_products(service, job, base, folder, result)

    def after_failure(self, job: Job, outcome: Outcome) -> tuple[Resolved, str] | None:
        before = resolved_of(job)
        resolved = with_less_memory(before) if outcome.error_code == "out_of_memory" else None
        if resolved is None:
            return None
        what = "gradient checkpointing on"
        if resolved.per_device_batch_size != before.per_device_batch_size:
            what = f"per_device_batch_size {resolved.per_device_batch_size} (batch_size stays {resolved.batch_size})"
        return resolved, (
            f"The device ran out of memory. Going on from the last checkpoint with less: {what}. "
            f"{_what_changes(before, resolved)}"
        )


def _check_generation(resolved: Resolved, rows: int) -> None:
    """Raises JobRefused where a job whose answers are made while it trains has no place or no step for them."""
    if resolved.max_completion_length is None:
        return
    if resolved.max_completion_length >= resolved.max_length:
        raise JobRefused(
            "invalid_tuning",
            f"answers of up to {resolved.max_completion_length} tokens leave no place for a prompt in "
            f"{resolved.max_length}: lower tuning.max_completion_length, or raise tuning.max_length (up to the base's "
            "context)",
            "tuning.max_completion_length",
        )
    if resolved.batch_size > rows:
        raise JobRefused(
            "invalid_tuning",
            f"the {rows} rows of an epoch fill no step of {resolved.batch_size} prompts: lower the batch size",
            "method.reinforcement.hyperparameters.batch_size",
        )


def _what_changes(before: Resolved, after: Resolved) -> str:
    if METHODS[before.method].has_mismatched and before.per_device_batch_size != after.per_device_batch_size:
        return f"{before.method} then estimates its KL of fewer answers at a time, with more chance in it."
    return "The model is the same."


def request_of(job: Job) -> FineTuningRequest:
    assert isinstance(job.request, FineTuningRequest), f"{job.id} is no fine-tuning job"
    return job.request


def resolved_of(job: Job) -> Resolved:
    assert isinstance(job.resolved, Resolved), f"{job.id} was not validated"
    return job.resolved


def _max_rank(service: Service, base: str) -> int:
    """The largest rank that the engine of the base serves."""
    found = service.store.deployments.get(base)
    return int(found[0].options["max_lora_rank"]) if found else service.settings.serving.max_lora_rank
