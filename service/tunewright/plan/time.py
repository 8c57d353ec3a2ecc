"""How long a run takes: from a finished job on the same base and machine, or else a range of a card's peak."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from tunewright.plan.memory import Run
from tunewright.plan.shape import ModelShape

_LEAST, _MOST = 0.15, 0.55
"""Share of a card's peak that training reaches: short rows and small models the least, long rows and large the most."""
_SURE, _UNSURE = 0.1, 0.4
"""Share by which the time may differ from that of a finished job with rows alike, and with others."""
COMPILED_TIME = 0.8
"""The time of a step with compiled layers, in multiples of that without (docs/performance.md)."""
_ALIKE = 1.5
"""Ratio of lengths and of rows at a time up to which runs are alike."""


class Measured(BaseModel):
    """What a finished run took."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    device: str
    """The name of the GPU, or `cpu`."""
    seconds: float
    """Of steps alone, without loading, evaluations and checkpoints, and without the first step."""
    tokens: int
    """Tokens in these steps, with or without a loss."""
    length: int
    """Tokens of the longest example."""
    peak_bytes: int
    """Most memory: allocated by torch on a GPU, resident on the CPU."""
    compiled: bool = False
    """Whether torch.compile had compiled the layers."""
    waited: float | None = None
    """Seconds beside these in which steps have waited for their rows; None in rows of earlier versions."""


@dataclass(frozen=True)
class Earlier:
    """A finished job on the same base and machine."""

    job: str
    run: Run
    measured: Measured


class TimeRange(BaseModel):
    """Seconds of training, without loading and saving."""

    model_config = ConfigDict(frozen=True)

    least: float
    most: float
    basis: str


def flops_per_token(shape: ModelShape, run: Run) -> float:
    """Of the forward and the backward pass, the reference's forward pass, and those over mismatched answers. Where the
    base is frozen, gradients of its weights are not computed."""
    forward = 2.0 * shape.active + 2.0 * shape.layers * run.length * shape.heads * shape.head_dim
    alone = run.has_reference + run.has_mismatched * (1 + run.has_reference)
    passes = (3 if run.type == "full" else 2) + run.checkpointing + alone
    return forward * passes


def predict_seconds(
    shape: ModelShape, run: Run, tokens: int, teraflops: float | None, earlier: Sequence[Earlier] = ()
) -> TimeRange | None:
    """The time by the finished job that is most like the run, newest first in `earlier`; else by the peak of the card.
    None where neither is known."""
    known = [one for one in earlier if one.run.type == run.type]
    if known:
        return _by_job(shape, run, tokens, max(known, key=lambda one: _likeness(one.run, run)))
    if teraflops is None:
        return None
    ideal = flops_per_token(shape, run) * tokens / (teraflops * 1e12 * run.gpus)
    return TimeRange(
        least=ideal / _MOST,
        most=ideal / _LEAST,
        basis=f"FLOPs at {_LEAST:.0%} to {_MOST:.0%} of the card's peak; no job of this method has finished on this "
        "base and machine",
    )


def _by_job(shape: ModelShape, run: Run, tokens: int, one: Earlier) -> TimeRange:
    work = flops_per_token(shape, run) * tokens * _time(run) / _time(one.run)
    rate = flops_per_token(shape, one.run) * one.measured.tokens / one.measured.seconds
    if run.device != "cpu":  # whose processes share its cores
        rate *= run.gpus / one.run.gpus
    is_alike = _likeness(one.run, run) == 3 and one.run.gpus == run.gpus
    spread = _SURE if is_alike else _UNSURE
    rows = "rows alike" if is_alike else "other rows, or other options"
    return TimeRange(
        least=work / rate * (1 - spread),
        most=work / rate * (1 + spread),
        basis=f"the speed of {one.job}, which trained this base here by the same method, with {rows}: "
        f"{one.measured.tokens / one.measured.seconds:.0f} tokens/s",
    )


def _time(run: Run) -> float:
    """The time of a step in multiples of that without torch.compile."""
    return COMPILED_TIME if run.compiled else 1.0


def _likeness(one: Run, other: Run) -> int:
    """How many are alike of checkpointing with torch.compile, rows at a time and lengths."""
    return (
        ((one.checkpointing, one.compiled) == (other.checkpointing, other.compiled))
        + _are_alike(one.batch, other.batch)
        + _are_alike(one.length, other.length)
    )


def _are_alike(one: int, other: int) -> bool:
    return max(one, other) <= _ALIKE * min(one, other)
