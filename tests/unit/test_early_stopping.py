"""A run that ends early, and whose product is its best checkpoint, does what transformers' Trainer does, also after
kills."""

from __future__ import annotations

import itertools
import random
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("trl")

import numpy as np
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    EarlyStoppingCallback,
    TrainerControl,
    TrainerState,
)
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from preferences import SEED, as_messages, assert_close, job_folder, text_rows, trainer_of
from tunewright.config import embedded_base_path
from tunewright.jobs.failure import TrainingFailed
from tunewright.jobs.folder import EventLog, JobFolder
from tunewright.plan.defaults import resolve
from tunewright.plan.options import HyperparameterOptions, TuningOptions
from tunewright.plan.stopping import METRICS, EarlyStopping, best_of
from tunewright.trainer.general_text import GeneralText
from tunewright.trainer.run import METHODS
from tunewright.trainer.spec import TrainingResult, TrainingSpec
from tunewright.trainer.training import tell_first_evaluation, train

pytestmark = pytest.mark.usefixtures("few_passages")

EPOCHS, PER_EPOCH = 8, 4


def chat(row: dict[str, Any], answer: str = "chosen") -> dict[str, Any]:
    made = as_messages(row)
    return {"messages": [*made["prompt"], *made[answer]]}


ROWS = [chat(row) for row in text_rows(16)]
HELD_OUT = [chat(row) for row in text_rows(4, 100)]
"""Unlike the training rows in their numbers: with a large learning rate the loss soon gets worse."""


def folder_of(path: Path, *, rate: float = 4e-3, **tuning: Any) -> JobFolder:
    return job_folder(
        path, ROWS, HELD_OUT, method="supervised", n_epochs=EPOCHS, learning_rate=rate, per_device_batch_size=4, rank=4,
        lr_scheduler_type="constant", **tuning,
    )  # fmt: skip


def run(folder: JobFolder) -> TrainingResult:
    spec = folder.read_spec(TrainingSpec)
    result = train(folder, spec, EventLog(folder), METHODS[spec.method])
    assert result is not None
    return result


def evaluated(folder: JobFolder) -> dict[int, float]:
    found = [event["data"] for event in folder.read_events(0)[0] if event["type"] == "metrics"]
    return {data["step"]: data["valid_loss"] for data in found if "valid_loss" in data}


def kl_of(folder: JobFolder) -> float:
    """The divergence of the job's adapter from its base on the general text, measured anew."""
    base = AutoModelForCausalLM.from_pretrained(embedded_base_path(), dtype=torch.float32)
    trainer = trainer_of(folder)
    trainer.model = PeftModel.from_pretrained(base, folder.adapter)
    tokenizer = AutoTokenizer.from_pretrained(embedded_base_path())
    text = GeneralText(trainer, tokenizer, folder, lambda _: None, lambda: None, tokens_of_an_epoch=0)
    found = text.measure()
    assert found is not None
    return found.kl


def messages(folder: JobFolder) -> str:
    return "\n".join(event["message"] for event in folder.read_events(0)[0] if event["type"] == "message")


def plain_script(folder: JobFolder, path: Path, **arguments: Any) -> SFTTrainer:
    """What a person would write with TRL and transformers alone."""
    ours = trainer_of(folder)
    transformers.set_seed(SEED)
    base = AutoModelForCausalLM.from_pretrained(embedded_base_path(), dtype=torch.float32)
    tuning = folder.read_spec(TrainingSpec).tuning
    model: Any = base
    if tuning.type == "lora":
        lora = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")
        model = get_peft_model(base, lora)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(path), use_cpu=True, bf16=False, seed=SEED, data_seed=SEED, num_train_epochs=EPOCHS,
            per_device_train_batch_size=4, per_device_eval_batch_size=4, learning_rate=tuning.learning_rate,
            lr_scheduler_type="constant", warmup_steps=1, max_grad_norm=1.0, max_length=1024,
            gradient_checkpointing=False, logging_steps=1, report_to="none", disable_tqdm=True,
            remove_unused_columns=False, dataset_kwargs={"skip_prepare_dataset": True}, load_best_model_at_end=True,
            **arguments,
        ),
        train_dataset=ours.train_dataset,
        eval_dataset=ours.eval_dataset,
        data_collator=DataCollatorForLanguageModeling(pad_token_id=0),
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2, early_stopping_threshold=0.001)],
    )  # fmt: skip
    trainer.train()
    return trainer


