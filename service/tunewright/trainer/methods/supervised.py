"""OpenAI's method `supervised`: training on the assistant's tokens, with TRL's SFTTrainer."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from tunewright.trainer.held_out import summed, tell
from tunewright.trainer.loading import OrderedRows
from tunewright.trainer.packing import PackedCollator, check_isolation, parts_of
from tunewright.trainer.speed import leave_out_mask
from tunewright.trainer.training import Parts


class HeldOutTrainer(OrderedRows, SFTTrainer):  # type: ignore[misc]
    """SFTTrainer whose evaluation gives every token the same weight."""

    data_collator: Any
    packs_at_a_time: int | None = None
    """Packed sequences that are computed at a time; None: rows are not packed."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        if self.packs_at_a_time is None:
            return super().get_train_dataloader()
        of_evaluation = self.data_collator
        self.data_collator = PackedCollator(self.processing_class.pad_token_id)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = of_evaluation

    def training_step(
        self, model: PreTrainedModel, inputs: dict[str, Any], *arguments: Any, **options: Any
    ) -> Any:
        """Of a packed batch, which has all rows of a step, some sequences at a time."""
        if self.packs_at_a_time is None:
            return super().training_step(model, inputs, *arguments, **options)
        flat = "flash" in (self.accelerator.unwrap_model(model).config._attn_implementation or "")
        parts = list(parts_of(inputs, self.packs_at_a_time, flat=flat))
        self.current_gradient_accumulation_steps = len(parts)
        return sum(
            super(HeldOutTrainer, self).training_step(model, part, *arguments, **options) for part in parts
        )

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Return `eval_loss` (nats per learnt token) and `eval_mean_token_accuracy` over the evaluation set."""
        sums = summed(self, _measured)
        count = sums["tokens"]
        return tell(
            self,
            {"eval_loss": sums["loss"] / count, "eval_mean_token_accuracy": sums["correct"] / count},
        )


def make_trainer(parts: Parts) -> HeldOutTrainer:
    tuning, arguments = parts.spec.tuning, parts.arguments()
    leave_out_mask(parts.model, always=tuning.packing)
    if tuning.packing:
        check_isolation(parts.model, parts.spec.base_name)
        arguments |= {
            "per_device_train_batch_size": tuning.device_batch_size,
            "gradient_accumulation_steps": 1,
        }
    trainer = HeldOutTrainer(
        model=parts.model,
        args=configured(arguments),
        train_dataset=parts.training.dataset(),
        eval_dataset=parts.held_out.dataset() if parts.held_out else None,
        data_collator=DataCollatorForLanguageModeling(pad_token_id=parts.tokenizer.pad_token_id),
        processing_class=parts.tokenizer,
        callbacks=parts.callbacks,
    )
    trainer.packs_at_a_time = tuning.per_device_batch_size if tuning.packing else None
    return trainer


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
