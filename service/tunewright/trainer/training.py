"""A training run by any method: the data, the model, the evaluation before the first step, the steps, the product."""

from __future__ import annotations

import math
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import transformers
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from tunewright.jobs.failure import TrainingFailed
from tunewright.jobs.folder import EventLog, JobFolder
from tunewright.jobs.process import rank
from tunewright.plan.fitting import padding_of
from tunewright.plan.initializations import changes_base
from tunewright.plan.methods import METHODS
from tunewright.plan.schedulers import scheduler_options
from tunewright.rows.mixture import Mixture
from tunewright.trainer import ranks
from tunewright.trainer.best import BestCallback
from tunewright.trainer.data import epoch_order, tell_data, tokenized_files
from tunewright.trainer.general_text import GeneralText, tell_forgetting
from tunewright.trainer.loading import LoadingCallback, OrderedRows
from tunewright.trainer.loop import (
    CheckpointCallback,
    HeartbeatCallback,
    MetricsCallback,
    latest_checkpoint,
)
from tunewright.trainer.metrics import held_out, told
from tunewright.trainer.model import load_model, load_tokenizer
from tunewright.trainer.planned import cost_of_measured, planned_run, tell_planned
from tunewright.trainer.products import put_on_plain_base, save_product, take_weights
from tunewright.trainer.reporting import WandbReport
from tunewright.trainer.sharding import prepare_sharded_loading, sharded_arguments, spec_at
from tunewright.trainer.spec import TrainingResult, TrainingSpec
from tunewright.trainer.speed import compile_layers
from tunewright.trainer.trackers import Tracker, trackers


@dataclass(frozen=True)
class Parts:
    """What a method makes its trainer of."""

    folder: JobFolder
    spec: TrainingSpec
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel | PeftModel
    training: Mixture
    held_out: Mixture | None
    callbacks: list[TrainerCallback]
    go_on: Callable[[], None]
    """To be called within what takes long: renews the heartbeat, and raises Stopped where the run was asked to stop."""

    def arguments(self) -> dict[str, Any]:
        """The arguments of the Trainer that are the same for all methods."""
        return common_arguments(
            self.spec, self.folder, self.training.examples, evaluates=self.held_out is not None
        )


class FirstEvaluation(TrainerCallback):  # type: ignore[misc]
    """Tells the evaluation of a model that can be evaluated only once it trains."""

    def __init__(self, events: EventLog, metric: str | None) -> None:
        self._events = events
        self._metric = metric

    def on_evaluate(
        self, args: Any, state: TrainerState, *_: Any, metrics: dict[str, float], **__: Any
    ) -> None:
        if state.global_step == 0:
            tell_first_evaluation(self._events, metrics, self._metric)


def tell_first_evaluation(events: EventLog, metrics: dict[str, float], metric: str | None) -> None:
    """`metric`: by which a checkpoint is the best. Raises TrainingFailed where the evaluation has none."""
    before = held_out(metrics)
    if metric is not None and metric not in before:
        raise TrainingFailed(
            "invalid_validation_file",
            f"an evaluation of the held-out rows has no {metric}, by which the best checkpoint is found: hold out rows "
            "that have it (of kto good answers and bad ones), or go by another metric",
        )
    events.message(f"Validation loss before training: {told(before, 'valid_')}", data={"step": 0, **before})


class Stopped(Exception):
    """The run was asked to stop where no checkpoint can be saved: before its first step, or while a step waits for what
    does not come."""


MakeTrainer = Callable[[Parts], OrderedRows]
"""Of a method: its `evaluate` returns `eval_loss` and `trainer.metrics`' measures with `eval_` before their names."""


def train(
    folder: JobFolder, spec: TrainingSpec, events: EventLog, make_trainer: MakeTrainer
) -> TrainingResult | None:
    """Train, and return the result, or None where the run was asked to stop and saved a checkpoint. Where the spec says
    so it is reported."""
    reports: list[WandbReport | Tracker] = []
    report = WandbReport(folder, spec, events) if rank() == 0 else None
    if report is not None:
        resumed = latest_checkpoint(folder) if spec.tensorboard or spec.mlflow is not None else None
        step = int(resumed.name.removeprefix("step-")) if resumed is not None else None
        reports = [report, *trackers(folder, spec, events, step)]
    failed = True
    try:
        result = _train(folder, spec, events, make_trainer, reports)
        failed = False
        return result
    except Stopped:
        failed = False
        events.message("Stopped; what was done since the last checkpoint is done again", "warn")
        return None
    finally:
        for one in reports:
            one.end(failed=failed)