def test_the_rule_is_that_of_transformers() -> None:
    """On chains of values, with ties and changes below the threshold, against its own callback and its own choice."""
    chance = random.Random(3)
    ended = 0
    for larger, patience, least in itertools.product((False, True), (1, 2, 3), (0.0, 0.15)):
        for _ in range(60):
            values = [round(chance.gauss(0, 0.3), 1) for _ in range(8)]
            callback = EarlyStoppingCallback(patience, least)
            args: Any = SimpleNamespace(metric_for_best_model="m", greater_is_better=larger)
            state, control = TrainerState(), TrainerControl()
            best_step, over = 0, False
            for step, value in enumerate(values, 1):
                callback.on_evaluate(args, state, control, {"eval_m": value})
                if state.best_metric is None or (np.greater if larger else np.less)(value, state.best_metric):
                    state.best_metric, best_step = value, step
                over = control.should_training_stop
                metric = "valid_reward" if larger else "valid_loss"
                stopping = EarlyStopping(metric=metric, patience=patience, min_delta=least)
                found = best_of(list(enumerate(values[:step], 1)), metric, stopping)
                assert found is not None
                assert (found.step, found.value, found.is_over) == (best_step, state.best_metric, over)
                if over:
                    ended += 1
                    break
    assert ended > 300, "most of the chains end early"


@pytest.mark.parametrize(
    ("interval", "type", "rate"),
    [
        (None, "lora", 4e-3),
        pytest.param(3, "lora", 4e-3, marks=pytest.mark.soak),
        pytest.param(None, "full", 1e-3, marks=pytest.mark.soak),
    ],
)
def test_the_product_is_that_of_a_plain_script_that_stops_early(
    tmp_path: Path, interval: int | None, type: str, rate: float
) -> None:
    stopping = {"patience": 2, "min_delta": 0.001}
    folder = folder_of(
        tmp_path / "job", type=type, rate=rate, early_stopping=stopping, eval_interval=interval or "auto"
    )
    result = run(folder)

    when = {"eval_strategy": "epoch", "save_strategy": "epoch"}
    if interval:
        when = {
            "eval_strategy": "steps",
            "save_strategy": "steps",
            "eval_steps": interval,
            "save_steps": interval,
        }
    plain = plain_script(folder, tmp_path / "plain", **when)

    assert result.best is not None
    assert result.best.stopped_early
    assert result.best.step < result.best.last_step < EPOCHS * PER_EPOCH
    assert result.best.last_step == plain.state.global_step
    assert result.best.step == plain.state.best_global_step
    assert result.best.value == pytest.approx(plain.state.best_metric, rel=1e-4)
    assert result.metrics["valid_loss"] == result.best.value, "its own metrics, not those of the last step"
    theirs = {
        step["step"]: step["eval_loss"] for step in plain.state.log_history if "eval_loss" in step
    }  # fmt: skip
    assert evaluated(folder) == pytest.approx(theirs, rel=1e-3)
    product = (
        folder.adapter / "adapter_model.safetensors" if type == "lora" else folder.model / "model.safetensors"
    )
    plain.save_model(str(tmp_path / "best"))
    expected = load_file(tmp_path / "best" / product.name)
    found = load_file(product)
    if type == "full":
        expected = {name: one.to(torch.bfloat16) for name, one in expected.items()}
    assert found.keys() == expected.keys()
    for name, one in found.items():
        torch.testing.assert_close(one.float(), expected[name].float(), atol=1e-4, rtol=8e-3)
    assert "Stopped early at step" in messages(folder)
    assert f"at step {result.best.step}" in messages(folder).partition("The product is")[2]
    assert result.forgetting is not None
    assert result.metrics["general_kl"] == result.forgetting.kl
    if interval is None and type == "lora":
        assert result.forgetting.kl == pytest.approx(kl_of(folder), rel=1e-4), "that of the product"
    share = result.best.last_step / (EPOCHS * PER_EPOCH)
    whole = trainer_of(folder).train_dataset
    tokens = sum(len(row["input_ids"]) for row in whole) * EPOCHS
    assert result.trained_tokens == pytest.approx(share * tokens, abs=2)


def test_the_best_checkpoint_is_kept_however_old_and_the_run_goes_on_to_its_end(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "job", type="full", best_checkpoint="valid_loss", rate=1e-3)
    result = run(folder)

    values = evaluated(folder)
    best = min(values, key=lambda step: values[step])
    assert result.best is not None
    assert not result.best.stopped_early
    assert (result.best.step, result.best.last_step) == (best, EPOCHS * PER_EPOCH)
    assert best < (EPOCHS - 3) * PER_EPOCH, "older than those that are kept for use"
    assert best not in result.checkpoints
    saved = load_file(folder.checkpoints / f"step-{best}" / "model.safetensors")
    for name, one in load_file(folder.model / "model.safetensors").items():
        torch.testing.assert_close(one, saved[name].to(torch.bfloat16), atol=0, rtol=0)


