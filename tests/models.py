"""Tiny models of several architectures with random weights, and peft's adapters on them. Needs torch and peft."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    GPTBigCodeConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

Tensors = dict[str, torch.Tensor]
VOCABULARY = 96
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def llama(*, tied: bool = False) -> PretrainedConfig:
    return LlamaConfig(**_SIZES, tie_word_embeddings=tied)


def qwen2(*, tied: bool = False) -> PretrainedConfig:
    """With biases in its attention."""
    return Qwen2Config(**_SIZES, tie_word_embeddings=tied)


def gemma(*, tied: bool = True) -> PretrainedConfig:
    """With its embeddings multiplied where they are read, and not where they are the head."""
    return GemmaConfig(**_SIZES, tie_word_embeddings=tied)


def gpt2(*, tied: bool = False) -> PretrainedConfig:
    """With `Conv1D` for linear layers, of which `attn.c_proj` is square."""
    return GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2,
        tie_word_embeddings=tied,
    )  # fmt: skip


def bigcode(*, tied: bool = False) -> PretrainedConfig:
    """Named as GPT-2 is, with linear layers for its `Conv1D`."""
    return GPTBigCodeConfig(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2,
        tie_word_embeddings=tied,
    )  # fmt: skip


def save_model(
    config: PretrainedConfig, folder: Path, *, dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> Path:
    """A model in which every parameter is random, biases and norms too."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    model.to(dtype).save_pretrained(folder)
    return folder


def load(folder: Path) -> PreTrainedModel:
    """In float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def save_adapter(
    base: Path,
    folder: Path,
    *,
    seed: int = 1,
    strength: float = 0.1,
    change: Callable[[Tensors], Tensors] = dict,
    **config: Any,
) -> Path:
    """As peft saves it, with random numbers added to all that it trains; `change` may modify the tensors at the end."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(load(base), LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4, **config}))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.add_(torch.randn_like(parameter) * strength)
        model.save_pretrained(folder)
    weights = folder / "adapter_model.safetensors"
    save_file(change(load_file(weights)), weights, metadata={"format": "pt"})
    return folder


def load_adapted(base: Path, adapter: Path) -> PeftModel:
    """Unmerged, in float32."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(load(base), adapter).eval()


def logits(model: Any) -> torch.Tensor:
    """[1, tokens, vocabulary], for every token there is."""
    with torch.no_grad():
        return model(torch.arange(VOCABULARY)[None, :64]).logits


def load_weights(folder: Path) -> Tensors:
    """All tensors of a model folder."""
    return {name: t for path in sorted(folder.glob("*.safetensors")) for name, t in load_file(path).items()}
