"""The metrics by name, and what each of them is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

MetricName = Literal[
    "accuracy", "macro_f1", "weighted_f1", "exact_match", "token_f1", "rouge1", "rouge2", "rougeL", "bleu", "chrf",
    "json_valid", "schema_valid", "field_accuracy", "perplexity", "token_accuracy", "judge", "grader", "pass_at_1",
    "pass_at_10", "pass_at_100",
]  # fmt: skip
METRICS: tuple[MetricName, ...] = get_args(MetricName)
Extract = Literal["whole", "first_line", "last_line", "last_number"]
"""Which part of an answer, and of the expected one, is compared."""

SuiteName = Literal["mmlu", "ceval", "gsm8k", "humaneval"]
"""Sets of questions by which forgetting is measured."""

OF_LABELS = frozenset({"accuracy", "macro_f1", "weighted_f1"})
OF_SCORES = frozenset({"perplexity", "token_accuracy"})
"""Measured on the tokens of the expected answers; others are measured on answers."""
OF_OTHERS = frozenset({"judge", "grader"})
"""What a judge or a grader says of answers; others are computed from them."""
OF_PROGRAMS = frozenset({"pass_at_1", "pass_at_10", "pass_at_100"})
"""Measured by running answers that are programs."""


@dataclass(frozen=True)
class MetricKind:
    scale: float | None = 1.0
    """The largest value; None: there is none."""
    higher_is_better: bool = True
    is_share: bool = False
    """The mean over the rows of a value that is 0 or 1."""


KINDS: dict[MetricName, MetricKind] = {
    **dict.fromkeys(METRICS, MetricKind()),
    **{name: MetricKind(is_share=True) for name in ("accuracy", "exact_match", "json_valid", "schema_valid")},
    **{name: MetricKind(scale=100.0) for name in ("bleu", "chrf")},
    "grader": MetricKind(scale=None),
    "perplexity": MetricKind(scale=None, higher_is_better=False),
}
