"""The method `kto`: answers that are good become likelier, bad ones less likely, with TRL's KTOTrainer.

Each answer's gain over the reference is compared with the mean gain of answers behind other prompts, the estimate of
the KL divergence. For these, rows that are computed at a time exchange their answers: TRL pairs the rows of a file in
its order, which then is the order of training too. Here rows come by chance, as with the other methods, and the batch
is paired when it is made. The reference is as for `dpo`.

For full fine-tuning the reference's numbers are computed before the first step, also those of exchanged answers: rows
that are computed at a time stay together in all epochs, and these batches come by chance (`FixedBatches`). Where memory
runs out and fewer are computed at a time, these are pieces of the same batches, whose rows keep their partners.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from torch.utils.data import Sampler
from transformers import PreTrainedModel
from trl import KTOConfig, KTOTrainer
from trl.trainer.utils import pad

from tunewright.jobs.failure import TrainingFailed
from tunewright.rows.examples import IGNORED
from tunewright.rows.mixture import EpochOrder, Indices
from tunewright.trainer.held_out import summed, tell
from tunewright.trainer.loading import OrderedRows
from tunewright.trainer.reference import Batches, BesideReference, Numbers, reference_logps
from tunewright.trainer.sharding import REFERENCE
from tunewright.trainer.speed import leave_out_mask
from tunewright.trainer.training import Parts

Row = dict[str, Any]
_OTHER = "other"
"""Of a row: the row whose answer is put behind its prompt."""
_REFERENCE = ("ref_logps", "ref_KL_logps")


class LabelledTrainer(OrderedRows, BesideReference, KTOTrainer):  # type: ignore[misc]
    """KTOTrainer on tokenized rows with a label, whose evaluation has one estimate of the KL for all rows."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        tuning = parts.spec.tuning
        if tuning.per_device_batch_size < 2:
            raise TrainingFailed(
                "invalid_training_file",
                "kto compares the answers of several rows at a time: give at least two rows",
            )
        is_adapter = isinstance(parts.model, PeftModel)
        grouped = tuning.rows_together if tuning.group_by_length else None
        self._batches: FixedBatches | None = None
        """Of training all weights."""
        if is_adapter:
            self.order = EpochOrder(parts.training, grouped)
        else:
            rows = parts.training.epoch(0, grouped)
            self.order = self._batches = FixedBatches(rows, tuning.rows_together, parts.spec.seed)
        leave_out_mask(parts.model)
        super().__init__(
            model=parts.model,
            args=KTOConfig(
                **parts.arguments(),
                beta=tuning.beta,
                desirable_weight=tuning.desirable_weight,
                undesirable_weight=tuning.undesirable_weight,
                precompute_ref_log_probs=not is_adapter,
                model_init_kwargs=REFERENCE if parts.spec.is_sharded else None,
            ),
            train_dataset=parts.training.dataset(),
            eval_dataset=parts.held_out.dataset() if parts.held_out else None,
            data_collator=LabelledCollator(parts.tokenizer.pad_token_id, tuning.max_length),
            processing_class=parts.tokenizer,
            callbacks=parts.callbacks,
        )
        if is_adapter and parts.spec.parent_adapter is None:
            self.drop_copy_of_base(parts.model)

    def _prepare_dataset(self, dataset: Dataset, _: Any, __: Any, name: str) -> Mismatched | MatchedAlone:
        # rows.tokenized has tokenized and masked
        if name != "train":
            return Mismatched(dataset, np.roll(np.arange(len(dataset)), 1))
        if self._batches is None:
            return MatchedAlone(dataset)
        return Mismatched(dataset, self._batches.partners())

    def _precompute_ref_logps(self, dataset: Mismatched, name: str, batch_size: int) -> Mismatched:
        is_training, together = name == "train", self._parts.spec.tuning.rows_together
        rows = self._parts.training if is_training else self._parts.held_out
        assert rows is not None and self._batches is not None, (
            "there is a dataset of it, of training all weights"
        )
        order = self._batches.rows if is_training else np.arange(len(dataset))
        pairs = f"kto, {together} at a time"
        if is_training and len(order) % together == 1:
            pairs += ", none alone"  # earlier versions compared the last row with itself
        began = time.monotonic()
        numbers = reference_logps(
            self._parts.folder,
            [*rows.keys, pairs],
            len(order),
            partial(self._reference_batches, dataset, order, batch_size),
            _REFERENCE,
            batch_size,
        )
        if is_training:
            self.reference_seconds = time.monotonic() - began
        back = np.argsort(order)
        return Mismatched(
            dataset.rows, dataset.partners, {key: found[back] for key, found in numbers.items()}
        )

    def _reference_batches(self, rows: Mismatched, order: Indices, batch_size: int, begin: int) -> Batches:
        """The reference's log-probabilities of the answers behind their prompts, and behind others."""
        rest = torch.utils.data.Subset(rows, order[begin:].tolist())
        loader = torch.utils.data.DataLoader(rest, batch_size, collate_fn=self.data_collator)
        for batch in self.accelerator.prepare(loader):
            self._parts.go_on()
            yield self.compute_ref_log_probs(self.model, batch)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Return `eval_loss`, `eval_kl` and the measures of rewards, over all rows of the evaluation set."""
        found: list[torch.Tensor] = []
        summed(self, lambda model, inputs: self._measured(model, inputs, found))
        label, logps, gains, others = torch.cat(found).double().unbind(1)
        good, kl = label > 0, others.mean().clamp(min=0)
        losses = torch.where(
            good,
            self.desirable_weight * (1 - torch.sigmoid(self.beta * (gains - kl))),
            self.undesirable_weight * (1 - torch.sigmoid(self.beta * (kl - gains))),
        )
        metrics = {"eval_loss": float(losses.mean()), "eval_kl": float(kl)}
        for name, chosen in (("chosen", good), ("rejected", ~good)):
            if chosen.any():
                metrics[f"eval_rewards/{name}"] = float(self.beta * gains[chosen].mean())
                metrics[f"eval_logps/{name}"] = float(logps[chosen].mean())
        if good.any() and not good.all():
            metrics["eval_rewards/margins"] = (
                metrics["eval_rewards/chosen"] - metrics["eval_rewards/rejected"]
            )
        return tell(self, metrics)

    def _measured(
        self, model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], found: list[torch.Tensor]
    ) -> dict[str, float]:
        """Add the label, the log-probability and the gain over the reference of each answer, and the gain of the answer
        behind the other prompt."""
        logps, others = (_logps(model, inputs, prefix) for prefix in ("", "KL_"))
        if _REFERENCE[0] in inputs:
            reference = [inputs[name] for name in _REFERENCE]
        else:
            reference = self.compute_ref_log_probs(model, inputs)
        columns = [inputs["label"].to(logps.dtype), logps, logps - reference[0], others - reference[1]]
        found.append(self.accelerator.gather_for_metrics(torch.stack(columns, dim=1)).cpu())
        return {}


make_trainer = LabelledTrainer


def _logps(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], prefix: str) -> torch.Tensor:
    """The log-probability of each answer."""
    ids = inputs[f"{prefix}input_ids"]
    found: torch.Tensor = model(
        input_ids=ids,
        attention_mask=inputs[f"{prefix}attention_mask"],
        labels=ids.masked_fill(inputs[f"{prefix}completion_mask"] == 0, IGNORED),
        use_cache=False,
        fused_lm_head=True,
    ).log_probs.sum(-1)
    return found


class FixedBatches(Sampler[int]):  # type: ignore[misc]
    """Rows in batches that are the same in each epoch, in an order by chance; one with fewer rows stays the last."""

    def __init__(self, rows: Indices, at_a_time: int, seed: int) -> None:
        self.rows = rows
        self._at_a_time = at_a_time
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[int]:
        whole = len(self.rows) // self._at_a_time * self._at_a_time
        batches = self.rows[:whole].reshape(-1, self._at_a_time)
        order = np.random.default_rng([self._seed, self._epoch]).permutation(batches)
        return map(int, np.concatenate([order.reshape(-1), self.rows[whole:]]))

    def partners(self) -> Indices:
        """For each row the one before it in its batch, for the first the last; for one alone the row before."""
        found = np.empty_like(self.rows)
        for begin in range(0, len(self.rows), self._at_a_time):
            batch = self.rows[begin : begin + self._at_a_time]
            found[batch] = np.roll(batch, 1) if len(batch) > 1 else self.rows[begin - 1]
        return found


class MatchedAlone(torch.utils.data.Dataset[Row]):  # type: ignore[misc]
    """Rows, of which one that is alone in its batch, the last of an epoch, gets the one before it in the data set to
    exchange answers with. The others find theirs in their batch."""

    def __init__(self, rows: Dataset) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return dict(self.rows[index])

    def __getitems__(self, indices: list[int]) -> list[Row]:
        """Those of a batch, for which torch asks together."""
        found: list[Row] = self.rows.__getitems__(indices)
        if len(found) == 1:
            found[0][_OTHER] = self.rows[indices[0] - 1]
        return found


class Mismatched(torch.utils.data.Dataset[Row]):  # type: ignore[misc]
    """Rows, each with the one whose answer is put behind its prompt, and with numbers of its own."""

    def __init__(
        self, rows: Dataset, partners: Indices, numbers: Mapping[str, Numbers] | None = None
    ) -> None:
        self.rows = rows
        self.partners = partners
        self._numbers = numbers or {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        other = self.rows[int(self.partners[index])]
        return {
            **self.rows[index],
            _OTHER: other,
            **{key: found[index] for key, found in self._numbers.items()},
        }


class LabelledCollator:
    """A batch as KTOTrainer takes it: prompts with their answers, and with those of other rows (`KL_`)."""

    def __init__(self, pad_token_id: int, max_length: int) -> None:
        self._padding = pad_token_id
        self._max_length = max_length

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        others = [row.get(_OTHER, rows[number - 1]) for number, row in enumerate(rows)]
        batch = self._padded("", [(row["input_ids"], row["labels"]) for row in rows])
        batch |= self._padded("KL_", [self._exchanged(*pair) for pair in zip(rows, others, strict=True)])
        batch["label"] = torch.tensor([row["label"] for row in rows])
        for name in _REFERENCE:
            if name in rows[0]:
                batch[name] = torch.tensor(np.array([row[name] for row in rows]))
        return batch

    def _exchanged(self, row: Row, other: Row) -> tuple[list[int], list[int]]:
        """The tokens and labels of the row's prompt with the other row's answer, cut at the maximum length."""
        prompt = row["input_ids"][: _answer_at(row)]
        begin = _answer_at(other)
        ids = [*prompt, *other["input_ids"][begin:]]
        labels = [*([IGNORED] * len(prompt)), *other["labels"][begin:]]
        return ids[: self._max_length], labels[: self._max_length]

    def _padded(
        self, prefix: str, sequences: Sequence[tuple[list[int], list[int]]]
    ) -> dict[str, torch.Tensor]:
        ids = [torch.tensor(tokens) for tokens, _ in sequences]
        masks = [(torch.tensor(labels) != IGNORED).long() for _, labels in sequences]
        return {
            f"{prefix}input_ids": pad(ids, padding_value=self._padding),
            f"{prefix}attention_mask": pad([torch.ones_like(one) for one in ids], padding_value=0),
            f"{prefix}completion_mask": pad(masks, padding_value=0),
        }


def _answer_at(row: Row) -> int:
    """The place of the first token of the answer."""
    return next(place for place, label in enumerate(row["labels"]) if label != IGNORED)
