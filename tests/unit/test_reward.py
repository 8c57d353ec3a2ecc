"""The method reward trains as a plain script with TRL's RewardTrainer does; its product is a whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer

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
from tunewright.trainer.products import save_product
from tunewright.trainer.spec import TrainingSpec

MEASURES = ("loss", "grad_norm", "accuracy", "margin", "mean_reward", "num_tokens")
NOTHING_LEFT = 1e-5
"""Absolute: the order of sums in float32."""


def steps(trainer: RewardTrainer) -> list[dict[str, float]]:
    return [{name: step[name] for name in MEASURES} for step in trainer.state.log_history if "loss" in step]


def plain_script(folder: JobFolder, rows: list[Any]) -> RewardTrainer:
    """What a person would write with TRL alone, with the values of the job."""
    given, tokenizer, config = plain_parts(folder, "SEQ_CLS")
    trainer = RewardTrainer(
        model=str(embedded_base_path()),
        args=RewardConfig(
            **given, model_init_kwargs={"dtype": torch.float32},
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
def test_losses_rewards_gradients_and_weights_are_those_of_a_plain_script(
    tmp_path: Path, form: str, per_device: int, type: str
) -> None:
    rows = text_rows(10)
    plain_rows: list[Any] = list(rows) if form == "text" else list(map(as_messages, rows))
    folder = job_folder(
        tmp_path / "job", list(map(as_openai, rows)) if form == "openai" else plain_rows, method="reward", type=type,
        spec={"chat_template": TEMPLATE}, per_device_batch_size=per_device,
        learning_rate=1e-4 if type == "full" else 3e-4,
    )  # fmt: skip
    ours = trainer_of(folder)
    ours.train()

    plain = plain_script(folder, plain_rows)

    assert len(steps(ours)) == 6
    for step, other in zip(steps(ours), steps(plain), strict=True):
        assert step == pytest.approx(other, abs=NOTHING_LEFT, rel=NOTHING_LEFT)
    assert_close(trained(ours.model), trained(plain.model))
    assert any("score" in name for name in trained(ours.model)), "the head is trained"


@pytest.mark.parametrize("type", ["lora", pytest.param("qlora", marks=pytest.mark.soak)])
def test_better_answers_score_more_on_held_out_pairs_and_the_product_is_a_whole_model(
    tmp_path: Path, type: str
) -> None:
    folder = job_folder(
        tmp_path / "job", text_rows(32), text_rows(12, start=100), n_epochs=3, batch_size=8, learning_rate=2e-3,
        method="reward", type=type,
    )  # fmt: skip
    trainer = trainer_of(folder)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_accuracy"] > 0.9
    assert after["eval_loss"] < before["eval_loss"] / 2
    assert after["eval_margin"] > before["eval_margin"] + 1

    trainer.args.per_device_eval_batch_size = 5
    rounding = 1e-4 if type == "lora" else 1e-2
    assert trainer.evaluate() == pytest.approx(after, rel=rounding), "every pair has the same weight"

    batch = next(iter(trainer.get_eval_dataloader()))
    trainer.model.eval()
    with torch.no_grad():
        ours = trainer.model(**batch).logits[:, 0]
    save_product(trainer, trainer.processing_class, folder, scores_of=folder.read_spec(TrainingSpec))
    assert sorted(path.name for path in folder.path.glob("*") if "tmp" in path.name) == []
    assert not folder.adapter.exists()
    model = AutoModelForSequenceClassification.from_pretrained(folder.model, dtype=torch.float32)
    assert model.config.num_labels == 1
    assert model.config.pad_token_id == AutoTokenizer.from_pretrained(folder.model).pad_token_id
    with torch.no_grad():
        scores = model(**batch).logits[:, 0]
    assert torch.allclose(scores, ours.float(), atol=0.05 if type == "lora" else 0.5), "in 16 bits"
