"""The method dpo trains as a plain script with TRL's DPOTrainer does, beside a reference that does not change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer

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
from tiny import tiny_adapter
from tunewright.config import embedded_base_path
from tunewright.jobs.folder import JobFolder
from tunewright.trainer.methods.dpo import PreferenceTrainer
from tunewright.trainer.products import save_product
from tunewright.trainer.spec import TrainingSpec
from tunewright.trainer.training import Stopped

MEASURES = ("loss", "grad_norm", "rewards/margins", "rewards/chosen", "rewards/accuracies", "logps/rejected")
NOTHING_LEFT = 1e-5
"""Absolute: the order of sums in float32."""


def steps(trainer: DPOTrainer) -> list[dict[str, float]]:
    return [{name: step[name] for name in MEASURES} for step in trainer.state.log_history if "loss" in step]


def plain_script(folder: JobFolder, rows: list[Any], model: Any = None, **arguments: Any) -> DPOTrainer:
    """What a person would write with TRL alone, with the values of the job."""
    tuning = folder.read_spec(TrainingSpec).tuning
    given, tokenizer, config = plain_parts(folder)
    trainer = DPOTrainer(
        model=model or AutoModelForCausalLM.from_pretrained(embedded_base_path(), dtype=torch.float32),
        args=DPOConfig(
            **given, beta=tuning.beta, loss_type=tuning.loss_type,
            label_smoothing=tuning.label_smoothing,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=config if model is None else None,
        **arguments,
    )  # fmt: skip
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("form", "loss", "smoothing", "per_device"),
    [pytest.param("text", "sigmoid", "auto", 4, marks=pytest.mark.soak), ("messages", "sigmoid", "auto", 2),
     pytest.param("openai", "robust", 0.2, 4, marks=pytest.mark.soak), ("text", "ipo", "auto", 4)],
)  # fmt: skip
def test_losses_margins_gradients_and_weights_are_those_of_a_plain_script(
    tmp_path: Path, form: str, loss: str, smoothing: Any, per_device: int
) -> None:
    rows = text_rows(10)
    plain_rows: list[Any] = list(rows) if form == "text" else list(map(as_messages, rows))
    folder = job_folder(
        tmp_path / "job",
        list(map(as_openai, rows)) if form == "openai" else plain_rows,
        hyperparameters={"beta": 0.3},
        spec={"chat_template": TEMPLATE},
        loss_type=loss,
        label_smoothing=smoothing,
        per_device_batch_size=per_device,
    )
    ours = trainer_of(folder)
    ours.train()

    plain = plain_script(folder, plain_rows)

    assert len(steps(ours)) == 6
    for step, other in zip(steps(ours), steps(plain), strict=True):
        assert step == pytest.approx(other, abs=NOTHING_LEFT, rel=NOTHING_LEFT)
    assert steps(ours)[-1]["rewards/margins"] > 0
    assert_close(trained(ours.model), trained(plain.model))


def test_a_new_adapters_reference_is_the_model_without_it(tmp_path: Path) -> None:
    trainer = trainer_of(job_folder(tmp_path / "job", text_rows(4)))

    assert list(trainer.model.peft_config) == ["default"], "no second adapter is held"
    assert trainer.ref_model is None
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_()
    chosen, _ = trainer.compute_ref_log_probs(trainer.model, batch)
    base = AutoModelForCausalLM.from_pretrained(embedded_base_path(), dtype=torch.float32)
    with torch.no_grad():
        half = len(batch["input_ids"]) // 2
        logits = base(
            input_ids=batch["input_ids"][:half], attention_mask=batch["attention_mask"][:half]
        ).logits
    said = logits[:, :-1].log_softmax(-1).gather(2, batch["input_ids"][:half, 1:, None])[:, :, 0]
    assert torch.allclose((said * batch["completion_mask"][:half, 1:]).sum(1), chosen, atol=1e-3)


def test_training_that_goes_on_from_an_adapter_compares_with_that_adapter(tmp_path: Path) -> None:
    parent = tiny_adapter(tmp_path / "parent", embedded_base_path(), r=8, target_modules="all-linear")
    rows = text_rows(8)
    folder = job_folder(tmp_path / "job", rows, rows, rank=8, spec={"parent_adapter": str(parent)})
    trainer = trainer_of(folder)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if ".ref." in n}

    assert trainer.evaluate()["eval_rewards/margins"] == 0.0
    trainer.train()

    after = dict(trainer.model.named_parameters())
    assert before
    assert all(torch.equal(before[name], after[name]) for name in before), "the reference does not change"
    base = AutoModelForCausalLM.from_pretrained(embedded_base_path(), dtype=torch.float32)
    plain = plain_script(folder, rows, PeftModel.from_pretrained(base, parent, is_trainable=True))
    for step, other in zip(steps(trainer), steps(plain), strict=True):
        assert step == pytest.approx(other, abs=NOTHING_LEFT, rel=NOTHING_LEFT)
    assert_close(trained(trainer.model), trained(plain.model))


def test_checkpoints_and_the_product_have_the_trained_adapter_alone(tmp_path: Path) -> None:
    parent = tiny_adapter(tmp_path / "parent", embedded_base_path(), r=8, target_modules="all-linear")
    folder = job_folder(
        tmp_path / "job", text_rows(4), rank=8, n_epochs=2, spec={"parent_adapter": str(parent)}
    )
    trainer = trainer_of(folder)
    trainer.train()
    trainer.save_model(str(tmp_path / "checkpoint"))
    save_product(trainer, trainer.processing_class, folder)

    for saved in (tmp_path / "checkpoint", folder.adapter):
        assert (saved / "adapter_model.safetensors").is_file()
        assert not [path.name for path in saved.iterdir() if path.is_dir()]
        tensors = load_file(saved / "adapter_model.safetensors")
        assert not [name for name in tensors if "ref" in name.split(".")]
        assert not all(
            torch.equal(one, load_file(parent / "adapter_model.safetensors")[name])
            for name, one in tensors.items()
        )


def test_training_all_weights_compares_with_numbers_that_are_computed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = text_rows(10)
    folder = job_folder(tmp_path / "job", rows, rows[:4], type="full", learning_rate=1e-4)
    trainer = trainer_of(folder)
    assert trainer.ref_model is None, "no second model is held"
    before = trainer.evaluate()
    trainer.train()

    base = AutoModelForCausalLM.from_pretrained(embedded_base_path(), dtype=torch.float32)
    second = AutoModelForCausalLM.from_pretrained(embedded_base_path(), dtype=torch.float32)
    plain = plain_script(folder, rows, base, ref_model=second)
    for step, other in zip(steps(trainer), steps(plain), strict=True):
        assert step == pytest.approx(other, abs=1e-4, rel=1e-4)
    assert_close(trained(trainer.model), trained(plain.model))

    monkeypatch.setattr(
        PreferenceTrainer, "compute_ref_log_probs", None
    )  # a start that computed them would fail
    again = trainer_of(folder)
    assert again.evaluate() == before


def test_a_start_that_is_interrupted_leaves_the_numbers_that_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = text_rows(11)
    options: dict[str, Any] = {"type": "full", "batch_size": 2, "per_device_batch_size": 2}
    whole = trainer_of(job_folder(tmp_path / "whole" / "job", rows, **options)).train_dataset
    folder = job_folder(tmp_path / "job", rows, **options)
    compute = PreferenceTrainer.compute_ref_log_probs
    calls: list[int] = []

    def interrupted(self: Any, model: Any, batch: Any) -> Any:
        if len(calls) == 3:
            raise Stopped
        calls.append(len(batch["input_ids"]) // 2)
        return compute(self, model, batch)

    monkeypatch.setattr(PreferenceTrainer, "compute_ref_log_probs", interrupted)
    with pytest.raises(Stopped):
        trainer_of(folder)
    calls.clear()
    monkeypatch.setattr(
        PreferenceTrainer, "compute_ref_log_probs", lambda *given: (calls.append(1), compute(*given))[1]
    )
    assert list(trainer_of(folder).train_dataset) == list(whole)
    assert sum(calls) == 3, "two, two and one pair were left"


@pytest.mark.parametrize("batch", [1, 3])
def test_the_evaluation_gives_every_pair_the_same_weight(tmp_path: Path, batch: int) -> None:
    rows = text_rows(7)
    adapter = tiny_adapter(tmp_path / "parent", embedded_base_path(), r=8, target_modules="all-linear")

    def evaluated(name: str, per_device: int) -> dict[str, float]:
        folder = job_folder(
            tmp_path / name / "job", rows, rows, batch_size=per_device, per_device_batch_size=per_device,
            spec={"parent_adapter": str(adapter)}, rank=8,
        )  # fmt: skip
        trainer = trainer_of(folder)
        with torch.no_grad():
            for parameter in trained_parameters(trainer.model):
                parameter.mul_(1.5)
        return trainer.evaluate()

    assert evaluated("small", batch) == pytest.approx(evaluated("large", 7), rel=1e-4)


def trained_parameters(model: Any) -> list[torch.Tensor]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def test_the_reward_accuracy_on_held_out_pairs_rises(tmp_path: Path) -> None:
    folder = job_folder(
        tmp_path / "job",
        text_rows(32),
        text_rows(12, start=100),
        n_epochs=3,
        batch_size=8,
        learning_rate=2e-3,
    )
    trainer = trainer_of(folder)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()

    assert before["eval_rewards/accuracies"] == 0.0, "the model is its own reference: no reward is larger"
    assert before["eval_loss"] == pytest.approx(0.6931, abs=1e-3)
    assert after["eval_rewards/accuracies"] > 0.9
    assert after["eval_rewards/margins"] > 0.5
    assert after["eval_loss"] < 0.5
