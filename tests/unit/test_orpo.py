"""The method orpo trains as a plain script with TRL's ORPOTrainer does, without holding the logits of its answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from preferences import (
    TEMPLATE,
    as_messages,
    as_openai,
    assert_close,
    job_folder,
    plain_parts,
    text_rows,
    trained,
    trainer_of,
)
from tunewright.config import embedded_base_path
from tunewright.jobs.folder import JobFolder
from tunewright.rows.canonical import ANSWERS
from tunewright.trainer.spec import TrainingSpec

MEASURES = (
    "loss", "grad_norm", "nll_loss", "log_odds_chosen", "rewards/margins", "rewards/accuracies", "logps/rejected"
)  # fmt: skip
NOTHING_LEFT = 1e-5
"""Absolute: the order of sums in float32."""


def steps(trainer: ORPOTrainer) -> list[dict[str, float]]:
    return [{name: step[name] for name in MEASURES} for step in trainer.state.log_history if "loss" in step]


def plain_script(folder: JobFolder, rows: list[Any]) -> ORPOTrainer:
    """What a person would write with TRL alone, with the values of the job."""
    tuning = folder.read_spec(TrainingSpec).tuning
    given, tokenizer, config = plain_parts(folder)
    trainer = ORPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(embedded_base_path(), dtype=torch.float32),
        args=ORPOConfig(
            **given, beta=tuning.beta,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=config,
    )  # fmt: skip
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("form", "per_device", "type"),
    [
        pytest.param("text", 4, "lora", marks=pytest.mark.soak),
        ("openai", 2, "lora"),
        pytest.param("messages", 2, "full", marks=pytest.mark.soak),
    ],
)
def test_losses_odds_gradients_and_weights_are_those_of_a_plain_script(
    tmp_path: Path, form: str, per_device: int, type: str
) -> None:
    rows = text_rows(10)
    plain_rows: list[Any] = list(rows) if form == "text" else list(map(as_messages, rows))
    folder = job_folder(
        tmp_path / "job", list(map(as_openai, rows)) if form == "openai" else plain_rows, method="orpo", type=type,
        hyperparameters={"beta": 0.3}, spec={"chat_template": TEMPLATE}, per_device_batch_size=per_device,
        learning_rate=1e-4 if type == "full" else 3e-4,
    )  # fmt: skip
    ours = trainer_of(folder)
    ours.train()

    plain = plain_script(folder, plain_rows)

    assert len(steps(ours)) == 6
    for step, other in zip(steps(ours), steps(plain), strict=True):
        assert step == pytest.approx(other, abs=NOTHING_LEFT, rel=NOTHING_LEFT)
    assert_close(trained(ours.model), trained(plain.model))
    tokens = [step["num_tokens"] for step in ours.state.log_history if "loss" in step]
    assert tokens == sorted(tokens)
    assert tokens[-1] == 2 * sum(len(pair[f"{name}_ids"]) for pair in ours.train_dataset for name in ANSWERS)


@pytest.mark.parametrize("batch", [1, 3])
def test_the_evaluation_gives_every_token_and_every_pair_the_same_weight(tmp_path: Path, batch: int) -> None:
    rows = text_rows(7)

    def evaluated(name: str, per_device: int) -> dict[str, float]:
        folder = job_folder(
            tmp_path / name / "job", rows, rows, batch_size=per_device, per_device_batch_size=per_device,
            method="orpo",
        )  # fmt: skip
        return dict(trainer_of(folder).evaluate())

    small, large = evaluated("small", batch), evaluated("large", 7)
    assert small == pytest.approx(large, rel=1e-4)
    assert small["eval_loss"] > small["eval_nll_loss"] > 0


def test_good_answers_become_likelier_than_bad_ones_on_held_out_pairs(tmp_path: Path) -> None:
    folder = job_folder(
        tmp_path / "job", text_rows(32), text_rows(12, start=100), n_epochs=3, batch_size=8, learning_rate=2e-3,
        method="orpo",
    )  # fmt: skip
    trainer = trainer_of(folder)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()

    assert after["eval_log_odds_chosen"] > before["eval_log_odds_chosen"] + 0.5
    assert after["eval_loss"] < before["eval_loss"]
    assert after["eval_rewards/accuracies"] >= before["eval_rewards/accuracies"]
