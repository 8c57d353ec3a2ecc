"""OpenAI's fine-tuning objects, with Tunewright's fields beside theirs."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, Field, field_validator

from tunewright.api.fine_tuning.data import AUTO, Data
from tunewright.api.fine_tuning.evaluate_schemas import Evaluate
from tunewright.api.fine_tuning.integrations import Integration, Integrations, integrations_shown
from tunewright.api.fine_tuning.measured import BestObject, ForgettingObject, MeasuredObject, PlannedObject
from tunewright.api.fine_tuning.method_schemas import Hyperparameters, Method
from tunewright.api.fine_tuning.tuning_schemas import Tuning
from tunewright.api.jobs.schemas import JobError, JobEventBody, Metadata, estimated_finish
from tunewright.ids import is_suffix, result_file_id
from tunewright.kinds.fine_tuning.evaluated import TrainingReport
from tunewright.kinds.fine_tuning.kind import request_of, resolved_of
from tunewright.kinds.fine_tuning.models import TRAINING_FILE, VALIDATION_FILE, FineTuningResult
from tunewright.plan.methods import MethodName
from tunewright.plan.options import HyperparameterOptions, of_others
from tunewright.store.records import Checkpoint, Job
from tunewright.store.states import JobState
from tunewright.wire import Body, Wire


class FollowingStep(Body):
    """A job that follows another one, and goes on from its model. What is not given here is as in OpenAI's request, but
    for `seed`, `metadata` and `chat_template`, which are those of the first job."""

    training_file: str = Field(max_length=64, description="Id of an uploaded file.")
    validation_file: Annotated[str, Field(max_length=64)] | None = None
    data: Data | None = None
    method: Method | None = None
    suffix: str | None = None
    integrations: Integrations | None = None
    tuning: Tuning | None = Field(
        None, description="An adapter's rank, modules and the like are those of the first job."
    )
    evaluate: Evaluate | None = None


class CreateJob(Body):
    """OpenAI's request, with `tuning`, `evaluate` and `chat_template` beside it."""

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
    metadata: Metadata = Field(None, description="Up to 16 pairs, kept with the job.")
    integrations: Integrations | None = Field(
        None,
        description="Where the job is reported: Weights & Biases, TensorBoard, MLflow, each once, where the operator"
        " has what they need.",
    )
    tuning: Tuning | None = None
    evaluate: Evaluate | None = None
    steps: Annotated[list[FollowingStep], Field(min_length=1, max_length=8)] | None = Field(
        None,
        description="Jobs that follow this one, each from the model of the one before, such as dpo after supervised. "
        "They are created together; where one fails or is cancelled, those after it fail.",
    )
    chat_template: Annotated[str, Field(max_length=1_000_000)] | None = Field(
        None, description="Jinja template to train through, which then also serves the result."
    )

    @field_validator("suffix")
    @classmethod
    def _check_suffix(cls, value: str | None) -> str | None:
        if value is not None and not is_suffix(value):
            raise ValueError("a suffix has 1 to 64 letters, digits, dots, dashes or underscores")
        return value


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
    pipeline: str | None = Field(
        None,
        description="The id of the first job, where several follow each other: `/v1/fine_tuning/pipelines`.",
    )
    after: str | None = Field(
        None, description="The id of the job that this one follows, from whose model it goes on."
    )
    metadata: dict[str, str] | None
    integrations: list[Integration] = Field(default_factory=list)
    unreported: str | None = Field(
        None, description="Why the job is not reported to its integrations; null where it is, or has none."
    )
    tuning: dict[str, Any] = Field(
        description="The options of the request until the files are validated, then the resolved ones."
    )
    progress: Progress | None
    best: BestObject | None = Field(
        description="The checkpoint that the model is, where `tuning.best_checkpoint` or `early_stopping` asked for it."
    )
    planned: PlannedObject | None = Field(
        description="What it was predicted to need, once it has succeeded: beside `measured`."
    )
    measured: MeasuredObject | None = Field(
        description="What its steps took, once it has succeeded; null where it had one step."
    )
    forgetting: ForgettingObject | None = Field(
        description="How far it is from what it was, once it has succeeded; an adapter, from its base."
    )
    evaluate: dict[str, Any] | None = Field(None, description="As in the request.")
    evaluation: TrainingReport | None = Field(
        None, description="What the evaluations that it asked for have found so far."
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
            pipeline=job.pipeline,
            after=job.after,
            metadata=job.metadata,
            integrations=integrations_shown(request),
            unreported=request.unreported,
            tuning=_tuning_shown(resolved or request.tuning, request.method),
            progress=Progress(**progress.model_dump(include=set(Progress.model_fields)))
            if progress
            else None,
            best=BestObject.of(job.result),
            planned=PlannedObject.of(job.result),
            measured=MeasuredObject.of(job.result),
            forgetting=ForgettingObject.of(job.result),
            evaluate=request.evaluate.asked if request.evaluate else None,
            evaluation=job.report if isinstance(job.report, TrainingReport) else None,
        )


def _tuning_shown(tuning: BaseModel, method: MethodName) -> dict[str, Any]:
    """Without what is in the job's `method`, and without what only other methods have."""
    hidden = {"method", "beta", "eval_samples", "order_batch_size", *of_others(method)}
    return tuning.model_dump(exclude=hidden)


class EventObject(JobEventBody):
    """OpenAI's job event. Metric events have their numbers in `data`."""

    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    data: dict[str, Any] | None = Field(
        description="step, total_steps, train_loss (nats per token), train_mean_token_accuracy, valid_loss, "
        "valid_mean_token_accuracy, learning_rate, grad_norm, tokens_per_second, memory_bytes, eta_seconds, at "
        "the end, and of a long epoch, general_kl and general_loss (nats per token of general text). Of dpo, "
        "kto and orpo also, with train_ and valid_ before each: reward_margin, reward_chosen, reward_rejected, "
        "logps_chosen and logps_rejected (nats), where chosen means good answers and rejected bad ones; of dpo and "
        "orpo reward_accuracy (the share of pairs whose chosen answer has the larger reward), of orpo nll_loss (nats "
        "per token) and log_odds, of kto kl (nats). Of reward: reward_accuracy, reward_margin and reward_mean. Of "
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
    metrics: dict[str, float] = Field(
        description="Those of its step, and of its evaluations: `eval_<metric>`, `eval_<metric>_gain` (minus that of "
        "the base), `eval_<suite>`, `eval_<suite>_forgotten` (the share of what the base has right)."
    )

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
