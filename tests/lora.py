"""LoRA adapters in peft's format with random weights, and adapters that were tampered with. Needs torch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def random_lora(
    base: Path,
    folder: Path,
    *,
    strength: float,
    seed: int,
    rank: int = 8,
    modules: Any = "all-linear",
    **config: Any,
) -> Path:
    """Every module's weights change by about `strength` of their own size (Frobenius norms)."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    options = {
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": modules,
        "task_type": "CAUSAL_LM",
        **config,
    }
    adapted = get_peft_model(model, LoraConfig(**options))
    for module in adapted.modules():
        if hasattr(module, "lora_B"):
            down, up = module.lora_A["default"].weight, module.lora_B["default"].weight
            torch.nn.init.normal_(up)
            change = (up @ down).norm() * module.scaling["default"]
            up.data *= strength * module.get_base_layer().weight.norm() / change
    adapted.save_pretrained(folder)
    return folder


def tampered(
    adapter: Path, folder: Path, tensors: Callable[[Tensors], Tensors] = dict, **config: Any
) -> Path:
    """A copy with other tensors, and with fields of its config changed."""
    folder.mkdir(parents=True)
    save_file(tensors(load_file(adapter / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})
    changed = {**json.loads((adapter / CONFIG).read_text()), **config}
    (folder / CONFIG).write_text(json.dumps(changed))
    return folder


def without(module: str) -> Callable[[Tensors], Tensors]:
    """For `tampered`: modules whose names contain `module` change nothing."""

    def change(tensors: Tensors) -> Tensors:
        found = [name for name in tensors if module in name and "lora_B" in name]
        assert found, f"no module {module} in {list(tensors)[:4]}"
        return tensors | {name: torch.zeros_like(tensors[name]) for name in found}

    return change


def perturbed_base(base: Path, folder: Path, *, strength: float, seed: int = 0) -> Path:
    """The same base with other weights: each tensor changes by `strength` of its size."""
    shutil.copytree(base, folder)
    tensors = load_file(base / "model.safetensors")
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in tensors.items():
        noise = torch.randn(tensor.shape, generator=generator)
        tensors[name] = (tensor.float() + strength * tensor.float().norm() / noise.norm() * noise).to(
            tensor.dtype
        )
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
