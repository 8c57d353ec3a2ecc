"""OpenAI's method `supervised`: training on the assistant's tokens, with TRL's SFTTrainer."""

from __future__ import annotations

import math
import shutil
import signal

import transformers
from trl import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from tunewright.jobs.folder import EventLog, JobFolder
from tunewright.trainer.data import epoch_order, tell_data, tokenized_files
from tunewright.trainer.loading import LoadingCallback
from tunewright.trainer.loop import (
    CheckpointCallback,
    HeartbeatCallback,
    HeldOutTrainer,
    MetricsCallback,
    latest_checkpoint,
)
from tunewright.trainer.model import load_model, load_tokenizer
from tunewright.trainer.planned import cost_of_measured, planned_run, tell_planned
from tunewright.trainer.products import save_product
from tunewright.trainer.spec import TrainingResult, TrainingSpec


def train(folder: JobFolder, spec: TrainingSpec, events: EventLog) -> TrainingResult | None:
    """Train, and return the result, or None where the run was asked to stop and saved a checkpoint."""
    tuning = spec.tuning
    transformers.set_seed(spec.seed)
    tokenizer = load_tokenizer(spec)
    heartbeat = HeartbeatCallback(folder)
    training, held_out = tokenized_files(folder, spec, tokenizer, heartbeat.beat)
    trained_tokens = training.tokens(tuning.n_epochs)
    planned = planned_run(spec, training.shape(), trained_tokens)
    resume_from = latest_checkpoint(folder)
    if resume_from is None:
        tell_data(events, training, tuning)
        tell_planned(events, planned)
        if held_out is not None:
            for part in held_out.parts:
                events.message(f"Validation data: {part.totals.describe()}")
    else:
        events.message(
            f"Resuming from the checkpoint at step {resume_from.name.removeprefix('step-')}", "warn"
        )

    model = load_model(spec)
    metrics, loading = MetricsCallback(events), LoadingCallback(events, tuning.dataloader_workers)
    checkpoints = CheckpointCallback(folder, metrics, spec.checkpoint_seconds)
    signal.signal(signal.SIGTERM, lambda *_: checkpoints.ask_to_stop())
    shutil.rmtree(folder.work, ignore_errors=True)
    trainer = HeldOutTrainer(
        model=model,
        args=_arguments(spec, folder, training.examples, held_out is not None),
        train_dataset=training.dataset(),
        eval_dataset=held_out.dataset() if held_out else None,
        data_collator=DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id),
        processing_class=tokenizer,
        callbacks=[metrics, checkpoints, heartbeat, loading],
    )
    trainer.on_wait = loading.wait
    trainer.order = epoch_order(training, tuning)
    if held_out is not None and resume_from is None:
        before = trainer.evaluate()
        events.message(
            f"Validation loss before training: {before['eval_loss']:.4f}",
            data={
                "step": 0,
                "valid_loss": before["eval_loss"],
                "valid_mean_token_accuracy": before["eval_mean_token_accuracy"],
            },
        )
    trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    metrics.flush()
    if checkpoints.stopped:
        events.message(f"Stopped with a checkpoint at step {trainer.state.global_step}", "warn")
        return None
    save_product(trainer, tokenizer, folder)
    measured = metrics.measured(training.longest, loading.waited)
    return TrainingResult(
        status="succeeded",
        trained_tokens=trained_tokens,
        metrics=metrics.latest,
        planned=planned,
        measured=measured,
        cost=cost_of_measured(spec, measured),
        checkpoints=checkpoints.usable(),
    )


def _arguments(spec: TrainingSpec, folder: JobFolder, rows: int, evaluates: bool) -> SFTConfig:
    tuning = spec.tuning
    on_gpu = spec.device != "cpu"
    steps = math.ceil(math.ceil(rows / tuning.per_device_batch_size) / tuning.gradient_accumulation_steps)
    total = steps * tuning.n_epochs
    return SFTConfig(
        output_dir=str(folder.work),
        use_cpu=not on_gpu,
        bf16=on_gpu,
        seed=spec.seed,
        data_seed=spec.seed,
        num_train_epochs=tuning.n_epochs,
        per_device_train_batch_size=tuning.per_device_batch_size,
        per_device_eval_batch_size=tuning.per_device_batch_size,
        gradient_accumulation_steps=tuning.gradient_accumulation_steps,
        learning_rate=tuning.learning_rate,
        lr_scheduler_type=tuning.lr_scheduler_type,
        warmup_steps=math.ceil(total * tuning.warmup_ratio),
        weight_decay=tuning.weight_decay,
        max_grad_norm=tuning.max_grad_norm,
        max_length=tuning.max_length,
        optim="adamw_torch_fused" if on_gpu else "adamw_torch",
        gradient_checkpointing=spec.checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if spec.checkpointing else None,
        dataset_kwargs={"skip_prepare_dataset": True},  # rows.tokenized has tokenized and masked
        remove_unused_columns=False,  # the labels are made of what would be removed
        logging_steps=max(1, total // 1000),
        logging_first_step=True,
        logging_nan_inf_filter=False,
        eval_strategy="epoch" if evaluates else "no",
        save_strategy="no",  # CheckpointCallback requests saves
        report_to="none",
        disable_tqdm=True,
        dataloader_num_workers=tuning.dataloader_workers,
    )
