"""The shape of a model is read from its headers, and its trainable parameters are those that peft counts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    Qwen2Config,
    Qwen3MoeConfig,
)

from tunewright.config import embedded_base_path
from tunewright.plan.shape import ModelShape, UnknownShape, adapter_parameters, shape_of
from tunewright.registry.model_shape import read_shape

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 300,
}
CONFIGS = {
    "llama": LlamaConfig(**SMALL, num_key_value_heads=2),
    "qwen2 with biases, tied": Qwen2Config(**SMALL, num_key_value_heads=2, tie_word_embeddings=True),
    "gpt2 with Conv1D": GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=300, n_positions=128),
    "mixtral": MixtralConfig(**SMALL, num_key_value_heads=2, num_local_experts=4),
    "qwen3 with experts": Qwen3MoeConfig(
        **SMALL, num_key_value_heads=2, num_experts=4, moe_intermediate_size=32
    ),
}
ASSETS = Path(os.environ.get("TUNEWRIGHT_ASSETS", "/nowhere")) / "models"


def on_meta(config: object) -> torch.nn.Module:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def shape_in_memory(config: object) -> ModelShape:
    tensors = {name: ("F32", tuple(p.shape)) for name, p in on_meta(config).named_parameters()}
    return shape_of(config.to_dict(), tensors)  # type: ignore[attr-defined]


def peft_counts(config: object, **options: object) -> int:
    adapted = get_peft_model(on_meta(config), LoraConfig(task_type="CAUSAL_LM", **options))  # type: ignore[arg-type]
    return sum(p.numel() for p in adapted.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dora", [False, True])
def test_trainable_parameters_are_those_of_peft(name: str, dora: bool) -> None:
    shape = shape_in_memory(CONFIGS[name])
    if dora and shape.experts:
        pytest.skip("peft has no DoRA for experts")

    ours = adapter_parameters(shape.adapted("all-linear"), 7, use_dora=dora)

    assert ours == peft_counts(CONFIGS[name], r=7, target_modules="all-linear", use_dora=dora)


@pytest.mark.parametrize(
    "targets", [["q_proj", "v_proj"], ["lm_head"], ["layers.1.mlp.up_proj"], ["embed_tokens"]]
)
def test_named_targets_are_counted_as_peft_does(targets: list[str]) -> None:
    shape = shape_in_memory(CONFIGS["llama"])

    ours = adapter_parameters(shape.adapted(targets), 4)

    assert ours == peft_counts(CONFIGS["llama"], r=4, target_modules=targets)


@pytest.mark.parametrize(
    "folder", [embedded_base_path(), *sorted(ASSETS.glob("*"))], ids=lambda path: path.name
)
def test_real_models_have_the_parameters_that_transformers_and_peft_count(folder: Path) -> None:
    shape = read_shape(folder)
    config = AutoConfig.from_pretrained(folder)

    assert shape.total == sum(p.numel() for p in on_meta(config).parameters())
    assert adapter_parameters(shape.adapted("all-linear"), 8) == peft_counts(
        config, r=8, target_modules="all-linear"
    )
    assert shape.layers == config.num_hidden_layers
    assert shape.is_gated


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_by_kind_add_up(name: str) -> None:
    shape = shape_in_memory(CONFIGS[name])

    assert shape.total == sum(p.numel() for p in on_meta(CONFIGS[name]).parameters())
    assert shape.is_tied == CONFIGS[name].tie_word_embeddings


def test_a_tied_head_that_is_in_the_file_counts_once() -> None:
    tensors = {
        "model.embed_tokens.weight": ("BF16", (300, 64)),
        "lm_head.weight": ("BF16", (300, 64)),
        "model.layers.0.mlp.up_proj.weight": ("BF16", (96, 64)),
    }
    config = {**SMALL, "tie_word_embeddings": True}

    assert shape_of(config, tensors).total == 300 * 64 + 96 * 64


def test_targets_that_the_base_lacks_are_named() -> None:
    shape = shape_in_memory(CONFIGS["llama"])

    assert shape.missed(["q_proj", "query", "roj"]) == ["query", "roj"]
    assert shape.leaves() == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def test_a_config_without_a_width_is_refused_by_name() -> None:
    with pytest.raises(UnknownShape, match="hidden_size"):
        shape_of({"num_hidden_layers": 1}, {})


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    with pytest.raises(FileNotFoundError, match="safetensors"):
        read_shape(tmp_path)
