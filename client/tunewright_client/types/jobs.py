"""Jobs, their events and checkpoints. Times are Unix seconds."""

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from .base import Wire
from .job_evaluations import JobEvaluation

Auto = Literal["auto"]


class JobStatus(StrEnum):
    """The states of a job. An unknown state of a newer server is a plain string.

    - validating_files: the job's files are checked
    - queued: the job waits for a device
    - pausing: the job saves its state before it pauses
    - paused: the job waits until it is resumed
    - succeeded, failed, cancelled: the final states
    """

    VALIDATING_FILES = "validating_files"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether a job in this state does not change any more."""
        return self in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)


class Tuning(Wire):
    """The settings of a fine-tuning: the requested ones or, in a job that the server has planned, the chosen ones.

    - alpha: scales the adapter
    - init: how a new adapter begins, by peft's name, such as pissa
    - loraplus_lr_ratio: of LoRA+: how many times the learning rate that of the adapter's B is
    - max_length: in tokens
    - truncation: what happens to longer rows: truncate, refuse or, of plain texts, split
    - packing: of supervised: whether rows of a step share sequences
    - group_by_length: whether batches are of rows of about one length
    - dataloader_workers: processes that read rows beside the steps
    - warmup_ratio: a share of all steps
    - lr_scheduler_type, lr_scheduler_kwargs: the schedule of the learning rate and its options, as transformers names
      them
    - max_grad_norm: the gradient is clipped to this norm
    - neftune_alpha: of supervised: the size of NEFTune's noise in the embeddings
    - loss_type, label_smoothing: of the method dpo
    - eval_interval: steps between evaluations on the held-out rows
    - early_stopping: `{"metric": ..., "patience": ..., "min_delta": ...}`: ends the run when the held-out rows get no
      better
    - best_checkpoint: the metric by which the best checkpoint is the model
    - gpus: how many train together
    - sharding: whether they share the weights: none or fsdp
    - algorithm, num_generations, max_completion_length, temperature, sampling: of the method reinforcement: grpo or
      rloo, answers to each prompt, their largest length in tokens, how they are sampled, and by what: engine or trainer
    - desirable_weight, undesirable_weight: of the method kto: the weights of good and of bad answers

    Other settings may be given by their names too.
    """

    type: str | None = None
    rank: int | Auto | None = None
    alpha: float | Auto | None = None
    dropout: float | Auto | None = None
    target_modules: list[str] | str | None = None
    use_rslora: bool | Auto | None = None
    use_dora: bool | Auto | None = None
    init: str | None = None
    loraplus_lr_ratio: float | Auto | None = None
    learning_rate: float | Auto | None = None
    batch_size: int | Auto | None = None
    gradient_accumulation_steps: int | Auto | None = None
    n_epochs: float | Auto | None = None
    max_length: int | Auto | None = None
    truncation: str | None = None
    group_by_length: bool | None = None
    packing: bool | Auto | None = None
    dataloader_workers: int | Auto | None = None
    warmup_ratio: float | Auto | None = None
    lr_scheduler_type: str | None = None
    lr_scheduler_kwargs: dict[str, float] | Auto | None = None
    max_grad_norm: float | Auto | None = None
    neftune_alpha: float | Auto | None = None
    loss_type: str | None = None
    label_smoothing: float | Auto | None = None
    eval_interval: int | Auto | None = None
    early_stopping: dict[str, Any] | Auto | None = None
    best_checkpoint: str | None = None
    gpus: int | Auto | None = None
    sharding: str | None = None
    algorithm: str | None = None
    num_generations: int | Auto | None = None
    max_completion_length: int | Auto | None = None
    temperature: float | Auto | None = None
    sampling: str | None = None
    desirable_weight: float | Auto | None = None
    undesirable_weight: float | Auto | None = None
    optimizer: str | None = None


class JobProgress(Wire):
    """The progress of a running job. Fine-tuning jobs have `train_loss`; exports have `phase` (combine, merge, quantize
    or measure), cleanings too (clean), whose steps are rows."""

    step: int | None = None
    total_steps: int | None = None
    train_loss: float | None = None
    phase: str | None = None
    eta_seconds: float | None = None


class Cost(Wire):
    """Energy in kWh and price of some time on one device; None where no rate is known."""

    kwh: float | None = None
    price: float | None = None
    currency: str | None = None

    def __str__(self) -> str:
        parts = [f"{self.kwh:.3g} kWh"] if self.kwh is not None else []
        parts += [f"{self.price:.2f} {self.currency}"] if self.price is not None else []
        return ", ".join(parts)


class CostRange(Wire):
    """Of a predicted time."""

    least: Cost
    most: Cost

    def __str__(self) -> str:
        return f"{self.least} to {self.most}"


class JobBest(Wire):
    """The checkpoint that a model is: the one with the best `value` of a metric. Training ended after `last_step`,
    early where the metric got no better."""

    metric: str
    step: int
    value: float
    last_step: int
    stopped_early: bool = False


class JobMeasured(Wire):
    """What the steps of a finished fine-tuning job took: `seconds` without the first step, evaluations and
    checkpoints, for `tokens` in `steps`, and the share of `padding` in their batches; `peak_bytes` of memory; seconds
    in which steps `waited` for their rows; `reference_seconds` of the reference's pass before the first step; `cost`
    of all these seconds, where the server knows a rate."""

    device: str | None = None
    seconds: float | None = None
    tokens: int | None = None
    peak_bytes: int | None = None
    waited: float | None = None
    steps: int | None = None
    padding: float | None = None
    reference_seconds: float | None = None
    cost: Cost | None = None


class JobForgetting(Wire):
    """How far a finished model is from what it was before training, on general text: `kl` with its 95 % interval, and
    the `loss` before and after, in nats per token. `is_beyond`: `kl` is above the `bound`."""

    kl: float
    low: float
    high: float
    loss: float
    loss_before: float
    tokens: int
    bound: float
    is_beyond: bool


class PlannedTime(Wire):
    """Seconds between which the steps of a job were predicted to take, and by what."""

    least: float
    most: float
    basis: str | None = None


class JobPlanned(Wire):
    """What a finished fine-tuning job was predicted to need before its first step: `tokens` of all epochs, `peak_bytes`
    of memory, and the time of its steps, None where nothing told it."""

    steps: int | None = None
    tokens: int | None = None
    peak_bytes: int | None = None
    seconds: PlannedTime | None = None
    cost: CostRange | None = None


class JobErrorInfo(Wire):
    """Why a job failed."""

    code: str | None = None
    message: str | None = None
    param: str | None = None


class Metrics(Wire):
    """Measurements at a step. Losses are in nats for each token, accuracies are shares, memory is in bytes; `phase` is
    set for exports and cleanings. Jobs of dpo, kto and orpo have rewards and log-probabilities of answers: of
    kto, chosen means good answers and rejected bad ones. Those of reward have the mean score of all answers."""

    step: int | None = None
    total_steps: int | None = None
    phase: str | None = None
    train_loss: float | None = None
    train_mean_token_accuracy: float | None = None
    valid_loss: float | None = None
    valid_mean_token_accuracy: float | None = None
    train_reward_accuracy: float | None = None
    train_reward_margin: float | None = None
    train_reward_mean: float | None = None
    train_reward_chosen: float | None = None
    train_reward_rejected: float | None = None
    train_logps_chosen: float | None = None
    train_logps_rejected: float | None = None
    train_kl: float | None = None
    train_nll_loss: float | None = None
    train_log_odds: float | None = None
    valid_reward_accuracy: float | None = None
    valid_reward_margin: float | None = None
    valid_reward_mean: float | None = None
    valid_reward_chosen: float | None = None
    valid_reward_rejected: float | None = None
    valid_logps_chosen: float | None = None
    valid_logps_rejected: float | None = None
    train_reward: float | None = None
    train_reward_std: float | None = None
    train_completion_length: float | None = None
    train_completions_clipped: float | None = None
    train_grader_errors: float | None = None
    valid_reward: float | None = None
    valid_completion_length: float | None = None
    valid_completions_clipped: float | None = None
    valid_grader_errors: float | None = None
    valid_kl: float | None = None
    valid_nll_loss: float | None = None
    valid_log_odds: float | None = None
    general_kl: float | None = None
    general_loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens_per_second: float | None = None
    memory_bytes: int | None = None
    eta_seconds: float | None = None


class WorkRecord(Wire):
    """The fields that jobs of all kinds share."""

    id: str
    created_at: int = 0
    finished_at: int | None = None
    model: str = ""
    status: Annotated[JobStatus | str, Field(union_mode="left_to_right")]
    progress: JobProgress | None = None
    error: JobErrorInfo | None = None
    seed: int | None = None
    suffix: str | None = None
    metadata: dict[str, Any] | None = None
    estimated_finish: int | None = None

    @property
    def is_final(self) -> bool:
        """Whether the job has ended: succeeded, failed or cancelled."""
        return isinstance(self.status, JobStatus) and self.status.is_final

    @property
    def product(self) -> str | None:
        """The name of the model, or the id of the file, that the job made; None before it has succeeded."""
        raise NotImplementedError


class JobRecord(WorkRecord):
    """A fine-tuning job. The clients return it as `Job` or `AsyncJob`.

    Its `status` is the `state` of the API, whose own `status` has OpenAI's words: no pausing and no paused.
    """

    object: str = "fine_tuning.job"
    fine_tuned_model: str | None = None
    organization_id: str | None = None
    hyperparameters: dict[str, Any] | None = None
    method: dict[str, Any] | None = None
    tuning: Tuning | None = None
    training_file: str | None = None
    validation_file: str | None = None
    data: dict[str, Any] | None = None
    result_files: list[str] = Field(default_factory=list)
    trained_tokens: int | None = None
    planned: JobPlanned | None = None
    best: JobBest | None = None
    measured: JobMeasured | None = None
    forgetting: JobForgetting | None = None
    integrations: list[Any] | None = None
    unreported: str | None = None
    pipeline: str | None = None
    after: str | None = None
    evaluate: dict[str, Any] | None = None
    evaluation: JobEvaluation | None = None

    @model_validator(mode="before")
    @classmethod
    def _take_state(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("state") is not None:
            return {**{key: value for key, value in data.items() if key != "state"}, "status": data["state"]}
        return data

    @property
    def product(self) -> str | None:
        """`fine_tuned_model`."""
        return self.fine_tuned_model


class Pipeline(Wire):
    """Jobs that follow each other, each from the model of the one before. Its id is that of the first one; its `status`
    is that of the job whose turn it is, and its model that of the last one, once all have succeeded."""

    id: str
    object: str = "fine_tuning.pipeline"
    status: JobStatus | str
    fine_tuned_model: str | None = None
    jobs: list[JobRecord]


class JobEvent(Wire):
    """An event of a job. `level` is info, warn or error; `type` is message or metrics."""

    id: str
    object: str = "fine_tuning.job.event"
    created_at: int = 0
    level: str = "info"
    message: str = ""
    type: str = "message"
    data: dict[str, Any] | None = None

    @property
    def metrics(self) -> Metrics | None:
        """The `data` of a metrics event; None for other events and for data of another form."""
        if self.type != "metrics" or self.data is None:
            return None
        try:
            return Metrics.model_validate(self.data)
        except ValidationError:
            return None


class Checkpoint(Wire):
    """A model at a step of its training. It is used by the name `fine_tuned_model_checkpoint`."""

    id: str
    object: str = "fine_tuning.job.checkpoint"
    created_at: int = 0
    fine_tuning_job_id: str | None = None
    fine_tuned_model_checkpoint: str | None = None
    step_number: int = 0
    metrics: Metrics = Field(default_factory=Metrics)
