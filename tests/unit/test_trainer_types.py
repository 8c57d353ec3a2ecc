"""Training computes in the types that are meant: casts left out on a GPU change no number, and QLoRA is as TRL's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from peft.tuners.lora import Linear as LoraLinear
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from rows import resolved
from tiny import tiny_model, token_rows
from tunewright.config import embedded_base_path
from tunewright.plan.defaults import resolve
from tunewright.plan.options import HyperparameterOptions, TuningOptions
from tunewright.trainer.four_bit import nf4, prepared
from tunewright.trainer.methods.supervised import HeldOutTrainer
from tunewright.trainer.model import leave_casts_to_autocast, load_model, load_tokenizer
from tunewright.trainer.spec import TrainingSpec

TEXT = "The cat, the hat and the car: 123! a!!"
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {}, "rslora": {"use_rslora": True}, "dropout": {"lora_dropout": 0.3}, "dora": {"use_dora": True},
    "dora and dropout": {"use_dora": True, "lora_dropout": 0.3},
}  # fmt: skip


@pytest.mark.parametrize("has_special", [True, False])
def test_a_base_whose_tokenizer_names_no_token_for_padding_gets_one(
    tmp_path: Path, has_special: bool
) -> None:
    base = Path(embedded_base_path())
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text((base / name).read_text())
    settings = json.loads((base / "tokenizer_config.json").read_text())
    named = {
        "eos_token",
        "pad_token",
        "unk_token",
        "bos_token",
        "added_tokens_decoder",
        "extra_special_tokens",
    }
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({name: value for name, value in settings.items() if name not in named})
    )
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    data["added_tokens"][0]["special"] = False
    data["added_tokens"] = data["added_tokens"] if has_special else []
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    expected = AutoTokenizer.from_pretrained(tmp_path)(TEXT)["input_ids"]

    tokenizer = load_tokenizer(
        TrainingSpec(
            job_id="one", base_name="tiny", base_path=str(tmp_path), training_file="", seed=0, device="cpu",
            tuning=resolved(),
        )
    )  # fmt: skip

    assert tokenizer.pad_token_id == (1 if has_special else 0)
    assert tokenizer(TEXT)["input_ids"] == expected
    tokenizer.save_pretrained(tmp_path / "saved")
    assert AutoTokenizer.from_pretrained(tmp_path / "saved")(TEXT)["input_ids"] == expected


def adapted(base: Path, **settings: Any) -> PeftModel:
    """As LoRA trains on a GPU: the base in bfloat16, and an adapter in float32 that changes what the base computes."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, attn_implementation="sdpa")
    torch.manual_seed(1)
    model = get_peft_model(
        model,
        LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear", **settings),
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn_like(parameter) * 0.1
    return model.train()


def loss_and_gradients(model: PeftModel) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    rows = token_rows(3, 24)
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(input_ids=rows, labels=rows).loss
    loss.backward()
    trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
    assert all(one.grad is not None and one.grad.any() for one in trained.values())
    return loss.detach(), {name: one.grad for name, one in trained.items() if one.grad is not None}


def input_types(model: PeftModel) -> set[torch.dtype]:
    """The types of what enters lora_A."""
    found = set[torch.dtype]()
    for module in model.modules():
        if isinstance(module, LoraLinear):
            module.lora_A["default"].register_forward_pre_hook(lambda _, inputs: found.add(inputs[0].dtype))
    loss_and_gradients(model)
    return found


@pytest.mark.parametrize("settings", ADAPTERS.values(), ids=list(ADAPTERS))
@pytest.mark.parametrize("model_type", ["qwen2", "gpt2"])
def test_without_pefts_cast_loss_and_gradients_are_equal_to_the_bit(
    tmp_path: Path, model_type: str, settings: dict[str, Any]
) -> None:
    base = tiny_model(tmp_path, model_type, dtype=torch.bfloat16)
    loss, gradients = loss_and_gradients(adapted(base, **settings))
    model = adapted(base, **settings)

    leave_casts_to_autocast(model)
    again, others = loss_and_gradients(model)

    assert torch.equal(loss, again)
    assert gradients.keys() == others.keys()
    assert all(torch.equal(gradients[name], others[name]) for name in gradients)


@pytest.mark.parametrize(
    ("adapter", "type"),
    [("lora", torch.bfloat16), ("dropout", torch.float32), ("dora and dropout", torch.float32)],
)
def test_only_what_computes_in_the_inputs_type_keeps_the_cast(
    tmp_path: Path, adapter: str, type: torch.dtype
) -> None:
    model = adapted(tiny_model(tmp_path, "qwen2", dtype=torch.bfloat16), **ADAPTERS[adapter])

    leave_casts_to_autocast(model)

    assert input_types(model) == {type}


def test_the_evaluation_before_training_computes_in_the_types_of_training(tmp_path: Path) -> None:
    """Without them the products of the adapter's float32 and the base's bfloat16 would be refused."""
    model = adapted(tiny_model(tmp_path / "base", "qwen2", dtype=torch.bfloat16))
    leave_casts_to_autocast(model)
    rows = [{"input_ids": row, "labels": row} for row in token_rows(6, 16).tolist()]
    trainer = HeldOutTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(tmp_path / "out"), bf16=True, use_cpu=True, learning_rate=0.0, num_train_epochs=1,
            per_device_train_batch_size=3, per_device_eval_batch_size=3, report_to="none", disable_tqdm=True,
            dataset_kwargs={"skip_prepare_dataset": True}, save_strategy="no", remove_unused_columns=False,
        ),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows),
        data_collator=DataCollatorForLanguageModeling(pad_token_id=0),
    )  # fmt: skip

    before = trainer.evaluate()
    trainer.train()

    assert trainer.evaluate()["eval_loss"] == before["eval_loss"]


