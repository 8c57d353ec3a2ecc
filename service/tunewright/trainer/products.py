"""Saves the product of a training run: an adapter's PEFT folder, or a whole model's folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
)

from tunewright.atomic import publish_folder
from tunewright.jobs.folder import JobFolder
from tunewright.jobs.process import rank
from tunewright.trainer.checkpoints import whole_weights
from tunewright.trainer.initial import CONFIG, WEIGHTS, on_plain_base
from tunewright.trainer.spec import TrainingSpec


def take_weights(trainer: Trainer, checkpoint: Path | None) -> bool:
    """Give the model the weights of the checkpoint that is to be the product, where there is one. Returns whether it
    has them: a sharded model keeps its own, and `save_product` reads the checkpoint."""
    if checkpoint is None:
        return True
    if trainer.is_fsdp_enabled:
        return False
    trainer._load_from_checkpoint(str(checkpoint))
    return True


def save_product(
    trainer: Trainer,
    tokenizer: PreTrainedTokenizerBase,
    folder: JobFolder,
    checkpoint: Path | None = None,
    *,
    scores_of: TrainingSpec | None = None,
) -> None:
    """Write the PEFT folder or the whole model: of a checkpoint, whose weights the model has taken, or what the trainer
    holds. It appears under its final name only when it is complete. `scores_of`: the spec of a model that gives scores,
    which is written as a whole."""
    model = _model(trainer, checkpoint)
    if rank() != 0:
        return
    if scores_of is not None and isinstance(model, PeftModel):
        model = _merged(model, scores_of, folder)
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


def put_on_plain_base(folder: JobFolder, checkpoints: Iterable[int]) -> None:
    """Make adapters on the base as it is, of the product and of copies of the checkpoints at these steps."""
    if rank() != 0:
        return
    for step in checkpoints:
        copy = folder.unfinished(folder.converted(step))
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        for name in (WEIGHTS, CONFIG):
            shutil.copyfile(folder.checkpoints / f"step-{step}" / name, copy / name)
        on_plain_base(copy, folder.initial)
        shutil.rmtree(folder.converted(step), ignore_errors=True)
        publish_folder(copy, folder.converted(step))
    copy = folder.unfinished(folder.adapter)
    shutil.rmtree(copy, ignore_errors=True)
    folder.adapter.rename(copy)
    on_plain_base(copy, folder.initial)
    publish_folder(copy, folder.adapter)


def _merged(model: PeftModel, spec: TrainingSpec, folder: JobFolder) -> PreTrainedModel:
    """The base with the adapter merged: in what the trainer holds, or where that has 4 bits, in the base as it is."""
    if spec.tuning.type != "qlora":
        return model.merge_and_unload()
    adapter = folder.unfinished(folder.adapter)
    shutil.rmtree(adapter, ignore_errors=True)
    model.save_pretrained(adapter, safe_serialization=True, selected_adapters=["default"])
    plain = AutoModelForSequenceClassification.from_pretrained(
        spec.base_path,
        num_labels=1,
        dtype=torch.float32,
        trust_remote_code=spec.trust_remote_code,
        local_files_only=True,
    )
    plain.config.get_text_config().pad_token_id = model.config.get_text_config().pad_token_id
    merged = PeftModel.from_pretrained(plain, adapter).merge_and_unload()
    shutil.rmtree(adapter)
    return merged


def _model(trainer: Trainer, checkpoint: Path | None) -> PreTrainedModel | PeftModel:
    """The model with the weights of the product; only of rank 0 it has all weights."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if not trainer.is_fsdp_enabled:
        return model
    if checkpoint is None:
        weights = whole_weights(trainer.model)
        return _unsharded(model, weights) if rank() == 0 else model
    if rank() == 0:
        return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, local_files_only=True)
    return model


def _unsharded(model: PreTrainedModel, weights: dict[str, torch.Tensor]) -> PreTrainedModel:
    """A model like the sharded one, with these weights, which are on the CPU."""
    with torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(model.config)
    whole.load_state_dict(weights, assign=True)
    whole.tie_weights()
    whole.generation_config = model.generation_config
    return whole
