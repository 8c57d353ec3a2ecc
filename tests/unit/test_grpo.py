"""The method reinforcement trains as a plain script with TRL's GRPOTrainer does, on the tokens of requests."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

import torch
import transformers
from datasets import Dataset
from peft import LoraConfig
from rapidfuzz import fuzz
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.trainer.utils import RepeatSampler

import graded
from graded import GRADER, NEAR, SEED, graded_folder, graded_trainer, prompts
from tiny import tiny_adapter
from tunewright.config import embedded_base_path
from tunewright.jobs.failure import TrainingFailed
from tunewright.jobs.folder import JobFolder
from tunewright.rows.chat import ChatEncoder
from tunewright.rows.renderer import stop_tokens
from tunewright.trainer.items import training_items
from tunewright.trainer.methods.grpo import EpochPrompts
from tunewright.trainer.model import leave_casts_to_autocast, load_model
from tunewright.trainer.spec import TrainingSpec
from tunewright.trainer.training import Parts

MEASURES = (
    "loss", "grad_norm", "reward", "reward_std", "completions/mean_length", "completions/clipped_ratio", "num_tokens",
    "learning_rate",
)  # fmt: skip

NOTHING_LEFT = 5e-5
"""Absolute: the order of sums in float32, in weights that steps have moved by up to 4e-3."""


def steps(trainer: GRPOTrainer, *more: str) -> list[dict[str, float]]:
    return [
        {name: step[name] for name in (*MEASURES, *more)}
        for step in trainer.state.log_history
        if "loss" in step
    ]


def trained(model: Any) -> dict[str, torch.Tensor]:
    return {name: one.detach().clone() for name, one in model.named_parameters() if one.requires_grad}


def assert_close(ours: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]) -> None:
    assert ours.keys() == others.keys()
    assert max(float((ours[name] - others[name]).abs().max()) for name in ours) < NOTHING_LEFT


def reward(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
    """What the grader computes, without it."""
    texts = [completion[0]["content"] for completion in completions]
    return [
        fuzz.ratio(text, right) / 100 + 0.5 * bool(re.search("[aA]", text))
        for text, right in zip(texts, answer, strict=True)
    ]


def plain_script(folder: JobFolder, rows: list[Any]) -> GRPOTrainer | RLOOTrainer:
    """What a person would write with TRL alone, with the values of the job."""
    tuning = folder.read_spec(TrainingSpec).tuning
    assert tuning.num_generations is not None
    transformers.set_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(embedded_base_path())
    make, config = (RLOOTrainer, RLOOConfig) if tuning.algorithm == "rloo" else (GRPOTrainer, GRPOConfig)
    trainer = make(
        model=AutoModelForCausalLM.from_pretrained(embedded_base_path(), dtype=torch.float32),
        reward_funcs=reward,
        args=config(
            output_dir=str(folder.path / "plain"), use_cpu=True, bf16=False, seed=SEED, data_seed=SEED,
            num_train_epochs=tuning.n_epochs,
            per_device_train_batch_size=tuning.per_device_batch_size * tuning.num_generations,
            gradient_accumulation_steps=tuning.gradient_accumulation_steps, learning_rate=tuning.learning_rate,
            lr_scheduler_type="cosine", warmup_steps=1, weight_decay=0.0, max_grad_norm=1.0,
            num_generations=tuning.num_generations, max_completion_length=tuning.max_completion_length,
            beta=tuning.beta, temperature=tuning.temperature, gradient_checkpointing=False, logging_steps=1,
            save_strategy="no", report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([{"prompt": row["messages"], "answer": row["answer"]} for row in rows]),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            task_type="CAUSAL_LM", r=tuning.rank, lora_alpha=tuning.alpha, lora_dropout=0.0,
            target_modules="all-linear",
        ),
    )  # fmt: skip
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("algorithm", "beta", "per_device"),
    [pytest.param("auto", "auto", 1, marks=pytest.mark.soak), ("grpo", 0.2, 2), ("rloo", 0.1, 2)],
)
def test_losses_rewards_gradients_and_weights_are_those_of_a_plain_script(
    tmp_path: Path, algorithm: str, beta: Any, per_device: int
) -> None:
    rows = prompts(9)
    folder = graded_folder(
        tmp_path / "job",
        rows,
        hyperparameters={"beta": beta},
        per_device_batch_size=per_device,
        algorithm=algorithm,
    )
    ours = graded_trainer(folder)
    ours.train()

    plain = plain_script(folder, rows)

    more = () if beta == "auto" else ("kl",)
    assert len(steps(ours)) == 4, "of 9 rows, 4 at a time, one is left out of each epoch"
    for step, other in zip(steps(ours, *more), steps(plain, *more), strict=True):
        assert step == pytest.approx(other, abs=1e-6, rel=1e-6)
    assert any(step["grad_norm"] > 0 for step in steps(ours))
    assert_close(trained(ours.model), trained(plain.model))
    if more:
        assert steps(ours, "kl")[-1]["kl"] > 0
        assert list(ours.model.peft_config) == ["default"], "no second adapter is held"


def test_the_same_seed_gives_the_same_losses(tmp_path: Path) -> None:
    folder = graded_folder(tmp_path / "job", prompts(8), n_epochs=1)
    first = graded_trainer(folder)
    first.train()
    second = graded_trainer(folder)
    second.train()
    assert steps(first) == steps(second)
    other = graded_trainer(
        graded_folder(tmp_path / "other" / "job", prompts(8), n_epochs=1, spec={"seed": 6})
    )
    other.train()
    assert steps(other) != steps(first)


def test_an_epoch_has_its_order_also_where_it_is_the_first_of_a_process() -> None:
    theirs = RepeatSampler(range(7), mini_repeat_count=2, batch_size=3, repeat_count=2, seed=4)
    epochs = [list(theirs) for _ in range(3)]
    assert epochs[0] != epochs[1]
    for number, order in enumerate(epochs):
        ours = EpochPrompts(range(7), mini_repeat_count=2, batch_size=3, repeat_count=2, seed=4)
        ours.set_epoch(number)
        assert list(ours) == order


def test_a_prompt_has_the_tokens_of_a_request_and_its_item_is_its_row(tmp_path: Path) -> None:
    rows = prompts(6)
    rows[3]["messages"] = [
        {"role": "system", "content": "Be <|im_end|> short."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Bye"},
    ]
    trainer = graded_trainer(graded_folder(tmp_path / "job", rows))
    encoder = ChatEncoder(trainer.processing_class)
    for row, made in zip(rows, list(trainer.train_dataset), strict=True):
        assert made["prompt"] == encoder.prompt_tokens(row["messages"], None)
        assert json.loads(made["item"]) == row
    assert set(trainer.generation_config.eos_token_id) == stop_tokens(trainer.processing_class)


def test_a_prompt_that_leaves_no_place_for_an_answer_is_refused(tmp_path: Path) -> None:
    rows = prompts(3)
    rows[1]["messages"][0]["content"] = "long " * 30
    folder = graded_folder(tmp_path / "job", rows, max_length=40, max_completion_length=20)
    with pytest.raises(TrainingFailed, match=r"line 2 has .* maximum is 20.*max_completion_length"):
        graded_trainer(folder)


def test_evaluation_is_the_mean_over_all_answers_and_leaves_the_numbers_of_training(tmp_path: Path) -> None:
    folder = graded_folder(
        tmp_path / "job",
        prompts(4),
        prompts(3, start=50),
        hyperparameters={"eval_samples": 2},
        per_device_batch_size=2,
    )
    trainer = graded_trainer(folder)
    rewards: list[float] = []
    function = trainer.reward_funcs[0]

    def recorded(**arguments: Any) -> list[float]:
        rewards.extend(found := function(**arguments))
        return found

    recorded.__name__ = "grader"
    trainer.reward_funcs[0] = recorded
    trainer._metrics["train"]["reward"].append(9.0)
    found = trainer.evaluate()
    assert len(rewards) == 6, "two answers to each of three rows"
    assert found["eval_reward"] == pytest.approx(sum(rewards) / 6, abs=1e-6)
    assert found["eval_graders/near"] > 0
    assert found["eval_grader_errors"] == 0
    assert trainer._metrics["train"]["reward"] == [9.0]
    assert "reward" not in trainer.state.log_history[-1]


def test_evaluations_come_every_so_many_steps(tmp_path: Path) -> None:
    folder = graded_folder(
        tmp_path / "job", prompts(8), prompts(2), hyperparameters={"eval_interval": 3}, batch_size=2
    )
    trainer = graded_trainer(folder)
    trainer.train()
    assert [step["step"] for step in trainer.state.log_history if "eval_loss" in step] == [3, 6, 8]


def test_training_goes_on_from_an_adapter_beside_a_frozen_copy(tmp_path: Path) -> None:
    parent = tiny_adapter(tmp_path / "parent", embedded_base_path(), r=8, target_modules="all-linear")
    folder = graded_folder(
        tmp_path / "job", prompts(4), spec={"parent_adapter": str(parent)}, hyperparameters={"beta": 0.1}
    )
    trainer = graded_trainer(folder)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if ".ref." in n}
    trainer.train()
    assert before
    assert all(torch.equal(one, dict(trainer.model.named_parameters())[name]) for name, one in before.items())
    assert steps(trainer, "kl")[0]["kl"] == pytest.approx(0, abs=1e-6)
    trainer.save_model(str(tmp_path / "checkpoint"))
    assert not [path.name for path in (tmp_path / "checkpoint").iterdir() if path.is_dir()]


def test_training_all_weights_needs_no_reference(tmp_path: Path) -> None:
    trainer = graded_trainer(
        graded_folder(tmp_path / "job", prompts(4), type="full", rank="auto", learning_rate=1e-4)
    )
    trainer.train()
    assert trainer.ref_model is None
    assert len(steps(trainer)) == 2


def test_answers_are_made_where_adapters_are_left_to_autocast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: the base in bfloat16, the adapter in float32, and no casts of inputs. The first evaluation comes
    before training wraps the model."""

    def as_on_a_gpu(spec: TrainingSpec, initial: Path) -> Any:
        model = load_model(spec, initial)
        for name, parameter in model.named_parameters():
            if "lora_" not in name:
                parameter.data = parameter.data.to(torch.bfloat16)
        leave_casts_to_autocast(model)
        return model

    monkeypatch.setattr(graded, "load_model", as_on_a_gpu)
    arguments = Parts.arguments
    monkeypatch.setattr(Parts, "arguments", lambda self: arguments(self) | {"bf16": True})
    folder = graded_folder(
        tmp_path / "job", prompts(4), prompts(2), n_epochs=1, hyperparameters={"beta": 0.1}
    )
    trainer = graded_trainer(folder)
    assert trainer.evaluate()["eval_reward"] > 0
    trainer.train()
    assert steps(trainer)[0]["reward"] > 0


