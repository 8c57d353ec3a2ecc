"""The method `reward`: a model that gives answers a score, the better of two a larger one, with TRL's RewardTrainer.

The base has a head with one number in the place of the one that gives tokens (`trainer.model`), which is read at the
last token of the prompt with its answer. Where an adapter is trained, the head is trained beside it, and the product is
the base with both merged (`trainer.products`).
"""

from __future__ import annotations

from typing import Any

from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from tunewright.trainer.held_out import means_over_pairs
from tunewright.trainer.loading import OrderedRows
from tunewright.trainer.speed import leave_out_mask
from tunewright.trainer.training import Parts

_MEASURES = ("accuracy", "margin", "mean_reward")
"""Means over pairs, or over their answers, that TRL logs."""


class ScoreTrainer(OrderedRows, RewardTrainer):  # type: ignore[misc]
    """RewardTrainer on tokenized pairs, whose evaluation gives every pair the same weight."""

    def __init__(self, parts: Parts) -> None:
        leave_out_mask(parts.model)
        super().__init__(
            model=parts.model,
            args=RewardConfig(**parts.arguments(), disable_dropout=not parts.spec.tuning.dropout),
            train_dataset=parts.training.dataset(),
            eval_dataset=parts.held_out.dataset() if parts.held_out else None,
            data_collator=DataCollatorForPreference(parts.tokenizer.pad_token_id),
            processing_class=parts.tokenizer,
            callbacks=parts.callbacks,
        )

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset  # rows.tokenized has tokenized, and cut what is too long

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Return `eval_loss` and the measures, as means over the pairs of the evaluation set."""
        return means_over_pairs(self, _MEASURES)


make_trainer = ScoreTrainer
