"""LoRA adapters in peft's format with random weights, and modified copies of adapters. Needs torch."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
LINEAR = (*ATTENTION, *MLP)


def random_lora(
    base: Path,
    folder: Path,
    *,
    strength: float,
    seed: int,
    rank: int = 8,
    alpha: float | None = None,
    modules: Sequence[str] = LINEAR,
    layers: Sequence[int] | None = None,
    rslora: bool = False,
) -> Path:
    """Every module's weights change by about `strength` of their own size (Frobenius norms)."""
    alpha = 2.0 * rank if alpha is None else alpha
    scale = alpha / (math.sqrt(rank) if rslora else rank)
    generator = torch.Generator().manual_seed(seed)
    tensors: Tensors = {}
    for name, weight in sorted(load_file(base / "model.safetensors").items()):
        place = name.split(".")
        if place[-2] not in modules or (layers is not None and int(place[2]) not in layers):
            continue
        down = torch.randn(rank, weight.shape[1], generator=generator)
        up = torch.randn(weight.shape[0], rank, generator=generator)
        up *= strength * weight.float().norm() / ((up @ down).norm() * scale)
        path = f"base_model.model.{name.removesuffix('.weight')}"
        tensors |= {f"{path}.lora_A.weight": down, f"{path}.lora_B.weight": up}
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": alpha, "target_modules": list(modules),
        "lora_dropout": 0.0, "bias": "none", "use_rslora": rslora,
        "layers_to_transform": list(layers) if layers is not None else None,
    }  # fmt: skip
    folder.mkdir(parents=True)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config))
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