def _train(
    folder: JobFolder,
    spec: TrainingSpec,
    events: EventLog,
    make_trainer: MakeTrainer,
    reports: Sequence[WandbReport | Tracker],
) -> TrainingResult | None:
    tuning = spec.tuning
    transformers.set_seed(spec.seed)
    tokenizer = load_tokenizer(spec)
    heartbeat = HeartbeatCallback(folder)
    if rank() != 0:
        ranks.wait_for_all()  # rank 0 tokenizes and removes damaged checkpoints, and the others find it done
    training, validation = tokenized_files(folder, spec, tokenizer, heartbeat.beat)
    resume_from = latest_checkpoint(folder)
    if rank() == 0:
        ranks.wait_for_all()
    trained_tokens = training.tokens(tuning.n_epochs)
    planned = planned_run(spec, training.shape(), trained_tokens, training.distinct_tokens)
    if resume_from is None:
        tell_data(events, training, tuning)
        tell_planned(events, planned)
        for part in validation.parts if validation is not None else ():
            events.message(f"Validation data: {part.totals.describe()}")
    else:
        step = resume_from.name.removeprefix("step-")
        events.message(f"Resuming from the checkpoint at step {step}", "warn")

    if spec.is_sharded:
        prepare_sharded_loading()
    begins_at = spec if resume_from is None or not spec.is_sharded else spec_at(spec, resume_from)
    model = load_model(begins_at, folder.initial)
    compiled = planned.compiled if planned is not None else spec.tuning.torch_compile is True
    if compiled:
        layers = compile_layers(model)
        events.message(
            f"torch.compile compiles the model's {layers} layers, which takes a while at the first steps"
        )
    wandb = next((one.metrics for one in reports if isinstance(one, WandbReport)), None)
    metrics = MetricsCallback(events, wandb)
    loading = LoadingCallback(events, tuning.dataloader_workers)
    best = BestCallback(tuning.best_checkpoint, tuning.early_stopping, resume_from)
    checkpoints = CheckpointCallback(folder, metrics, spec.checkpoint_seconds, best)
    if resume_from is not None:
        metrics.latest |= checkpoints.metrics_of(int(resume_from.name.removeprefix("step-")))
    signal.signal(signal.SIGTERM, lambda *_: checkpoints.ask_to_stop())
    if rank() == 0:
        shutil.rmtree(folder.work, ignore_errors=True)
    callbacks = [metrics, best, checkpoints, heartbeat, loading]
    callbacks += [one for one in reports if isinstance(one, Tracker)]

    def go_on() -> None:
        heartbeat.beat()
        if checkpoints.is_asked_to_stop:
            raise Stopped

    trainer = make_trainer(Parts(folder, spec, tokenizer, model, training, validation, callbacks, go_on))
    trainer.on_wait = loading.wait
    trainer.loraplus_lr_ratio = tuning.loraplus_lr_ratio
    if trainer.order is None:
        trainer.order = epoch_order(training, tuning)
    if validation is not None and resume_from is None:
        if spec.is_sharded:  # only once it trains
            trainer.add_callback(FirstEvaluation(events, tuning.best_checkpoint))
            trainer.args.eval_on_start = True
        else:
            tell_first_evaluation(events, trainer.evaluate(), tuning.best_checkpoint)
    scores = METHODS[spec.method].scores
    general = None
    if not scores:  # else it has no logits of tokens
        general = GeneralText(
            trainer,
            tokenizer,
            folder,
            metrics.add,
            heartbeat.beat,
            tokens_of_an_epoch=training.tokens(1),
            base_is_changed=changes_base(tuning.init),
        )
        trainer.add_callback(general)
    if rank() != 0:
        # Other dropout than that of rank 0. The rows are drawn by a seed of their own.
        transformers.set_seed(spec.seed + rank())
    over_at = resume_from if best.is_over else None
    if over_at is not None:
        trainer.state = TrainerState.load_from_json(str(over_at / TRAINER_STATE_NAME))
    else:
        trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    metrics.flush()
    if checkpoints.stopped and not best.is_over:
        events.message(f"Stopped with a checkpoint at step {trainer.state.global_step}", "warn")
        return None
    best.tell(events, trainer.state)
    is_last = best.found is None or best.found.step == trainer.state.global_step
    # Where no step was left, the model has the weights of no checkpoint.
    earlier = None if is_last and over_at is None else checkpoints.best()
    has_weights = take_weights(trainer, earlier)
    # Of a sharded model the weights of an earlier checkpoint are in the product alone.
    forgetting = general.measure(again=not is_last) if general is not None and has_weights else None
    if forgetting is not None:
        tell_forgetting(events, forgetting)
    save_product(trainer, tokenizer, folder, earlier, scores_of=spec if scores else None)
    if changes_base(tuning.init):
        put_on_plain_base(folder, checkpoints.usable())
    of_product = metrics.latest if best.found is None else checkpoints.metrics_of(best.found.step)
    measured = metrics.measured(
        training.longest,
        loading.waited,
        compiled=compiled,
        padding=padding_of(tuning, training.shape()),
        reference_seconds=trainer.reference_seconds,
    )
    return TrainingResult(
        status="succeeded",
        trained_tokens=_tokens_done(trainer.state, training, spec),
        metrics={**of_product, **(forgetting.metrics if forgetting is not None else {})},
        best=best.result(trainer.state),
        examples=tuple(part.drawn for part in training.parts),
        planned=planned,
        measured=measured,
        cost=cost_of_measured(spec, measured),
        forgetting=forgetting,
        checkpoints=checkpoints.usable(),
    )


