"""Saves the product of a training run: an adapter's PEFT folder, or a whole model's folder."""

from __future__ import annotations

import shutil

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, Trainer

from tunewright.atomic import publish_folder
from tunewright.jobs.folder import JobFolder
from tunewright.jobs.process import rank
from tunewright.trainer.checkpoints import whole_weights


def save_product(trainer: Trainer, tokenizer: PreTrainedTokenizerBase, folder: JobFolder) -> None:
    """Write the PEFT folder or the whole model. It appears under its final name only when it is complete."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    whole = whole_weights(trainer.model) if trainer.is_fsdp_enabled else None
    if rank() != 0:
        return
    if whole is not None:
        model = _unsharded(model, whole)
    is_adapter = isinstance(model, PeftModel)
    final = folder.adapter if is_adapter else folder.model
    temporary = folder.unfinished(final)
    for stale in (temporary, final):
        shutil.rmtree(stale, ignore_errors=True)
    if is_adapter:
        # Without others that it was compared with (`methods.dpo`).
        model.save_pretrained(temporary, safe_serialization=True, selected_adapters=["default"])
    else:
        model.config.use_cache = True
        model.to(torch.bfloat16).save_pretrained(temporary, safe_serialization=True, max_shard_size="5GB")
        tokenizer.save_pretrained(temporary)
    (temporary / "README.md").unlink(missing_ok=True)  # peft's card has only placeholders
    publish_folder(temporary, final)


def _unsharded(model: PreTrainedModel, weights: dict[str, torch.Tensor]) -> PreTrainedModel:
    """A model like the sharded one, with these weights, which are on the CPU."""
    with torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(model.config)
    whole.load_state_dict(weights, assign=True)
    whole.tie_weights()
    whole.generation_config = model.generation_config
    return whole