def test_answers_that_cannot_be_graded_have_no_reward_and_are_told(tmp_path: Path) -> None:
    grader = {**NEAR, "input": "{{ sample.output_json.x }}"}
    trainer = graded_trainer(graded_folder(tmp_path / "job", prompts(4), spec={"grader": grader}, n_epochs=1))
    trainer.train()
    logged = next(step for step in trainer.state.log_history if "loss" in step)
    assert (logged["reward"], logged["grader_errors"]) == (0, 1)
    events, _ = JobFolder(tmp_path / "job").read_events(0)
    told = [event for event in events if (event["data"] or {}).get("code") == "grader_errors"]
    assert len(told) == 1
    assert "sample_parse_error" in told[0]["message"]


def test_a_grader_that_fails_on_every_answer_ends_the_job(tmp_path: Path) -> None:
    grader = {"type": "regex", "name": "slow", "pattern": "(a|a)*b", "input": "{{ item.text }}"}
    rows = [{**row, "text": "a" * 60} for row in prompts(2)]
    folder = graded_folder(tmp_path / "job", rows, spec={"grader": grader}, batch_size=1, num_generations=2)
    with pytest.raises(TrainingFailed, match=r"all 2 answers.*slow.*more than 1 s") as failed:
        graded_trainer(folder).train()
    assert failed.value.code == "grader_failed"


def test_the_items_are_those_of_the_rows_that_are_not_held_out(tmp_path: Path) -> None:
    share: dict[str, Any] = {"held_out_share": 0.4}
    folder = graded_folder(tmp_path / "job", prompts(20))
    spec = folder.read_spec(TrainingSpec)
    spec = spec.model_copy(
        update={
            "reading": spec.reading.model_copy(update={"part": "training", **share}),
            "validation_file": spec.training_file,
            "validation_reading": spec.reading.model_copy(update={"part": "held_out", **share}),
        }
    )
    folder.write_spec(spec)
    trainer = graded_trainer(folder)
    for dataset in (trainer.train_dataset, trainer.eval_dataset):
        assert 0 < len(dataset) < 20
        tokenizer = trainer.processing_class
        for row in list(dataset):
            assert f"number {json.loads(row['item'])['n']}?" in tokenizer.decode(row["prompt"])
    assert len(training_items(spec)) == len(trainer.train_dataset)
    assert GRADER["name"] == spec.grader.name if spec.grader else False
