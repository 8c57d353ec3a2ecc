"""The options of a training run as requested: `auto` where the choice is left to the service.

The API checks their bounds (`api/fine_tuning/schemas.py`). Only types are checked here, so that a row which an earlier
version stored can always be read.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, field_validator

Auto = Literal["auto"]
OF_METHOD = {
    "supervised": ("neftune_alpha", "packing"),
    "dpo": ("loss_type", "label_smoothing"),
    "kto": ("desirable_weight", "undesirable_weight"),
    "reinforcement": ("algorithm", "num_generations", "max_completion_length", "temperature", "sampling"),
}
"""The options of `TuningOptions` that a method alone has."""
WITH_BETA = ("dpo", "kto", "orpo", "reinforcement")
"""The methods with the hyperparameter beta."""
OF_REINFORCEMENT = ("compute_multiplier", "eval_interval", "eval_samples")
"""OpenAI's hyperparameters that the method reinforcement alone has."""


def of_others(method: str) -> list[str]:
    """The options that other methods have alone."""
    return [name for other, names in OF_METHOD.items() if other != method for name in names]


class _Options(BaseModel):
    """Options for which a missing value, null and `auto` mean the same."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @field_validator("*", mode="before")
    @classmethod
    def _null_is_auto(cls, value: object) -> object:
        return "auto" if value is None else value


class EarlyStoppingOptions(_Options):
    """When a run ends early (`plan.stopping.EarlyStopping`)."""

    metric: str = "auto"
    patience: int = 1
    min_delta: float = 0.0


class TuningOptions(_Options):
    """Tunewright's own options. They take precedence over OpenAI's hyperparameters."""

    type: Literal["auto", "lora", "qlora", "full"] = "auto"
    rank: int | Auto = "auto"
    alpha: float | Auto = "auto"
    dropout: float | Auto = "auto"
    target_modules: list[str] | str = "auto"
    use_rslora: bool = False
    use_dora: bool = False
    init: str = "auto"
    loraplus_lr_ratio: float | Auto = "auto"
    gradient_checkpointing: bool | Auto = "auto"
    torch_compile: bool | Auto = "auto"
    learning_rate: float | Auto = "auto"
    n_epochs: int | Auto = "auto"
    batch_size: int | Auto = "auto"
    per_device_batch_size: int | Auto = "auto"
    max_length: int | Auto = "auto"
    truncation: str = "truncate"
    group_by_length: bool = False
    packing: bool | Auto = "auto"
    dataloader_workers: int | Auto = "auto"
    warmup_ratio: float | Auto = "auto"
    lr_scheduler_type: str = "auto"
    lr_scheduler_kwargs: dict[str, float] | Auto = "auto"
    max_grad_norm: float | Auto = "auto"
    weight_decay: float | Auto = "auto"
    neftune_alpha: float | Auto = "auto"
    loss_type: str = "auto"
    label_smoothing: float | Auto = "auto"
    desirable_weight: float | Auto = "auto"
    undesirable_weight: float | Auto = "auto"
    algorithm: str = "auto"
    num_generations: int | Auto = "auto"
    max_completion_length: int | Auto = "auto"
    temperature: float | Auto = "auto"
    sampling: str = "auto"
    eval_interval: int | Auto = "auto"
    early_stopping: EarlyStoppingOptions | Auto = "auto"
    best_checkpoint: str = "auto"
    gpus: int | Auto = "auto"
    sharding: str = "auto"


class HyperparameterOptions(_Options):
    """OpenAI's hyperparameters."""

    n_epochs: int | Auto = "auto"
    batch_size: int | Auto = "auto"
    learning_rate_multiplier: float | Auto = "auto"
    beta: float | Auto = "auto"
    """Of the methods `WITH_BETA` alone."""
    compute_multiplier: float | Auto = "auto"
    """Of reinforcement alone, as the next two."""
    eval_interval: int | Auto = "auto"
    eval_samples: int | Auto = "auto"

    def of_method(self, method: str) -> dict[str, float | str]:
        """Those that the method has."""
        others = set() if method in WITH_BETA else {"beta"}
        if method != "reinforcement":
            others |= set(OF_REINFORCEMENT)
        return self.model_dump(exclude=others)