def _tokens_done(state: TrainerState, training: Mixture, spec: TrainingSpec) -> int:
    """Tokens of the steps that were done; of an epoch that was not finished, by its share of steps."""
    if spec.grader:
        return int(state.num_input_tokens_seen)
    whole = min(int(state.global_step * spec.tuning.n_epochs / state.max_steps), spec.tuning.n_epochs)
    tokens = training.tokens(whole)
    rest = state.global_step * spec.tuning.n_epochs / state.max_steps - whole
    return tokens + round(rest * (training.tokens(whole + 1) - tokens)) if rest else tokens


def common_arguments(spec: TrainingSpec, folder: JobFolder, rows: int, *, evaluates: bool) -> dict[str, Any]:
    """The arguments of the Trainer that are the same for all methods; `rows`: examples of an epoch."""
    tuning = spec.tuning
    on_gpu = spec.device != "cpu"
    total = tuning.steps(rows)
    # The first step of a warm-up has a learning rate of 0: a job of one step would learn nothing.
    warmup = min(math.ceil(total * tuning.warmup_ratio), total - 1)
    return {
        "output_dir": str(folder.work),
        "use_cpu": not on_gpu,
        "bf16": on_gpu,
        "seed": spec.seed,
        "data_seed": spec.seed,
        "num_train_epochs": tuning.n_epochs,
        "per_device_train_batch_size": tuning.per_device_batch_size,
        "per_device_eval_batch_size": tuning.per_device_batch_size,
        "gradient_accumulation_steps": tuning.gradient_accumulation_steps,
        "learning_rate": tuning.learning_rate,
        "lr_scheduler_type": tuning.lr_scheduler_type,
        "lr_scheduler_kwargs": scheduler_options(
            tuning.lr_scheduler_type, tuning.lr_scheduler_kwargs, total, warmup
        ),
        "warmup_steps": warmup,
        "weight_decay": tuning.weight_decay,
        "neftune_noise_alpha": tuning.neftune_alpha,
        "max_grad_norm": tuning.max_grad_norm,
        "max_length": tuning.max_length,
        "optim": "adamw_torch_fused" if on_gpu else "adamw_torch",
        "gradient_checkpointing": spec.checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if spec.checkpointing else None,
        "remove_unused_columns": False,  # the labels are made of what would be removed
        "logging_steps": max(1, total // 1000),
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        **_evaluations(tuning.eval_interval, evaluates=evaluates),
        "save_strategy": "no",  # CheckpointCallback requests saves
        "report_to": "none",  # the callbacks are made here (`trainer.trackers`)
        "run_name": (spec.mlflow.name if spec.mlflow is not None else None) or spec.job_id,
        "disable_tqdm": True,
        "dataloader_num_workers": tuning.dataloader_workers,
        "ddp_find_unused_parameters": False if tuning.gpus > 1 else None,
        **(sharded_arguments() if spec.is_sharded else {}),
    }


def _evaluations(interval: int | None, *, evaluates: bool) -> dict[str, Any]:
    if not evaluates:
        return {"eval_strategy": "no"}
    return (
        {"eval_strategy": "epoch"} if interval is None else {"eval_strategy": "steps", "eval_steps": interval}
    )
