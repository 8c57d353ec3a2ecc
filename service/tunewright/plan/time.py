"""How long a run takes: from finished jobs on the same base and machine, or else a range of a card's peak.

The time of a job is its arithmetic, with the padding of its batches, over the speed that such jobs have reached here.
What is not arithmetic (the optimizer, the start of kernels) is a share of it that stays the same between jobs of one
kind: of the same method, with batches, lengths and steps of about one size. For these the prediction is narrow, and
wide for others.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from tunewright.plan.memory import Run
from tunewright.plan.shape import ModelShape

_LEAST, _MOST = 0.15, 0.55
"""Share of a card's peak that training reaches: short rows and small models the least, long rows and large the most."""
_SURE, _UNSURE = 0.1, 0.4
"""Share by which the time may differ from that of a finished job of the same kind, and of another."""
COMPILED_TIME = 0.8
"""The time of a step with compiled layers, in multiples of that without (docs/performance.md)."""
_ALIKE = 1.5
"""Ratio of lengths, of rows at a time and of tokens in a step up to which runs are of one kind."""
_COUNTED = 5
"""Finished jobs of one kind of which the newest count."""


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
    steps: int | None = None
    """How many steps these were; None in rows of earlier versions, as the next one."""
    padding: float | None = None
    """The share of what their batches computed that was padding, as expected of the lengths."""
    reference_seconds: float | None = None
    """Of the reference's pass over all rows before the first step; None where there was none."""


@dataclass(frozen=True)
class Earlier:
    """A finished job on the same base and machine."""

    job: str
    run: Run
    measured: Measured


@dataclass(frozen=True)
class Work:
    """How much a run computes."""

    tokens: int
    """Of all epochs."""
    steps: int = 0
    """0: not known."""
    padding: float = 0.0
    """The share of what batches compute that is padding."""
    reference_tokens: int = 0
    """Tokens that a reference has before the first step, where all weights are trained."""


class TimeRange(BaseModel):
    """Seconds of training: of the steps and, where all weights are trained beside a reference, of its pass over the
    rows before them. Without loading, evaluations and saving."""

    model_config = ConfigDict(frozen=True)

    least: float
    most: float
    basis: str


def flops_per_token(shape: ModelShape, run: Run) -> float:
    """Of the forward and the backward pass, the reference's forward pass, and those over mismatched answers. Where the
    base is frozen, gradients of its weights are not computed."""
    alone = run.has_reference + run.has_mismatched * (1 + run.has_reference)
    passes = (3 if run.type == "full" else 2) + run.checkpointing + alone
    return _forward(shape, run) * passes


def _forward(shape: ModelShape, run: Run) -> float:
    """FLOPs of a token in a forward pass."""
    return 2.0 * shape.active + 2.0 * shape.layers * run.length * shape.heads * shape.head_dim


def predict_seconds(
    shape: ModelShape, run: Run, work: Work, teraflops: float | None, earlier: Sequence[Earlier] = ()
) -> TimeRange | None:
    """The time by the finished jobs that are most like the run, newest first in `earlier`; else by the peak of the
    card. None where neither is known."""
    flops = flops_per_token(shape, run) * work.tokens + _forward(shape, run) * work.reference_tokens
    known = [one for one in earlier if one.run.type == run.type]
    if known:
        return _by_jobs(shape, run, work, flops, known)
    if teraflops is None:
        return None
    ideal = flops / (teraflops * 1e12 * run.gpus)
    return TimeRange(
        least=ideal / _MOST,
        most=ideal / _LEAST,
        basis=f"FLOPs at {_LEAST:.0%} to {_MOST:.0%} of the card's peak; no job of this method has finished on this "
        "base and machine",
    )


def _by_jobs(shape: ModelShape, run: Run, work: Work, flops: float, known: Sequence[Earlier]) -> TimeRange:
    differs = {one.job: _differences(one, run, work) for one in known}
    fewest = min(map(len, differs.values()))
    best = next(one for one in known if len(differs[one.job]) == fewest)
    alike = [one for one in known if not differs[one.job]][:_COUNTED] or [best]
    seconds = [_seconds_by(shape, run, work, flops, one) for one in alike]
    middle = statistics.median(seconds)
    spread = (max(seconds) - min(seconds)) / 2 / middle
    if fewest:
        spread, rows = _UNSURE, f"but with other {' and '.join(differs[best.job])}"
    else:
        spread, rows = max(_SURE, spread), "with rows and steps alike"
    speed = best.measured.tokens / best.measured.seconds
    more = f" and {len(alike) - 1} more" if len(alike) > 1 else ""
    return TimeRange(
        least=middle * (1 - spread),
        most=middle * (1 + spread),
        basis=f"the speed of {best.job}{more}, which trained this base here by the same method, {rows}: "
        f"{speed:.0f} tokens/s",
    )


def _seconds_by(shape: ModelShape, run: Run, work: Work, flops: float, one: Earlier) -> float:
    """The time of so much arithmetic at the speed of a finished job."""
    measured = one.measured
    rate = flops_per_token(shape, one.run) * measured.tokens / measured.seconds
    if measured.padding is not None:
        rate *= (1 - work.padding) / (1 - measured.padding)
    if run.device != "cpu":  # whose processes share its cores
        rate *= run.gpus / one.run.gpus
    return flops / rate * _time(run) / _time(one.run)


def _time(run: Run) -> float:
    """The time of a step in multiples of that without torch.compile."""
    return COMPILED_TIME if run.compiled else 1.0


def _differences(one: Earlier, run: Run, work: Work) -> list[str]:
    """In what a finished job was of another kind."""
    other, measured = one.run, one.measured
    in_a_step = measured.tokens / measured.steps if measured.steps else None
    same = {
        "method": (other.has_reference, other.has_mismatched) == (run.has_reference, run.has_mismatched),
        "checkpointing or compilation": (other.checkpointing, other.compiled)
        == (run.checkpointing, run.compiled),
        "rows at a time": _are_alike(other.batch, run.batch),
        "lengths": _are_alike(other.length, run.length),
        "steps": not work.steps
        or (in_a_step is not None and _are_alike(in_a_step, work.tokens / work.steps)),
        "adapter": (other.targets, other.use_dora) == (run.targets, run.use_dora),
        "GPUs": other.gpus == run.gpus,
    }
    return [name for name, is_same in same.items() if not is_same]


def _are_alike(one: float, other: float) -> bool:
    return max(one, other) <= _ALIKE * min(one, other)
