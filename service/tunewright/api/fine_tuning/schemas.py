"""OpenAI's fine-tuning objects, and Tunewright's `tuning` beside their `method`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, Field, field_validator

from tunewright.api.fine_tuning.data import AUTO, Data
from tunewright.api.fine_tuning.measured import ForgettingObject, MeasuredObject, PlannedObject
from tunewright.api.fine_tuning.method_schemas import Auto, Hyperparameters, Method
from tunewright.api.jobs.schemas import JobError, JobEventBody, check_metadata, estimated_finish
from tunewright.errors import UnsupportedFeature
from tunewright.ids import is_suffix, result_file_id
from tunewright.kinds.fine_tuning.kind import request_of, resolved_of
from tunewright.kinds.fine_tuning.models import TRAINING_FILE, VALIDATION_FILE, FineTuningResult
from tunewright.plan.methods import LossType, MethodName
from tunewright.plan.options import HyperparameterOptions, of_others
from tunewright.plan.schedulers import SchedulerName
from tunewright.store.records import Checkpoint, Job
from tunewright.store.states import JobState
from tunewright.wire import Body, Wire

SchedulerOption = Annotated[float, Field(strict=True, ge=0, le=1e9)]
Rate = Annotated[float, Field(strict=True, gt=0, le=1)]


class Tuning(Body):
    """Tunewright's own options; they win over OpenAI's hyperparameters. `auto` or absent: chosen, then shown."""

    type: Literal["auto", "lora", "qlora", "full"] = Field(
        "auto",
        description="auto: lora, or qlora on a GPU that lora does not fit. qlora: on the NF4 form of the "
        "base. full: all weights.",
    )
    rank: Auto | Annotated[int, Field(strict=True, ge=1, le=512)] = "auto"
    alpha: Auto | Annotated[float, Field(strict=True, gt=0, le=4096)] = Field(
        "auto", description="Twice the rank by default."
    )
    dropout: Auto | Annotated[float, Field(strict=True, ge=0, lt=1)] = "auto"
    target_modules: Auto | Literal["all-linear"] | Annotated[list[str], Field(max_length=512)] = Field(
        "auto", description="Names of the modules to adapt; all-linear by default."
    )
    use_rslora: bool = Field(False, description="Scale by alpha / sqrt(rank) (Kalajdzievski 2023).")
    use_dora: bool = Field(
        False,
        description="DoRA (Liu 2024): magnitudes are trained beside the adapter. vLLM serves no DoRA: the result is "
        "merged to be served (`POST /v1/exports`).",
    )
    loraplus_lr_ratio: Auto | Annotated[float, Field(strict=True, ge=1, le=1000)] = Field(
        "auto",
        description="LoRA+ (Hayou et al. 2024): the learning rate of the adapter's B is so many times that of A; 16 is "
        "the paper's advice. The same by default.",
    )
    gradient_checkpointing: Auto | Annotated[bool, Field(strict=True)] = Field(
        "auto",
        description="Compute activations again in the backward pass: much less memory, a quarter to a third more time. "
        "auto: on a GPU.",
    )
    torch_compile: Auto | Annotated[bool, Field(strict=True)] = Field(
        "auto",
        description="Compile the layers with torch.compile: about a fifth less time a step and less memory, after 15 "
        "to 60 s at the start of each process. auto: on a GPU, with the method supervised, where a run is long enough.",
    )
    learning_rate: Auto | Rate = Field(
        "auto",
        description="2e-4 for lora and qlora, 2e-5 for full; with the methods dpo and kto 5e-6 and 5e-7, with orpo "
        "8e-5 and 8e-6, with reinforcement 1e-5 and 1e-6.",
    )
    n_epochs: Auto | Annotated[int, Field(strict=True, ge=1, le=1000)] = "auto"
    batch_size: Auto | Annotated[int, Field(strict=True, ge=1, le=4096)] = Field(
        "auto", description="Rows per optimizer step."
    )
    per_device_batch_size: Auto | Annotated[int, Field(strict=True, ge=1, le=4096)] = Field(
        "auto",
        description="Most rows at a time; the largest divisor of `batch_size` up to it is used, and the rest is "
        "accumulated.",
    )
    max_length: Auto | Annotated[int, Field(strict=True, ge=8, le=1_048_576)] = Field(
        "auto", description="Largest length of a row in tokens; 2048 or the model's context by default."
    )
    truncation: Literal["truncate", "refuse"] = Field(
        "truncate", description="Cut rows that are longer than `max_length`, or fail the job and name them."
    )
    group_by_length: bool = Field(
        False,
        description="Make batches of rows of about the same length, which saves padding where few rows are long.",
    )
    dataloader_workers: Auto | Annotated[int, Field(strict=True, ge=0, le=32)] = Field(
        "auto",
        description="Processes that read rows beside the steps: 2 on a GPU, none on the CPU by default.",
    )
    warmup_ratio: Auto | Annotated[float, Field(strict=True, ge=0, le=1)] = "auto"
    lr_scheduler_type: Auto | SchedulerName = Field(
        "auto", description="A schedule of transformers by its name there; cosine by default."
    )
    lr_scheduler_kwargs: Auto | Annotated[dict[str, SchedulerOption], Field(max_length=8)] = Field(
        "auto",
        description="Options of the schedule by their names in transformers, such as "
        '`{"min_lr_rate": 0.1}` of cosine_with_min_lr.',
    )
    max_grad_norm: Auto | Annotated[float, Field(strict=True, gt=0, le=1000)] = "auto"
    weight_decay: Auto | Annotated[float, Field(strict=True, ge=0, le=1)] = "auto"
    neftune_alpha: Auto | Annotated[float, Field(strict=True, gt=0, le=1000)] = Field(
        "auto",
        description="Of supervised: NEFTune (Jain et al. 2023), noise in the embeddings of training rows; 5 is usual. "
        "None by default.",
    )
    loss_type: Auto | LossType = Field(
        "auto", description="Of dpo: TRL's name for the loss, such as ipo or robust; sigmoid by default."
    )
    label_smoothing: Auto | Annotated[float, Field(strict=True, gt=0, lt=0.5)] = Field(
        "auto",
        description="Of dpo with the losses robust (0.1 by default) and exo_pair (0.001): the share of pairs that are "
        "taken to be the wrong way round.",
    )
    gpus: Auto | Annotated[int, Field(strict=True, ge=1, le=64)] = Field(
        "auto",
        description="GPUs that train together, each in a process of its own with its part of every batch; 1 by "
        "default. They have to share `batch_size` evenly. On the CPU: processes, up to `--cpu-processes`.",
    )
    sharding: Literal["auto", "none", "fsdp", "zero2", "zero3"] = Field(
        "auto",
        description="fsdp: with type full, weights, gradients and optimizer are shared between the `gpus` (FSDP2). "
        "none: each has all of it (DDP). auto: fsdp for full. zero2 and zero3 are DeepSpeed's, and refused.",
    )
    algorithm: Literal["auto", "grpo", "rloo"] = Field(
        "auto",
        description="Of reinforcement: grpo (Shao et al. 2024) compares an answer with all answers to its prompt, rloo "
        "(Ahmadian et al. 2024) with the others; grpo by default.",
    )
    num_generations: Auto | Annotated[int, Field(strict=True, ge=2, le=256)] = Field(
        "auto",
        description="Of reinforcement: answers to each prompt, which are compared with each other; 8 by default.",
    )
    max_completion_length: Auto | Annotated[int, Field(strict=True, ge=1, le=1_048_576)] = Field(
        "auto",
        description="Of reinforcement: largest length of an answer in tokens, 256 by default; a prompt has at most "
        "`max_length` less these.",
    )
    temperature: Auto | Annotated[float, Field(strict=True, gt=0, le=2)] = Field(
        "auto", description="Of reinforcement: of the answers in training; 1 by default."
    )
    desirable_weight: Auto | Annotated[float, Field(strict=True, gt=0, le=1000)] = Field(
        "auto", description="Of kto: the weight of the losses of good answers; 1 by default."
    )
    undesirable_weight: Auto | Annotated[float, Field(strict=True, gt=0, le=1000)] = Field(
        "auto", description="Of kto: the weight of the losses of bad answers; 1 by default."
    )
    force: bool = Field(False, description="Create the job even where it does not fit this machine's GPU.")

    @field_validator("target_modules")
    @classmethod
    def _check_modules(cls, value: object) -> object:
        if isinstance(value, list) and not (value and all(name.strip() for name in value)):
            raise ValueError("name at least one module")
        return value

    @field_validator("sharding")
    @classmethod
    def _refuse_deepspeed(cls, value: str) -> str:
        if value.startswith("zero"):
            raise UnsupportedFeature(
                f"tuning.sharding {value} is DeepSpeed's, which is not part of Tunewright: use fsdp, which shares the "
                "same between GPUs.",
                param="tuning.sharding",
            )
        return value


class CreateJob(Body):
    """OpenAI's request, with `tuning` and `chat_template` beside it."""

    model: str = Field(
        max_length=512,
        description="A named base, or a finished adapter or model (`ft:...`) to continue from.",
    )
    training_file: str = Field(max_length=64, description="Id of an uploaded file.")
    validation_file: Annotated[str, Field(max_length=64)] | None = Field(
        None,
        description="Id of an uploaded file; `auto`: a share of the training file, which is not trained on.",
    )
    data: Data | None = None
    method: Method | None = None
    hyperparameters: Hyperparameters | None = Field(None, description="OpenAI's older place for them.")
    suffix: str | None = Field(
        None, description="Goes into the model's name: letters, digits, . _ -, up to 64."
    )
    seed: Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)] | None = None
    metadata: dict[str, str] | None = Field(None, description="Up to 16 pairs, kept with the job.")
    integrations: list[Any] | None = Field(
        None, description="Not offered; must be empty.", json_schema_extra={"maxItems": 0}
    )
    tuning: Tuning | None = None
    chat_template: Annotated[str, Field(max_length=1_000_000)] | None = Field(
        None, description="Jinja template to train through, which then also serves the result."
    )

    @field_validator("integrations")
    @classmethod
    def _refuse_integrations(cls, value: list[Any] | None) -> list[Any] | None:
        if value:
            raise UnsupportedFeature(
                "Integrations are not offered; leave `integrations` out.", param="integrations"
            )
        return value

    @field_validator("suffix")
    @classmethod
    def _check_suffix(cls, value: str | None) -> str | None:
        if value is not None and not is_suffix(value):
            raise ValueError("a suffix has 1 to 64 letters, digits, dots, dashes or underscores")
        return value

    @field_validator("metadata")
    @classmethod
    def _check_metadata(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        return check_metadata(value)


OpenAIStatus = Literal["validating_files", "queued", "running", "succeeded", "failed", "cancelled"]
"""The values that OpenAI's clients know. They have `pause` and `resume`, and no word for what happens in between."""


def openai_status(state: JobState) -> OpenAIStatus:
    """The state in OpenAI's words: a pausing job still runs, and a paused one waits."""
    known = {JobState.PAUSING: JobState.RUNNING, JobState.PAUSED: JobState.QUEUED}.get(state, state)
    return cast(OpenAIStatus, known.value)


class Progress(Wire):
    """The newest step."""

    step: int
    total_steps: int
    train_loss: float | None = None
    eta_seconds: float | None = Field(None, description="Seconds of training left.")


class JobObject(Wire):
    """OpenAI's fine-tuning job, with `state`, `tuning` (all options, none of them auto) and `progress` beside it."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None
    estimated_finish: int | None
    model: str
    fine_tuned_model: str | None
    organization_id: str = "tunewright"
    status: OpenAIStatus = Field(
        description="OpenAI's word for `state`: `running` while the job is pausing, `queued` while it is paused."
    )
    state: JobState
    hyperparameters: Hyperparameters
    method: Method
    training_file: str
    validation_file: str | None = Field(description="`auto`: a share of the training file.")
    data: dict[str, Any] = Field(description="How the files are read, as in the request.")
    result_files: list[str]
    trained_tokens: int | None
    error: JobError | None
    seed: int
    suffix: str | None
    metadata: dict[str, str] | None
    integrations: list[Any] = Field(default_factory=list)
    tuning: dict[str, Any] = Field(
        description="The options of the request until the files are validated, then the resolved ones."
    )
    progress: Progress | None
    planned: PlannedObject | None = Field(
        description="What it was predicted to need, once it has succeeded: beside `measured`."
    )
    measured: MeasuredObject | None = Field(
        description="What its steps took, once it has succeeded; null where it had one step."
    )
    forgetting: ForgettingObject | None = Field(
        description="How far it is from what it was, once it has succeeded; an adapter, from its base."
    )

    @classmethod
    def of(cls, job: Job) -> JobObject:
        request = request_of(job)
        shown = request.hyperparameters
        resolved = resolved_of(job) if job.resolved else None
        if resolved is not None:
            values = {"n_epochs": resolved.n_epochs, "batch_size": resolved.batch_size, "beta": resolved.beta}
            values |= {"eval_samples": resolved.eval_samples, "eval_interval": resolved.eval_interval}
            shown = HyperparameterOptions(**{**shown.model_dump(), **values})
        progress, training_file = job.progress, job.file(TRAINING_FILE)
        assert training_file is not None, "every job has a training file"
        return cls(
            id=job.id,
            created_at=int(job.created_at),
            finished_at=int(job.finished_at) if job.finished_at else None,
            estimated_finish=estimated_finish(job),
            model=request.model,
            fine_tuned_model=job.model,
            status=openai_status(job.state),
            state=job.state,
            hyperparameters=Hyperparameters(**shown.of_method("supervised")),
            method=Method.of(request.method, shown, request.grader),
            training_file=training_file,
            validation_file=AUTO if request.data.validation_share else job.file(VALIDATION_FILE),
            data=request.data.model_dump(),
            result_files=[result_file_id(job.id)] if job.state is JobState.SUCCEEDED else [],
            trained_tokens=job.result.trained_tokens if isinstance(job.result, FineTuningResult) else None,
            error=JobError.of(job.error),
            seed=job.seed,
            suffix=request.suffix,
            metadata=job.metadata,
            tuning=_tuning_shown(resolved or request.tuning, request.method),
            progress=Progress(**progress.model_dump(include=set(Progress.model_fields)))
            if progress
            else None,
            planned=PlannedObject.of(job.result),
            measured=MeasuredObject.of(job.result),
            forgetting=ForgettingObject.of(job.result),
        )


def _tuning_shown(tuning: BaseModel, method: MethodName) -> dict[str, Any]:
    """Without what is in the job's `method`, and without what only other methods have."""
    return tuning.model_dump(exclude={"method", "beta", "eval_interval", "eval_samples", *of_others(method)})


class EventObject(JobEventBody):
    """OpenAI's job event. Metric events have their numbers in `data`."""

    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    data: dict[str, Any] | None = Field(
        description="step, total_steps, train_loss (nats per token), train_mean_token_accuracy, valid_loss, "
        "valid_mean_token_accuracy, learning_rate, grad_norm, tokens_per_second, memory_bytes, eta_seconds, at "
        "the end of an epoch general_kl and general_loss (nats per token of general text). Of dpo, "
        "kto and orpo also, with train_ and valid_ before each: reward_margin, reward_chosen, reward_rejected, "
        "logps_chosen and logps_rejected (nats), where chosen means good answers and rejected bad ones; of dpo and "
        "orpo reward_accuracy (the share of pairs whose chosen answer has the larger reward), of orpo nll_loss (nats "
        "per token) and log_odds, of kto kl (nats). Of "
        "reinforcement likewise: reward, reward_std, reward_zero_std (the share of prompts whose answers all have the "
        "same reward), grader_<name> (the mean reward of each grader of a multi), grader_errors (the share of answers "
        "that could not be graded), completion_length (tokens), completions_clipped (the share that did not end), "
        "entropy, clip_ratio, and with beta kl (nats per token)."
    )


class CheckpointObject(Wire):
    """The adapter at the end of an epoch. It can be loaded under `fine_tuned_model_checkpoint` when the job is done."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuning_job_id: str
    fine_tuned_model_checkpoint: str
    step_number: int
    metrics: dict[str, float]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> CheckpointObject:
        return cls(
            id=checkpoint.id,
            created_at=int(checkpoint.created_at),
            fine_tuning_job_id=checkpoint.job_id,
            fine_tuned_model_checkpoint=checkpoint.model,
            step_number=checkpoint.step,
            metrics={"step": float(checkpoint.step), **checkpoint.metrics},
        )
