"""Resolves the options of a job: replaces every "auto" by a value, which the job then shows.

Sources: QLoRA (Dettmers et al. 2023) for the 2e-4 of LoRA and QLoRA and for NF4 with double quantization; "LoRA
learns less and forgets less" (Biderman et al. 2024) for all-linear targets and alpha = 2 x rank.
"""

from __future__ import annotations

import math
import sys
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from tunewright.plan.initializations import served_rank
from tunewright.plan.methods import (
    ANSWER_WEIGHT,
    BETA,
    FEW_ROWS,
    LABEL_SMOOTHING,
    LOSS_TYPE,
    MAX_COMPLETION_LENGTH,
    METHODS,
    NUM_GENERATIONS,
    PROMPTS,
)
from tunewright.plan.options import Auto, HyperparameterOptions, TuningOptions
from tunewright.plan.sampling import Sampling, why_not_engine
from tunewright.plan.schedulers import SCHEDULER
from tunewright.plan.stopping import METRICS, EarlyStopping

Value = TypeVar("Value")

EFFECTIVE_BATCH = 32
BATCH_RANGE = (32, 128)
"""Rows per optimizer step: fewer make noisy steps, more make few steps."""
MAX_LENGTH = 2048
WARMUP_RATIO = 0.03
MAX_GRAD_NORM = 1.0
GPU_WORKERS = 2
_RANKS = ((1_000, 8), (10_000, 16), (100_000, 32), (math.inf, 64))
"""(rows, rank): the rank for fewer than 1,000 rows, fewer than 10,000, up to 100,000, and more.

Alpha is twice the rank.
"""


