"""The method `orpo`: good answers are learnt as in `supervised`, and become likelier than bad ones by their odds.

With TRL's ORPOTrainer, which is experimental there, and so here. It has no reference. TRL's own pass through the model
holds the logits of both answers in the types of several copies; here the head is the fused one of the other methods,
which makes them in tiles. The learnt tokens are those of TRL: of the chosen sequence all, its prompt too.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Self

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel
from trl.trainer.utils import add_fused_lm_head

from tunewright.rows.examples import IGNORED
from tunewright.trainer.held_out import summed, tell
from tunewright.trainer.loading import OrderedRows
from tunewright.trainer.methods.dpo import PairCollator
from tunewright.trainer.speed import leave_out_mask
from tunewright.trainer.training import Parts

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that it is experimental, which the documentation says
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

_MEASURES = (
    "rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected",
    "log_odds_chosen", "log_odds_ratio",
)  # fmt: skip
"""Means over pairs that TRL stores."""


class OddsRatioTrainer(OrderedRows, ORPOTrainer):  # type: ignore[misc]
    """ORPOTrainer on tokenized pairs, whose evaluation gives every token and every pair the same weight."""

    def __init__(self, parts: Parts) -> None:
        tuning = parts.spec.tuning
        if tuning.type == "qlora":
            # As TRL's other trainers do it (QLoRA, Dettmers et al. 2023).
            for name, parameter in parts.model.named_parameters():
                if parameter.requires_grad and "lora_magnitude_vector" not in name:
                    parameter.data = parameter.data.to(torch.bfloat16)
        leave_out_mask(parts.model)
        super().__init__(
            model=parts.model,
            args=ORPOConfig(**parts.arguments(), beta=tuning.beta, disable_dropout=not tuning.dropout),
            train_dataset=_Tokenized(parts.training.dataset()),
            eval_dataset=_Tokenized(parts.held_out.dataset()) if parts.held_out else None,
            data_collator=PairCollator(parts.tokenizer.pad_token_id),
            processing_class=parts.tokenizer,
            callbacks=parts.callbacks,
        )
        is_adapter = isinstance(parts.model, PeftModel)
        add_fused_lm_head(
            parts.model.get_base_model() if is_adapter else parts.model, outputs=("log_probs", "mean_logits")
        )
        self._tokens = 0.0

    def concatenated_forward(
        self, model: PreTrainedModel, batch: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        """Mean log-probabilities of the tokens of each chosen and each rejected answer, the means of their logits, the
        mean loss of all tokens of the chosen sequences; and the auxiliary loss of a mixture of experts."""
        ids, answers = batch["input_ids"], batch["completion_mask"]
        pairs = len(ids) // 2
        learnt = torch.cat([batch["attention_mask"][:pairs], answers[pairs:]])
        outputs = model(
            input_ids=ids,
            attention_mask=batch["attention_mask"],
            labels=ids.masked_fill(learnt == 0, IGNORED),
            use_cache=False,
            fused_lm_head=True,
        )
        answers = answers[:, 1:]
        logps = (outputs.log_probs * answers).sum(-1) / answers.sum(-1)
        loss = -outputs.log_probs[:pairs].sum() / learnt[:pairs, 1:].sum()
        found = (logps[:pairs], logps[pairs:], outputs.mean_logits[:pairs], outputs.mean_logits[pairs:], loss)
        return (*found, outputs.aux_loss) if self.aux_loss_enabled else found

    def compute_loss(
        self, model: PreTrainedModel, inputs: dict[str, Any], *arguments: Any, **options: Any
    ) -> Any:
        tokens = self.accelerator.gather_for_metrics(inputs["attention_mask"].sum())
        self._tokens += float(tokens.sum())
        return super().compute_loss(model, inputs, *arguments, **options)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """With the tokens that passed through the model, as TRL's other trainers have them."""
        super().log(logs | {"num_tokens": self._tokens} if "loss" in logs else logs, start_time)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Return `eval_loss` and the measures, over all tokens and pairs of the evaluation set."""
        sums = summed(self, self._measured)
        pairs, tokens = sums.pop("pairs"), sums.pop("tokens")
        loss = sums.pop("nll_loss") / tokens
        means = {name: value / pairs for name, value in sums.items()}
        found = {"loss": loss - self.beta * means.pop("log_odds_ratio"), "nll_loss": loss, **means}
        return tell(self, {f"eval_{name}": value for name, value in found.items()})

    def _measured(self, model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, float]:
        _, metrics = self.get_batch_loss_metrics(model, inputs, train_eval="eval")
        pairs = len(inputs["input_ids"]) // 2
        tokens = float(inputs["attention_mask"][:pairs, 1:].sum())
        return {
            "pairs": pairs,
            "tokens": tokens,
            "nll_loss": metrics["eval_nll_loss"] * tokens,
            **{name: metrics[f"eval_{name}"] * pairs for name in _MEASURES},
        }


make_trainer = OddsRatioTrainer


class _Tokenized(torch.utils.data.Dataset[dict[str, Any]]):  # type: ignore[misc]
    """Pairs for ORPOTrainer, which would tokenize any data set by `map`: it gets them as they are."""

    def __init__(self, pairs: Dataset) -> None:
        self._pairs = pairs

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(self._pairs[index])

    def map(self, *_: Any, **__: Any) -> Self:
        return self
