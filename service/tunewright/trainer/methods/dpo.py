"""OpenAI's method `dpo`: of two answers the better one becomes likelier than the other, with TRL's DPOTrainer.

Both are compared with a reference, which does not change. A new adapter's reference is the base: the model with the
adapter switched off. Where training goes on from an adapter, it is a frozen copy of that, which TRL makes as a second
adapter. For full fine-tuning the reference's log-probabilities are computed before the first step
(`trainer.reference`), so that no second model is held.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from trl import DPOConfig, DPOTrainer
from trl.trainer.utils import pad

from tunewright.rows.canonical import ANSWERS
from tunewright.rows.examples import IGNORED
from tunewright.trainer.held_out import means_over_pairs
from tunewright.trainer.loading import OrderedRows
from tunewright.trainer.reference import Batches, BesideReference, reference_logps
from tunewright.trainer.sharding import REFERENCE
from tunewright.trainer.speed import leave_out_mask
from tunewright.trainer.training import Parts

_MEASURES = (
    "rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected",
)  # fmt: skip
"""Means over pairs that TRL logs."""


class PreferenceTrainer(OrderedRows, BesideReference, DPOTrainer):  # type: ignore[misc]
    """DPOTrainer on tokenized pairs, whose evaluation gives every pair the same weight."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        tuning = parts.spec.tuning
        is_adapter = isinstance(parts.model, PeftModel)
        leave_out_mask(parts.model)
        super().__init__(
            model=parts.model,
            args=DPOConfig(
                **parts.arguments(),
                beta=tuning.beta,
                loss_type=[tuning.loss_type],
                label_smoothing=tuning.label_smoothing or 0.0,
                precompute_ref_log_probs=not is_adapter,
                model_init_kwargs=REFERENCE if parts.spec.is_sharded else None,
            ),
            train_dataset=parts.training.dataset(),
            eval_dataset=parts.held_out.dataset() if parts.held_out else None,
            data_collator=PairCollator(parts.tokenizer.pad_token_id),
            processing_class=parts.tokenizer,
            callbacks=parts.callbacks,
        )
        if is_adapter and parts.spec.parent_adapter is None:
            self.drop_copy_of_base(parts.model)

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset  # rows.tokenized has tokenized and masked

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        rows = self._parts.training if name == "train" else self._parts.held_out
        assert rows is not None, "there is a dataset of it"
        batches = partial(self._reference_batches, dataset, batch_size)
        began = time.monotonic()
        numbers = reference_logps(self._parts.folder, rows.keys, len(dataset), batches)
        if name == "train":
            self.reference_seconds = time.monotonic() - began
        return rows.dataset(beside=numbers)

    def _reference_batches(self, pairs: Dataset, batch_size: int, begin: int) -> Batches:
        """The reference's log-probabilities of the chosen and the rejected answers, from a pair on, batch by batch."""
        rest = torch.utils.data.Subset(pairs, range(begin, len(pairs)))
        loader = torch.utils.data.DataLoader(rest, batch_size, collate_fn=self.data_collator)
        # A sharded model is sharded when training begins: TRL has made another for the reference, for so long.
        model = self.ref_model or self.model
        for batch in self.accelerator.prepare(loader):
            self._parts.go_on()
            found = self.compute_ref_log_probs(model, batch)
            yield self.accelerator.gather_for_metrics(found)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Return `eval_loss` and the measures of rewards, as means over the pairs of the evaluation set."""
        return means_over_pairs(self, _MEASURES)


make_trainer = PreferenceTrainer


class PairCollator:
    """A batch of pairs as DPOTrainer takes it: all chosen answers with their prompts, then all rejected ones."""

    def __init__(self, pad_token_id: int) -> None:
        self._padding = pad_token_id

    def __call__(self, pairs: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids = [torch.tensor(pair[f"{name}_ids"]) for name in ANSWERS for pair in pairs]
        labels = [torch.tensor(pair[f"{name}_labels"]) for name in ANSWERS for pair in pairs]
        batch = {
            "input_ids": pad(ids, padding_value=self._padding),
            "attention_mask": pad([torch.ones_like(one) for one in ids], padding_value=0),
            "completion_mask": pad([(one != IGNORED).long() for one in labels], padding_value=0),
        }
        for name in ANSWERS:
            column = f"ref_{name}_logps"
            if column in pairs[0]:
                batch[column] = torch.tensor([pair[column] for pair in pairs])
        return batch
