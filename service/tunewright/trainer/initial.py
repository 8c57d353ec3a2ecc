"""New adapters with peft's initializations (`tuning.init`), also those that change the base (PiSSA, OLoRA).

Such an adapter begins as a part of the base's weights, which is taken out of them: W = W' + s B0 A0. A0 and B0 are kept
in the job folder, so that each start has the same W' and computes no decomposition again. Products are adapters on the
base as it is, of twice the rank: s (B A - B0 A0) = s [B, -B0] [A; A0] (peft's `subtract_mutated_init`).
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from tunewright.atomic import publish_folder
from tunewright.jobs.failure import TrainingFailed
from tunewright.jobs.process import rank
from tunewright.plan.initializations import changes_base
from tunewright.trainer import ranks

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"  # peft's own names
_ADAPTER = "default"


def new_adapter(model: PreTrainedModel, config: LoraConfig, init: str | None, initial: Path) -> Any:
    """The model with a new adapter. `initial`: the folder of what it began with, where that changes the base. Of
    several ranks the first makes it. Raises ValueError where the base has no such modules."""
    if not changes_base(init):
        config.init_lora_weights = init or True
        return _told_as_plain(get_peft_model(model, config))
    (is_kept,) = ranks.said_by_first(initial.is_dir())
    if not is_kept and rank() == 0:
        config.init_lora_weights = init
        adapted = _told_as_plain(get_peft_model(model, config))
        _keep(adapted, initial)
        ranks.wait_for_all()
        return adapted
    if not is_kept:
        ranks.wait_for_all()
    adapted = get_peft_model(model, config)
    set_peft_model_state_dict(adapted, load_file(initial / WEIGHTS))
    _take_out(adapted)
    return adapted


def _told_as_plain(adapted: Any) -> Any:
    """How it began is of no meaning to who loads it: its weights are in its file."""
    adapted.peft_config[_ADAPTER].init_lora_weights = True
    return adapted


def _keep(adapted: PeftModel, initial: Path) -> None:
    weights = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    odd = [name for name in weights if ".lora_A." not in name and ".lora_B." not in name]
    if odd:
        raise TrainingFailed(
            "invalid_target_modules",
            f"tuning.init is for linear layers, and {odd[0]} is none: leave it out, or its module",
        )
    unfinished = initial.with_name(f".{initial.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    save_file({name: one.contiguous() for name, one in weights.items()}, unfinished / WEIGHTS)
    publish_folder(unfinished, initial)


def _take_out(adapted: PeftModel) -> None:
    """What peft's initializations do to the base, with the same rounding (peft/tuners/lora/layer.py, pissa_init and
    olora_init)."""
    for module in adapted.modules():
        if isinstance(module, LoraLayer) and _ADAPTER in module.lora_A:
            base = module.get_base_layer()
            a, b = module.lora_A[_ADAPTER].weight.data, module.lora_B[_ADAPTER].weight.data
            part = module.scaling[_ADAPTER] * b @ a
            is_turned = bool(module.fan_in_fan_out)
            weight = (base.weight.data.T if is_turned else base.weight.data).to(torch.float32) - part
            base.weight.data = (weight.T if is_turned else weight).to(base.weight.dtype)


def on_plain_base(folder: Path, initial: Path) -> None:
    """Make the adapter in a PEFT folder one on the base as it is."""
    began, weights = load_file(initial / WEIGHTS), load_file(folder / WEIGHTS)
    if weights.keys() != began.keys():
        raise TrainingFailed("invalid_target_modules", "the adapter has other modules than it began with")
    made = {
        name: torch.cat([one, began[name]]) if ".lora_A." in name else torch.cat([one, -began[name]], dim=1)
        for name, one in weights.items()
    }
    save_file(
        {name: one.contiguous() for name, one in made.items()}, folder / WEIGHTS, metadata={"format": "pt"}
    )
    config = json.loads((folder / CONFIG).read_text())
    # The factor of the product stays: alpha / rank, or with rsLoRA alpha / sqrt(rank).
    config["lora_alpha"] *= math.sqrt(2) if config["use_rslora"] else 2
    config["r"] *= 2
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True))
