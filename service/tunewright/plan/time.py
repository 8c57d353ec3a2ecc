"""How long a run takes: a range, from its FLOPs and the device's peak. Not calibrated on finished jobs yet."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from tunewright.plan.memory import Run
from tunewright.plan.shape import ModelShape

_LEAST, _MOST = 0.15, 0.55
"""Share of a card's peak that training reaches: short rows and small models the least, long rows and large the most."""


class TimeRange(BaseModel):
    """Seconds of training, without loading and saving."""

    model_config = ConfigDict(frozen=True)

    least: float
    most: float
    basis: str


def flops_per_token(shape: ModelShape, run: Run) -> float:
    """Of the forward and the backward pass. Where the base is frozen, gradients of its weights are not computed."""
    forward = 2.0 * shape.active + 2.0 * shape.layers * run.length * shape.heads * shape.head_dim
    passes = (3 if run.type == "full" else 2) + (1 if run.checkpointing else 0)
    return forward * passes


def predict_seconds(shape: ModelShape, run: Run, tokens: int, teraflops: float | None) -> TimeRange | None:
    """None where the device's peak is not known."""
    if teraflops is None:
        return None
    ideal = flops_per_token(shape, run) * tokens / (teraflops * 1e12)
    return TimeRange(
        least=ideal / _MOST,
        most=ideal / _LEAST,
        basis=f"FLOPs at {_LEAST:.0%} to {_MOST:.0%} of the card's peak; no finished job is taken into account",
    )