def test_a_larger_accuracy_is_better_and_the_last_step_is_evaluated(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "job", best_checkpoint="valid_mean_token_accuracy", eval_interval=5)
    result = run(folder)
    found = [event["data"] for event in folder.read_events(0)[0] if event["type"] == "metrics"]
    values = {one["step"]: one["valid_mean_token_accuracy"] for one in found if "valid_loss" in one}
    assert sorted(values) == [5, 10, 15, 20, 25, 30, 32]
    assert result.best is not None
    assert result.best.value == max(values.values())
    assert result.best.step == next(step for step, value in values.items() if value == result.best.value)


@pytest.mark.parametrize(
    "options",
    [
        {"early_stopping": {"patience": 2}},
        # Better, but by too little: the last checkpoint is the best.
        {"early_stopping": {"patience": 1, "min_delta": 50.0}, "rate": 1e-3},
    ],
)
def test_a_run_that_was_killed_before_it_could_publish_does_no_further_step(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    folder = folder_of(tmp_path / "job", **options)
    result = run(folder)
    assert result.best is not None
    assert (result.best.step == result.best.last_step) == ("rate" in options)
    product = load_file(folder.adapter / "adapter_model.safetensors")
    steps = len(evaluated(folder))
    shutil.rmtree(folder.adapter)

    again = run(folder)

    assert len(evaluated(folder)) == steps
    assert again.best == result.best
    assert again.metrics == result.metrics
    assert again.trained_tokens == result.trained_tokens
    assert_close(load_file(folder.adapter / "adapter_model.safetensors"), product)


def test_a_run_that_was_killed_after_its_last_step_has_the_metrics_of_that_step(tmp_path: Path) -> None:
    folder = job_folder(tmp_path / "job", ROWS[:4], HELD_OUT, method="supervised", n_epochs=1, rank=4)
    metrics = run(folder).metrics
    assert metrics.keys() >= {"train_loss", "valid_loss", "general_kl"}
    shutil.rmtree(folder.adapter)
    assert run(folder).metrics == pytest.approx(metrics)


@pytest.mark.parametrize("at", [pytest.param(0, marks=pytest.mark.soak), 1])
def test_a_run_that_goes_on_from_an_earlier_checkpoint_decides_the_same(tmp_path: Path, at: int) -> None:
    """`at`: of the checkpoints that are kept, the oldest first."""
    folder = folder_of(tmp_path / "job", early_stopping={"patience": 2})
    expected = run(folder)
    assert expected.best is not None
    undisturbed = load_file(folder.adapter / "adapter_model.safetensors")
    shutil.rmtree(folder.adapter)
    steps = sorted(step for step, _ in folder.complete_checkpoints())
    assert steps[at] < expected.best.last_step
    for step in steps[at + 1 :]:
        shutil.rmtree(folder.checkpoints / f"step-{step}")

    assert run(folder).best == expected.best
    assert_close(load_file(folder.adapter / "adapter_model.safetensors"), undisturbed)


def test_an_evaluation_without_the_metric_ends_the_run_before_its_first_step(tmp_path: Path) -> None:
    events = EventLog(JobFolder(tmp_path), 0)
    metrics = {"eval_loss": 0.5, "eval_rewards/chosen": 0.0}
    with pytest.raises(TrainingFailed, match="has no valid_reward_margin") as told:
        tell_first_evaluation(events, metrics, "valid_reward_margin")
    assert told.value.code == "invalid_validation_file"
    tell_first_evaluation(events, metrics, "valid_loss")


def test_what_auto_becomes() -> None:
    def resolved(method: str = "supervised", **tuning: Any) -> Any:
        return resolve(
            tuning=TuningOptions(**tuning), hyperparameters=HyperparameterOptions(eval_interval=7), rows=64,
            context=1024, max_rank=64, device="cpu", method=method,
        )  # fmt: skip

    assert resolved().best_checkpoint is None
    assert resolved().early_stopping is None
    assert resolved(best_checkpoint="valid_loss").early_stopping is None
    assert resolved(early_stopping={}).early_stopping == EarlyStopping(metric="valid_loss")
    assert resolved(early_stopping={"metric": "auto"}).best_checkpoint == "valid_loss"
    assert resolved("reinforcement", early_stopping={}).best_checkpoint == "valid_reward"
    assert resolved(eval_interval=3).eval_interval == 3
    assert resolved("reinforcement").eval_interval == 7
    assert set(METRICS) == set(METHODS)
