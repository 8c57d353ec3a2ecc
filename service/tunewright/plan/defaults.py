"""Resolves a job's options: every "auto" becomes a number that the job then shows.

Sources: QLoRA (Dettmers et al. 2023) for the 2e-4 of LoRA and QLoRA and for NF4 with double quantization; "LoRA
learns less and forgets less" (Biderman et al. 2024) for all-linear targets and alpha = 2 x rank.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

LEARNING_RATES = {"lora": 2e-4, "qlora": 2e-4, "full": 2e-5}
EFFECTIVE_BATCH = 32
EPOCHS = 3
MAX_LENGTH = 2048
WARMUP_RATIO = 0.03
MAX_GRAD_NORM = 1.0
_RANKS = ((1_000, 8), (10_000, 16), (100_000, 32), (math.inf, 64))
"""Rank by rows: under 1k, under 10k, up to 100k, more. Alpha is twice the rank."""


@dataclass(frozen=True)
class Resolved:
    """All options of a training run, none of them "auto"."""

    type: str
    learning_rate: float
    n_epochs: int
    batch_size: int
    """Rows for each step of the optimizer: per_device_batch_size x gradient_accumulation_steps."""
    per_device_batch_size: int
    gradient_accumulation_steps: int
    max_length: int
    truncation: str
    """What becomes of longer rows: "truncate" or "refuse"."""
    warmup_ratio: float
    lr_scheduler_type: str
    max_grad_norm: float
    weight_decay: float
    rank: int | None
    alpha: float | None
    dropout: float | None
    target_modules: str | list[str] | None
    use_rslora: bool
    use_dora: bool
    quantization: str | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def rank_for(rows: int, max_rank: int) -> int:
    """The adapter's rank for so many rows, never above what the engine serves."""
    rank = next(rank for limit, rank in _RANKS if rows < limit or (limit == 100_000 and rows == limit))
    return min(rank, max_rank)


def resolve(
    *,
    tuning: dict[str, Any],
    hyperparameters: dict[str, Any],
    rows: int,
    context: int,
    max_rank: int,
    device: str,
) -> Resolved:
    """Options of a run over `rows` rows on a model with `context` tokens.

    `tuning` are Tunewright's own options and win over OpenAI's `hyperparameters`; "auto" and None mean: choose.
    """

    def given(options: dict[str, Any], key: str, default: Any) -> Any:
        value = options.get(key)
        return default if value is None or value == "auto" else value

    method = given(tuning, "type", "lora")
    multiplier = given(hyperparameters, "learning_rate_multiplier", 1.0)
    learning_rate = given(tuning, "learning_rate", LEARNING_RATES[method] * multiplier)
    epochs = given(tuning, "n_epochs", given(hyperparameters, "n_epochs", EPOCHS))
    batch = given(tuning, "batch_size", given(hyperparameters, "batch_size", batch_for(rows)))
    per_device, accumulation = split_batch(batch, 8 if device == "cpu" else 4)
    adapter = method != "full"
    rank = given(tuning, "rank", rank_for(rows, max_rank)) if adapter else None
    return Resolved(
        type=method,
        learning_rate=float(learning_rate),
        n_epochs=int(epochs),
        batch_size=int(batch),
        per_device_batch_size=per_device,
        gradient_accumulation_steps=accumulation,
        max_length=min(given(tuning, "max_length", MAX_LENGTH), context),
        truncation=given(tuning, "truncation", "truncate"),
        warmup_ratio=given(tuning, "warmup_ratio", WARMUP_RATIO),
        lr_scheduler_type=given(tuning, "lr_scheduler_type", "cosine"),
        max_grad_norm=given(tuning, "max_grad_norm", MAX_GRAD_NORM),
        weight_decay=given(tuning, "weight_decay", 0.0),
        rank=rank,
        alpha=float(given(tuning, "alpha", 2 * rank)) if rank else None,
        dropout=float(given(tuning, "dropout", 0.0)) if adapter else None,
        target_modules=given(tuning, "target_modules", "all-linear") if adapter else None,
        use_rslora=bool(given(tuning, "use_rslora", False)) if adapter else False,
        use_dora=bool(given(tuning, "use_dora", False)) if adapter else False,
        quantization="nf4" if method == "qlora" else None,
    )


def batch_for(rows: int) -> int:
    """Rows a step: 32, or for less data the largest power of two that it fills."""
    return min(EFFECTIVE_BATCH, 1 << (rows.bit_length() - 1))


def split_batch(batch: int, largest: int) -> tuple[int, int]:
    """(rows at a time, accumulation steps) whose product is exactly `batch`, with the largest divisor that fits."""
    per_device = next(size for size in range(min(batch, largest), 0, -1) if batch % size == 0)
    return per_device, batch // per_device
