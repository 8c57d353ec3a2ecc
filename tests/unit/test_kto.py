"""The method kto trains as a plain script with TRL's KTOTrainer does, beside a reference that does not change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM
from trl import KTOConfig, KTOTrainer

from preferences import (
    TEMPLATE,
    assert_close,
    job_folder,
    labelled_chat,
    labelled_messages,
    labelled_rows,
    plain_parts,
    trained,
    trainer_of,
)
from tiny import tiny_adapter
from tunewright.config import embedded_base_path
from tunewright.jobs.failure import TrainingFailed
from tunewright.jobs.folder import JobFolder
from tunewright.plan.fitting import with_less_memory
from tunewright.trainer.methods.kto import FixedBatches, LabelledTrainer
from tunewright.trainer.spec import TrainingSpec
from tunewright.trainer.training import Stopped

MEASURES = (
    "loss",
    "grad_norm",
    "kl",
    "rewards/margins",
    "rewards/chosen",
    "rewards/rejected",
    "logps/rejected",
)
NOTHING_LEFT = 1e-5
"""Absolute: the order of sums in float32."""
WEIGHTS: dict[str, Any] = {"desirable_weight": 0.8, "undesirable_weight": 1.5}


def steps(trainer: KTOTrainer) -> list[dict[str, float]]:
    logged = [step for step in trainer.state.log_history if "loss" in step]
    return [{name: step[name] for name in MEASURES if name in step} for step in logged]


def plain_script(folder: JobFolder, rows: list[Any], model: Any = None, **arguments: Any) -> KTOTrainer:
    """What a person would write with TRL alone, with the values of the job, on rows in the order of their training."""
    tuning = folder.read_spec(TrainingSpec).tuning
    given, tokenizer, config = plain_parts(folder)
    trainer = KTOTrainer(
        model=model or AutoModelForCausalLM.from_pretrained(embedded_base_path(), dtype=torch.float32),
        args=KTOConfig(
            **(given | {"num_train_epochs": 1}), beta=tuning.beta, desirable_weight=tuning.desirable_weight,
            undesirable_weight=tuning.undesirable_weight,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=config if model is None else None,
        **arguments,
    )  # fmt: skip
    trainer.train()
    return trainer


def drawn(trainer: LabelledTrainer, rows: list[Any], epochs: int) -> list[Any]:
    """The rows in the order in which the trainer takes them."""
    found = []
    for epoch in range(epochs):
        trainer.order.set_epoch(epoch)
        found += [rows[index] for index in trainer.order]
    trainer.order.set_epoch(0)
    return found


@pytest.mark.parametrize(
    ("form", "per_device"),
    [
        pytest.param("text", 4, marks=pytest.mark.soak),
        ("messages", 2),
        pytest.param("chat", 2, marks=pytest.mark.soak),
    ],
)
def test_losses_rewards_gradients_and_weights_are_those_of_a_plain_script(
    tmp_path: Path, form: str, per_device: int
) -> None:
    rows: list[Any] = labelled_rows(12)
    as_messages = list(map(labelled_messages, rows))
    forms = {"text": rows, "messages": as_messages, "chat": list(map(labelled_chat, rows))}
    folder = job_folder(
        tmp_path / "job", forms[form], hyperparameters={"beta": 0.3}, spec={"chat_template": TEMPLATE}, method="kto",
        per_device_batch_size=per_device, learning_rate=5e-4, **WEIGHTS,
    )  # fmt: skip
    ours = trainer_of(folder)
    taken = drawn(ours, rows if form == "text" else as_messages, epochs=2)
    ours.train()

    plain = plain_script(folder, taken)

    assert len(steps(ours)) == 6
    for step, other in zip(steps(ours), steps(plain), strict=True):
        assert step == pytest.approx(other, abs=NOTHING_LEFT, rel=NOTHING_LEFT)
    assert steps(ours)[-1]["rewards/margins"] > 0
    assert_close(trained(ours.model), trained(plain.model))


def test_in_the_order_of_the_file_it_is_the_script_on_the_same_file(tmp_path: Path) -> None:
    rows = labelled_rows(10)
    folder = job_folder(tmp_path / "job", rows, method="kto", n_epochs=1, learning_rate=5e-4, **WEIGHTS)
    ours = trainer_of(folder)
    ours.order = SequentialSampler(ours.train_dataset)
    ours.train()

    plain = plain_script(folder, rows)

    for step, other in zip(steps(ours), steps(plain), strict=True):
        assert step == pytest.approx(other, abs=NOTHING_LEFT, rel=NOTHING_LEFT)
    assert_close(trained(ours.model), trained(plain.model))


def test_a_new_adapter_needs_no_second_model(tmp_path: Path) -> None:
    trainer = trainer_of(job_folder(tmp_path / "job", labelled_rows(4), method="kto"))
    assert list(trainer.model.peft_config) == ["default"]
    assert trainer.ref_model is None


def test_training_that_goes_on_from_an_adapter_compares_with_that_adapter(tmp_path: Path) -> None:
    parent = tiny_adapter(tmp_path / "parent", embedded_base_path(), r=8, target_modules="all-linear")
    rows = labelled_rows(8)
    folder = job_folder(
        tmp_path / "job",
        rows,
        rows,
        rank=8,
        spec={"parent_adapter": str(parent)},
        method="kto",
        n_epochs=1,
        learning_rate=5e-4,
    )
    trainer = trainer_of(folder)
    taken = drawn(trainer, rows, epochs=1)
    before = trainer.evaluate()
    assert (before["eval_rewards/margins"], before["eval_kl"]) == (0.0, 0.0)
    trainer.train()

    base = AutoModelForCausalLM.from_pretrained(embedded_base_path(), dtype=torch.float32)
    plain = plain_script(folder, taken, PeftModel.from_pretrained(base, parent, is_trainable=True))
    for step, other in zip(steps(trainer), steps(plain), strict=True):
        assert step == pytest.approx(other, abs=NOTHING_LEFT, rel=NOTHING_LEFT)
    assert_close(trained(trainer.model), trained(plain.model))


def test_training_all_weights_compares_with_numbers_that_are_computed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = labelled_rows(12)
    folder = job_folder(
        tmp_path / "job", rows, rows[:5], method="kto", type="full", learning_rate=1e-4, **WEIGHTS
    )
    trainer = trainer_of(folder)
    assert trainer.ref_model is None, "no second model is held"
    taken = drawn(trainer, rows, epochs=2)
    before = trainer.evaluate()
    trainer.train()

    base = AutoModelForCausalLM.from_pretrained(embedded_base_path(), dtype=torch.float32)
    second = AutoModelForCausalLM.from_pretrained(embedded_base_path(), dtype=torch.float32)
    plain = plain_script(folder, taken, base, ref_model=second)
    for step, other in zip(steps(trainer), steps(plain), strict=True):
        assert step == pytest.approx(other, abs=1e-4, rel=1e-4)
    assert_close(trained(trainer.model), trained(plain.model))

    monkeypatch.setattr(
        LabelledTrainer, "compute_ref_log_probs", None
    )  # a start that computed them would fail
    assert trainer_of(folder).evaluate() == before


def test_a_start_that_is_interrupted_leaves_the_numbers_that_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = labelled_rows(11)
    options: dict[str, Any] = {"type": "full", "batch_size": 2, "per_device_batch_size": 2, "method": "kto"}
    whole = trainer_of(job_folder(tmp_path / "whole" / "job", rows, **options)).train_dataset
    folder = job_folder(tmp_path / "job", rows, **options)
    compute = LabelledTrainer.compute_ref_log_probs
    calls: list[int] = []

    def interrupted(self: Any, model: Any, batch: Any) -> Any:
        if len(calls) == 3:
            raise Stopped
        calls.append(len(batch["input_ids"]))
        return compute(self, model, batch)

    monkeypatch.setattr(LabelledTrainer, "compute_ref_log_probs", interrupted)
    with pytest.raises(Stopped):
        trainer_of(folder)
    calls.clear()
    monkeypatch.setattr(
        LabelledTrainer, "compute_ref_log_probs", lambda *given: (calls.append(1), compute(*given))[1]
    )
    again = trainer_of(folder).train_dataset
    assert [again[n] for n in range(11)] == [whole[n] for n in range(11)]
    assert sum(calls) == 3, "two, two and one row were left"


def test_batches_of_all_weights_are_the_same_in_each_epoch_and_come_by_chance() -> None:
    batches = FixedBatches(np.random.default_rng(1).permutation(50), 4, seed=3)
    epochs = []
    for epoch in range(3):
        batches.set_epoch(epoch)
        rows = list(batches)
        assert sorted(rows) == list(range(50))
        epochs.append([frozenset(rows[begin : begin + 4]) for begin in range(0, 50, 4)])
    assert set(epochs[0]) == set(epochs[1]) == set(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2]
    partners = batches.partners()
    assert sorted(partners) == list(range(50)), "every answer is behind another prompt once"
    for batch in epochs[0]:
        assert {int(partners[row]) for row in batch} == batch
        assert all(partners[row] != row for row in batch)


def test_with_less_memory_batches_are_pieces_of_those_before_and_nothing_is_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = labelled_rows(11)
    folder = job_folder(tmp_path / "job", rows, method="kto", type="full", per_device_batch_size=4)
    before, spec = trainer_of(folder), folder.read_spec(TrainingSpec)
    less = with_less_memory(spec.tuning.model_copy(update={"gradient_checkpointing": True}))
    assert less is not None
    assert less.per_device_batch_size == 2
    folder.write_spec(spec.model_copy(update={"tuning": less}))
    monkeypatch.setattr(LabelledTrainer, "compute_ref_log_probs", None)
    after = trainer_of(folder)
    assert list(after.order) == list(before.order)
    assert [after.train_dataset[n] for n in range(11)] == [before.train_dataset[n] for n in range(11)]


@pytest.mark.parametrize("type", ["lora", "full"])
def test_a_row_that_is_alone_in_the_last_batch_is_compared_with_another(tmp_path: Path, type: str) -> None:
    rows = labelled_rows(5)
    trainer = trainer_of(
        job_folder(tmp_path / "job", rows, method="kto", type=type, batch_size=2, per_device_batch_size=2)
    )
    *whole, alone = trainer.get_train_dataloader()
    assert [len(batch["label"]) for batch in (*whole, alone)] == [2, 2, 1]
    for batch in (*whole, alone):
        for own, other in zip(batch["input_ids"], batch["KL_input_ids"], strict=True):
            assert own.tolist() != other.tolist()
    if type == "lora":  # as TRL pairs them
        first, second = whole[0]["completion_mask"].sum(1)
        assert whole[0]["KL_completion_mask"].sum(1).tolist() == [second, first]


@pytest.mark.parametrize("batch", [2, 3])
def test_the_evaluation_does_not_depend_on_the_rows_at_a_time(tmp_path: Path, batch: int) -> None:
    rows = labelled_rows(7)
    parent = tiny_adapter(tmp_path / "parent", embedded_base_path(), r=8, target_modules="all-linear")

    def evaluated(name: str, per_device: int) -> dict[str, float]:
        folder = job_folder(
            tmp_path / name / "job", rows, rows, batch_size=per_device, per_device_batch_size=per_device,
            spec={"parent_adapter": str(parent)}, rank=8, method="kto",
        )  # fmt: skip
        trainer = trainer_of(folder)
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                if parameter.requires_grad:
                    parameter.mul_(1.5)
        return dict(trainer.evaluate())

    small, large = evaluated("small", batch), evaluated("large", 7)
    assert small == pytest.approx(large, rel=1e-4)
    assert small["eval_rewards/margins"] != 0


def test_the_margin_on_held_out_rows_rises(tmp_path: Path) -> None:
    folder = job_folder(
        tmp_path / "job", labelled_rows(36), labelled_rows(12, start=100), n_epochs=3, batch_size=8,
        learning_rate=2e-3, method="kto",
    )  # fmt: skip
    trainer = trainer_of(folder)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()

    assert before["eval_loss"] == pytest.approx(0.5, abs=1e-6), "the model is its own reference"
    assert after["eval_rewards/margins"] > 0.5
    assert after["eval_loss"] < 0.45


def test_a_single_row_is_refused_with_what_to_do(tmp_path: Path) -> None:
    folder = job_folder(tmp_path / "job", labelled_rows(1), method="kto", batch_size=1)
    with pytest.raises(TrainingFailed, match="at least two rows"):
        trainer_of(folder)
