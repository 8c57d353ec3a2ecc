"""The names of what is measured: TRL's in its logs, and Tunewright's in metric events and result files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_NAMES = {
    "mean_token_accuracy": "mean_token_accuracy",
    "rewards/accuracies": "reward_accuracy",
    "accuracy": "reward_accuracy",
    "rewards/margins": "reward_margin",
    "margin": "reward_margin",
    "mean_reward": "reward_mean",
    "rewards/chosen": "reward_chosen",
    "rewards/rejected": "reward_rejected",
    "logps/chosen": "logps_chosen",
    "logps/rejected": "logps_rejected",
    "reward": "reward",
    "reward_std": "reward_std",
    "frac_reward_zero_std": "reward_zero_std",
    "kl": "kl",
    "entropy": "entropy",
    "clip_ratio/region_mean": "clip_ratio",
    "completions/mean_length": "completion_length",
    "completions/clipped_ratio": "completions_clipped",
    "grader_errors": "grader_errors",
    "sampling/sampling_logp_difference/mean": "sampling_difference",
    "sampling/sampling_logp_difference/max": "sampling_difference_max",
    "nll_loss": "nll_loss",
    "log_odds_chosen": "log_odds",
}
OF_GRADER = "graders/"
"""Before the name of a grader of a `multi`, in the logs of its mean reward."""


def measures(logs: Mapping[str, Any], *, of: str = "", prefix: str) -> dict[str, float]:
    """What the logs have of the measures, each of which has the prefix `of` there, under names with `prefix`."""
    found = {
        f"{prefix}{name}": logs[f"{of}{logged}"] for logged, name in _NAMES.items() if f"{of}{logged}" in logs
    }
    begin = f"{of}{OF_GRADER}"
    found |= {
        f"{prefix}grader_{name.removeprefix(begin)}": value
        for name, value in logs.items()
        if name.startswith(begin)
    }
    return {name: float(value) for name, value in found.items() if value is not None}


def is_measured(name: str) -> bool:
    """Whether a number of TRL's logs is among the measures."""
    return name in _NAMES or name.startswith(OF_GRADER)


def held_out(logs: Mapping[str, Any]) -> dict[str, float]:
    """The loss and the measures of an evaluation."""
    return {"valid_loss": float(logs["eval_loss"]), **measures(logs, of="eval_", prefix="valid_")}


def told(data: Mapping[str, Any], prefix: str) -> str:
    """The loss of `data`, and the measure that says most beside it, for a message."""
    for name, digits in (("reward_accuracy", 2), ("reward_margin", 2), ("reward", 4)):
        value = data.get(f"{prefix}{name}")
        if value is not None:
            return f"{data[f'{prefix}loss']:.4f} ({name.replace('_', ' ')} {value:.{digits}f})"
    return f"{data[f'{prefix}loss']:.4f}"


def finite(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(float(value)) else None
