"""When a run ends early, and which of its checkpoints is the best: rules over the values of its evaluations. Pure.

They are those of transformers' EarlyStoppingCallback and `load_best_model_at_end`. What is decided depends on the
values alone, in their order, so that a run which goes on after a kill decides the same.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

LOSS = "valid_loss"
MARGIN = "valid_reward_margin"
_REWARD, _ACCURACY = "valid_reward", "valid_reward_accuracy"
StoppingMetric = Literal[
    "valid_loss", "valid_mean_token_accuracy", "valid_nll_loss", "valid_reward", "valid_reward_accuracy",
    "valid_reward_margin",
]  # fmt: skip
METRICS: Mapping[str, tuple[str, ...]] = {
    "supervised": (LOSS, "valid_mean_token_accuracy"),
    "dpo": (LOSS, _ACCURACY, MARGIN),
    "kto": (LOSS, MARGIN),
    "orpo": (LOSS, "valid_nll_loss", _ACCURACY, MARGIN),
    "reward": (LOSS, _ACCURACY, MARGIN),
    "reinforcement": (_REWARD,),
}
"""Of each method, the metrics of an evaluation by which a checkpoint can be the best; the first by default. The loss of
reinforcement says nothing about how good answers are."""
_SMALLER = frozenset({LOSS, "valid_nll_loss"})
"""Those of which smaller values are better."""


class EarlyStopping(BaseModel):
    """A run ends when `patience` evaluations one after another have not improved `metric` by more than `min_delta`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    metric: str
    patience: int = 1
    min_delta: float = 0.0


class BestCheckpoint(BaseModel):
    """The checkpoint that a run's product is."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    metric: str
    step: int
    value: float
    last_step: int
    """The step after which the run has ended."""
    stopped_early: bool


@dataclass(frozen=True)
class Best:
    """The best of a run's evaluations."""

    metric: str
    step: int
    value: float
    is_over: bool = False
    """Whether the run ends, since later evaluations have not improved on it."""


def best_of(
    evaluations: Sequence[tuple[int, float]], metric: str, stopping: EarlyStopping | None = None
) -> Best | None:
    """The best of the evaluations, (step, value of the metric) in their order; the first of equal ones."""
    is_better = operator.lt if metric in _SMALLER else operator.gt
    best: Best | None = None
    without = 0
    for step, value in evaluations:
        improved = best is None or is_better(value, best.value)
        enough = stopping.min_delta if stopping else 0.0
        without = 0 if best is None or (improved and abs(value - best.value) > enough) else without + 1
        if best is None or improved:
            best = Best(metric, step, value)
    if best is None or stopping is None:
        return best
    return Best(best.metric, best.step, best.value, without >= stopping.patience)
