"""OpenAI's method `supervised`: training on the assistant's tokens, with TRL's SFTTrainer."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from tunewright.trainer.held_out import summed, tell
from tunewright.trainer.loading import OrderedRows
from tunewright.trainer.speed import leave_out_mask
from tunewright.trainer.training import Parts


class HeldOutTrainer(OrderedRows, SFTTrainer):  # type: ignore[misc]
    """SFTTrainer whose evaluation gives every token the same weight."""

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Return `eval_loss` (nats per learnt token) and `eval_mean_token_accuracy` over the evaluation set."""
        sums = summed(self, _measured)
        count = sums["tokens"]
        return tell(
            self,
            {"eval_loss": sums["loss"] / count, "eval_mean_token_accuracy": sums["correct"] / count},
        )


def make_trainer(parts: Parts) -> HeldOutTrainer:
    leave_out_mask(parts.model)
    return HeldOutTrainer(
        model=parts.model,
        args=configured(parts.arguments()),
        train_dataset=parts.training.dataset(),
        eval_dataset=parts.held_out.dataset() if parts.held_out else None,
        data_collator=DataCollatorForLanguageModeling(pad_token_id=parts.tokenizer.pad_token_id),
        processing_class=parts.tokenizer,
        callbacks=parts.callbacks,
    )


def configured(arguments: dict[str, Any]) -> SFTConfig:
    # rows.tokenized has tokenized and masked.
    return SFTConfig(**arguments, dataset_kwargs={"skip_prepare_dataset": True})


def _measured(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, float]:
    outputs = model(**inputs, use_cache=False, fused_lm_head=True)
    return {
        "loss": -float(outputs.log_probs.double().sum()),
        "correct": float(outputs.is_top1.sum()),
        "tokens": float(outputs.label_mask.sum()),
    }