class Resolved(BaseModel):
    """All options of a training run, none of them "auto"."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    type: str
    method: str = "supervised"
    """OpenAI's (`plan.methods`)."""
    learning_rate: float
    n_epochs: int
    batch_size: int
    """Rows per optimizer step: gpus x per_device_batch_size x gradient_accumulation_steps."""
    per_device_batch_size: int
    order_batch_size: int | None = None
    """What `per_device_batch_size` was before memory ran out: the order of the rows stays that of batches of so many.
    None: it is as it was."""
    gradient_accumulation_steps: int
    max_length: int
    truncation: str
    """How longer rows are handled: "truncate" or "refuse"."""
    group_by_length: bool = False
    """Whether batches are of rows of about the same length. Has a default, since rows of earlier versions lack it."""
    packing: bool = False
    """Of supervised: whether rows of a step share sequences. Has a default for the same reason."""
    dataloader_workers: int = 0
    """Processes that read rows beside the steps. Has a default for the same reason."""
    warmup_ratio: float
    lr_scheduler_type: str
    lr_scheduler_kwargs: dict[str, float] = {}
    """Options of the schedule alone (`plan.schedulers`). Has a default, since rows of earlier versions lack it."""
    max_grad_norm: float
    weight_decay: float
    rank: int | None
    alpha: float | None
    dropout: float | None
    target_modules: str | list[str] | None
    use_rslora: bool
    use_dora: bool = False
    """Has a default, since rows that an earlier version stored lack it."""
    init: str | None = None
    """How the adapter begins, by peft's name (`plan.initializations`). None: as peft begins."""
    loraplus_lr_ratio: float | None = None
    """Of LoRA+: how many times the learning rate that of the adapter's B is. None: the same."""
    gradient_checkpointing: bool | None = None
    """Whether activations are computed again in the backward pass. None, in rows of earlier versions: on a GPU."""
    torch_compile: bool | None = None
    """Whether the layers are compiled. None: where it pays (`plan.compiling`)."""
    quantization: str | None
    neftune_alpha: float | None = None
    """Of supervised: the size of NEFTune's noise in the embeddings. None: without."""
    beta: float | None = None
    """How strongly the model is kept near the reference; of orpo, the weight of the odds. None for methods that have
    none."""
    loss_type: str | None = None
    """Of dpo; None for other methods, as the next one."""
    label_smoothing: float | None = None
    """None also for a loss that has none."""
    desirable_weight: float | None = None
    """Of kto: the weight of the losses of good answers. None for other methods, as the next one."""
    undesirable_weight: float | None = None
    algorithm: str | None = None
    """Of reinforcement: grpo or rloo. None for other methods, as the rest."""
    num_generations: int | None = None
    """Answers to a prompt that are compared with each other."""
    max_completion_length: int | None = None
    """Tokens of an answer; a prompt has at most `max_length` less these."""
    temperature: float | None = None
    sampling: Sampling | None = None
    """Where the answers are made (`plan.sampling`)."""
    eval_samples: int | None = None
    """Answers to a held-out prompt in an evaluation."""
    eval_interval: int | None = None
    """Steps between evaluations; None: at the end of each epoch."""
    best_checkpoint: str | None = None
    """The metric by which the best checkpoint is the product (`plan.stopping`); None: the product is the last state."""
    early_stopping: EarlyStopping | None = None
    """When the run ends early, by the same metric. None: never."""
    gpus: int = 1
    """GPUs that train together, each in a process; on the CPU, processes. Rows of earlier versions lack it."""
    sharding: str = "none"
    """"fsdp": weights, gradients and optimizer are shared between them; "none": each has all of it."""

    @property
    def rows_together(self) -> int:
        """Rows that the order of an epoch has beside each other: grouped by length, or compared with each other."""
        return self.order_batch_size or self.per_device_batch_size

    @property
    def device_batch_size(self) -> int:
        """Rows per optimizer step of each GPU."""
        return self.batch_size // self.gpus

    def steps(self, examples: int) -> int:
        """Optimizer steps of the run, if an epoch has so many examples."""
        if METHODS[self.method].generates:  # TRL leaves out prompts that fill no step
            return examples // self.batch_size * self.n_epochs
        return -(-examples // self.batch_size) * self.n_epochs


def rank_for(rows: int, max_rank: int) -> int:
    """The adapter's default rank for `rows` rows, at most `max_rank`, which the engine serves."""
    rank = next(rank for limit, rank in _RANKS if rows < limit or (limit == 100_000 and rows == limit))
    return min(rank, max_rank)


def max_length_for(tuning: TuningOptions, context: int) -> int:
    """Tokens at which examples are cut, on a model with a context of `context` tokens."""
    return min(_given(tuning.max_length, MAX_LENGTH), context)


def resolve(
    *,
    tuning: TuningOptions,
    hyperparameters: HyperparameterOptions,
    rows: int,
    context: int,
    max_rank: int,
    device: str,
    method: str = "supervised",
) -> Resolved:
    """The options of a run over `rows` rows on a model with a context of `context` tokens.

    `tuning` holds Tunewright's own options, which take precedence over OpenAI's `hyperparameters`.
    """
    type = "lora" if tuning.type == "auto" else tuning.type
    of_method = METHODS[method]
    multiplier = _given(hyperparameters.learning_rate_multiplier, 1.0)
    default_epochs = of_method.epochs if rows >= FEW_ROWS else of_method.epochs_of_few
    epochs = _given(tuning.n_epochs, _given(hyperparameters.n_epochs, default_epochs))
    gpus = _given(tuning.gpus, 1)
    usual = min(PROMPTS, batch_for(rows)) if of_method.generates else batch_for(rows, gpus)
    batch = _given(tuning.batch_size, _given(hyperparameters.batch_size, usual))
    at_a_time = 1 if of_method.generates else (8 if device == "cpu" else 4) // of_method.sequences
    per_device, accumulation = split_batch(
        batch // gpus, _given(tuning.per_device_batch_size, at_a_time), of_method.least_at_a_time
    )
    adapter = type != "full"
    init = _given(tuning.init, None) if adapter else None
    largest = max_rank // served_rank(1, init)
    rank = _given(tuning.rank, rank_for(rows, largest)) if adapter else None
    resolved = Resolved(
        type=type,
        method=method,
        learning_rate=_given(tuning.learning_rate, of_method.learning_rates[type] * multiplier),
        n_epochs=epochs,
        batch_size=batch,
        per_device_batch_size=per_device,
        gradient_accumulation_steps=accumulation,
        max_length=max_length_for(tuning, context),
        truncation=tuning.truncation,
        group_by_length=tuning.group_by_length,
        packing=_given(tuning.packing, False),
        dataloader_workers=_given(tuning.dataloader_workers, workers_for(device)),
        warmup_ratio=_given(tuning.warmup_ratio, WARMUP_RATIO),
        lr_scheduler_type=_given(tuning.lr_scheduler_type, SCHEDULER),
        lr_scheduler_kwargs=_given(tuning.lr_scheduler_kwargs, {}),
        max_grad_norm=_given(tuning.max_grad_norm, MAX_GRAD_NORM),
        weight_decay=_given(tuning.weight_decay, 0.0),
        rank=rank,
        alpha=_given(tuning.alpha, 2.0 * rank) if rank else None,
        dropout=_given(tuning.dropout, 0.0) if adapter else None,
        target_modules=_given(tuning.target_modules, "all-linear") if adapter else None,
        use_rslora=tuning.use_rslora and adapter,
        use_dora=tuning.use_dora and adapter,
        init=init,
        loraplus_lr_ratio=_given(tuning.loraplus_lr_ratio, None) if adapter else None,
        gradient_checkpointing=_given(tuning.gradient_checkpointing, device != "cpu"),
        torch_compile=_given(tuning.torch_compile, None),
        quantization="nf4" if type == "qlora" else None,
        gpus=gpus,
        sharding="none" if gpus == 1 or adapter else _given(tuning.sharding, "fsdp"),
        neftune_alpha=_given(tuning.neftune_alpha, None),
        **_of_evaluations(tuning, hyperparameters, method),
        **({"beta": _given(hyperparameters.beta, BETA)} if method in ("dpo", "kto", "orpo") else {}),
        **(_of_dpo(tuning) if method == "dpo" else {}),
        **(_of_kto(tuning) if method == "kto" else {}),
        **(_of_reinforcement(tuning, hyperparameters, context) if method == "reinforcement" else {}),
    )
    if method != "reinforcement":
        return resolved
    by_trainer = tuning.sampling == "trainer" or (tuning.sampling == "auto" and device == "cpu")
    by_trainer = by_trainer or why_not_engine_of(resolved) is not None
    return resolved.model_copy(update={"sampling": "trainer" if by_trainer else "engine"})


def why_not_engine_of(resolved: Resolved) -> str | None:
    """Why the answers of a run cannot come from the engine, whichever it is; None where they can."""
    return why_not_engine(
        type=resolved.type,
        algorithm=resolved.algorithm,
        temperature=resolved.temperature,
        use_dora=resolved.use_dora,
        init=resolved.init,
        gpus=resolved.gpus,
    )


def workers_for(device: str, platform: str = sys.platform) -> int:
    """Processes that read rows beside the steps. On the CPU none: the steps take all cores, and rows are mapped from
    the disk. On a GPU they keep it from waiting; only where processes are forked, since else each imports torch."""
    return GPU_WORKERS if device != "cpu" and platform == "linux" else 0


def _of_dpo(tuning: TuningOptions) -> dict[str, Any]:
    loss = _given(tuning.loss_type, LOSS_TYPE)
    return {
        "loss_type": loss,
        "label_smoothing": _given(tuning.label_smoothing, LABEL_SMOOTHING.get(loss)),
    }


def _of_kto(tuning: TuningOptions) -> dict[str, Any]:
    return {
        "desirable_weight": _given(tuning.desirable_weight, ANSWER_WEIGHT),
        "undesirable_weight": _given(tuning.undesirable_weight, ANSWER_WEIGHT),
    }


def _of_reinforcement(
    tuning: TuningOptions, hyperparameters: HyperparameterOptions, context: int
) -> dict[str, Any]:
    answers = max(2, round(NUM_GENERATIONS * _given(hyperparameters.compute_multiplier, 1.0)))
    usual = min(MAX_COMPLETION_LENGTH, max_length_for(tuning, context) // 2)
    return {
        "beta": _given(hyperparameters.beta, 0.0),
        "algorithm": _given(tuning.algorithm, "grpo"),
        "num_generations": _given(tuning.num_generations, answers),
        "max_completion_length": _given(tuning.max_completion_length, usual),
        "temperature": _given(tuning.temperature, 1.0),
        "eval_samples": _given(hyperparameters.eval_samples, 1),
    }


def _of_evaluations(
    tuning: TuningOptions, hyperparameters: HyperparameterOptions, method: str
) -> dict[str, Any]:
    interval = _given(tuning.eval_interval, hyperparameters.eval_interval)
    metric, stopping = tuning.best_checkpoint, None
    if tuning.early_stopping != "auto":
        asked = tuning.early_stopping
        metric = asked.metric if metric == "auto" else metric
        metric = METRICS[method][0] if metric == "auto" else metric
        stopping = EarlyStopping(metric=metric, patience=asked.patience, min_delta=asked.min_delta)
    return {
        "eval_interval": None if interval == "auto" else interval,
        "best_checkpoint": None if metric == "auto" else metric,
        "early_stopping": stopping,
    }


def _given(option: Value | Auto, default: Value) -> Value:
    """The option's value, or the default for "auto"."""
    return default if option == "auto" else option


def batch_for(rows: int, gpus: int = 1) -> int:
    """Rows per optimizer step: 32, or for fewer rows the largest power of two up to their number; more where so many
    GPUs cannot share them evenly."""
    batch = min(EFFECTIVE_BATCH, 1 << (rows.bit_length() - 1))
    return -(-batch // gpus) * gpus


def split_batch(batch: int, largest: int, least: int = 1) -> tuple[int, int]:
    """(rows at a time, accumulation steps): the largest divisor of `batch` up to `largest`, and the quotient.

    Where that is below `least`, the smallest divisor that is not; a `batch` below `least` is taken as it is.
    """
    per_device = next(size for size in range(min(batch, largest), 0, -1) if batch % size == 0)
    if per_device < min(least, batch):
        per_device = next(size for size in range(least, batch + 1) if batch % size == 0)
    return per_device, batch // per_device
