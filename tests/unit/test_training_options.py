"""Options of training are those of peft and transformers: the trained weights are those of a plain script with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

import torch
import transformers
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from preferences import SEED, assert_close, job_folder, text_rows, trained, trainer_of
from tunewright.config import embedded_base_path
from tunewright.jobs.folder import JobFolder
from tunewright.trainer.spec import TrainingSpec

ROWS = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in text_rows(12)]
STEPS = 6


def folder_of(path: Path, **tuning: Any) -> JobFolder:
    return job_folder(path / "job", ROWS, method="supervised", weight_decay=0.01, **tuning)


def plain_script(folder: JobFolder, rows: Any, **arguments: Any) -> SFTTrainer:
    """TRL's trainer on the same tokens, without any code of ours."""
    tuning = folder.read_spec(TrainingSpec).tuning
    transformers.set_seed(SEED)
    base = AutoModelForCausalLM.from_pretrained(embedded_base_path(), dtype=torch.float32)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=tuning.rank, lora_alpha=tuning.alpha, target_modules="all-linear",
        init_lora_weights=arguments.pop("init", True),
    )  # fmt: skip
    optimizer_of, seed = arguments.pop("optimizer_of", None), arguments.pop("before_training", None)
    model = get_peft_model(base, config)
    optimizers = (None, None)
    if optimizer_of is not None:
        optimizer = optimizer_of(model)
        optimizers = (optimizer, get_cosine_schedule_with_warmup(optimizer, 1, STEPS))
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(folder.path / "plain"), use_cpu=True, bf16=False, seed=SEED, data_seed=SEED,
            num_train_epochs=2, per_device_train_batch_size=4, learning_rate=tuning.learning_rate,
            lr_scheduler_type="cosine", warmup_steps=1, weight_decay=0.01, max_grad_norm=1.0, max_length=1024,
            gradient_checkpointing=False, logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
            remove_unused_columns=False, dataset_kwargs={"skip_prepare_dataset": True}, **arguments,
        ),
        train_dataset=rows,
        data_collator=DataCollatorForLanguageModeling(pad_token_id=0),
        optimizers=optimizers,
    )  # fmt: skip
    if seed is not None:
        transformers.set_seed(seed)
    trainer.train()
    return trainer


def test_lora_plus_is_the_optimizer_of_peft(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, loraplus_lr_ratio=16.0, learning_rate=1e-4)
    ours = trainer_of(folder)
    ours.train()

    plain = plain_script(
        folder,
        ours.train_dataset,
        optimizer_of=lambda model: create_loraplus_optimizer(
            model, torch.optim.AdamW, lr=1e-4, loraplus_lr_ratio=16.0, loraplus_weight_decay=0.01
        ),
    )

    assert ours.state.global_step == STEPS
    assert {round(group["initial_lr"], 9) for group in ours.optimizer.param_groups if group["params"]} == {
        1e-4,
        16e-4,
    }
    assert_close(trained(ours.model), trained(plain.model))


def test_neftune_is_that_of_transformers_and_held_out_rows_have_no_noise(tmp_path: Path) -> None:
    folder = job_folder(
        tmp_path / "job", ROWS, ROWS[:4], method="supervised", weight_decay=0.01, neftune_alpha=8.0
    )  # fmt: skip
    ours = trainer_of(folder)
    before = ours.evaluate()
    assert ours.evaluate() == before
    ours.args.eval_strategy = "no"
    transformers.set_seed(SEED)
    ours.train()

    plain = plain_script(folder, ours.train_dataset, neftune_noise_alpha=8.0, before_training=SEED)
    assert_close(trained(ours.model), trained(plain.model))

    without = trainer_of(folder_of(tmp_path / "without"))
    without.train()
    differences = [
        (one - trained(ours.model)[name]).abs().max() for name, one in trained(without.model).items()
    ]
    assert max(differences) > 1e-4, "the noise changes what is learnt"
