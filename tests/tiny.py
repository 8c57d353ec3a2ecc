"""Tiny models with random weights, of many architectures, and adapters on them. Needs torch and peft."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

torch.set_num_threads(1)
"""One thread: several do not compute such small models faster, and are much slower beside other processes."""

VOCABULARY = 160
DIMENSIONS: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128, "sliding_window": 8,
}  # fmt: skip
_OWN: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128},
    "opt": {**DIMENSIONS, "ffn_dim": 128, "word_embed_proj_dim": 64},
    "phi3": {**DIMENSIONS, "pad_token_id": 0},
    "stablelm": {**DIMENSIONS, "use_qkv_bias": True, "partial_rotary_factor": 0.5},
}


def tiny_model(
    folder: Path, model_type: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any
) -> Path:
    """Saved by transformers. Its logits differ from token to token by about 1."""
    settings = {**_OWN.get(model_type, DIMENSIONS), **changes}
    config = AutoConfig.for_model(model_type, vocab_size=VOCABULARY, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter) * 0.1
            # Norms stay near 1, or near 0 where the model adds 1, as in models that were trained.
            parameter.data = parameter.data + noise if "norm" in name or "ln_" in name else noise
    model.to(dtype).save_pretrained(folder)
    return folder


def tiny_adapter(folder: Path, base: Path, *, seed: int = 1, **settings: Any) -> Path:
    """Written by peft, with random weights; `settings` are LoraConfig's."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", **settings})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted = get_peft_model(copy.deepcopy(model), config)
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn_like(parameter) * 0.1
                parameter.data = parameter.data + noise if "magnitude" in name else noise
    adapted.save_pretrained(folder)
    return folder


def whole(
    base: Path, adapter: Path | None = None, dtype: torch.dtype = torch.float32
) -> PreTrainedModel | PeftModel:
    """As transformers and peft load it."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, attn_implementation="sdpa").eval()
    return model if adapter is None else PeftModel.from_pretrained(model, adapter).eval()


def token_rows(rows: int, length: int, *, seed: int = 2) -> torch.Tensor:
    return torch.randint(4, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))