def as_a_job_loads_it(base: Path, *, checkpointing: bool = False) -> PeftModel:
    tuning = resolve(
        tuning=TuningOptions(type="qlora", rank=4, gradient_checkpointing=checkpointing),
        hyperparameters=HyperparameterOptions(),
        rows=8,
        context=128,
        max_rank=64,
        device="cpu",
    )
    spec = TrainingSpec(
        job_id="one",
        base_name="tiny",
        base_path=str(base),
        training_file="",
        seed=0,
        device="cpu",
        tuning=tuning,
    )
    torch.manual_seed(1)
    model = load_model(spec, base / "initial")
    assert isinstance(model, PeftModel)
    return model


def as_transformers_loads_it(base: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.bfloat16, quantization_config=nf4(), device_map={"": "cpu"}
    )


def with_an_adapter(model: PreTrainedModel) -> PeftModel:
    torch.manual_seed(1)
    return get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")
    )


def losses(
    model: PeftModel, folder: Path, trainer: type[SFTTrainer], *, checkpointing: bool = False
) -> list[float]:
    """Of four steps on the same rows."""
    rows = [{"input_ids": row, "labels": row} for row in token_rows(16, 24).tolist()]
    running = trainer(
        model=model,
        args=SFTConfig(
            output_dir=str(folder), use_cpu=True, bf16=False, learning_rate=1e-2, max_steps=4, logging_steps=1,
            per_device_train_batch_size=4, report_to="none", disable_tqdm=True, save_strategy="no", seed=0,
            gradient_checkpointing=checkpointing, gradient_checkpointing_kwargs={"use_reentrant": False},
            dataset_kwargs={"skip_prepare_dataset": True}, remove_unused_columns=False,
        ),
        train_dataset=Dataset.from_list(rows),
        data_collator=DataCollatorForLanguageModeling(pad_token_id=0),
    )  # fmt: skip
    running.train()
    return [entry["loss"] for entry in running.state.log_history if "loss" in entry]


def test_qlora_keeps_in_16_bits_what_it_does_not_quantize(tmp_path: Path) -> None:
    model = as_a_job_loads_it(tiny_model(tmp_path, "qwen2"))
    others = {
        name: one
        for name, one in model.named_parameters()
        if "lora_" not in name and one.dtype != torch.uint8
    }

    assert {name for name in others if "embed_tokens" in name or "lm_head" in name or "norm" in name}
    assert {one.dtype for one in others.values()} == {torch.bfloat16}
    assert {"lora_" in name for name, one in model.named_parameters() if one.requires_grad} == {True}


def test_the_base_of_qlora_is_frozen_before_it_has_an_adapter(tmp_path: Path) -> None:
    base = prepared(as_transformers_loads_it(tiny_model(tmp_path, "qwen2")), checkpointing=False)
    assert not any(one.requires_grad for one in base.parameters())


def test_qlora_has_the_losses_of_plain_trl(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base", "qwen2")

    ours = losses(as_a_job_loads_it(base), tmp_path, HeldOutTrainer)

    assert ours == losses(with_an_adapter(as_transformers_loads_it(base)), tmp_path, SFTTrainer)
    assert len(set(ours)) == 4


def test_qlora_in_16_bits_has_the_losses_of_float32_up_to_its_noise(tmp_path: Path) -> None:
    """bfloat16 rounds each number by up to 0.4 %."""
    base = tiny_model(tmp_path / "base", "qwen2")
    wide = prepare_model_for_kbit_training(as_transformers_loads_it(base), use_gradient_checkpointing=False)

    expected = losses(with_an_adapter(wide), tmp_path, SFTTrainer)

    assert losses(as_a_job_loads_it(base), tmp_path, HeldOutTrainer) == pytest.approx(expected, rel=0.004)


def test_checkpointing_changes_no_loss_of_qlora(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base", "qwen2")
    kept = losses(as_a_job_loads_it(base), tmp_path, HeldOutTrainer)

    model = as_a_job_loads_it(base, checkpointing=True)

    assert model.get_base_model().is_gradient_checkpointing
    assert losses(model, tmp_path, HeldOutTrainer, checkpointing=True) == kept
