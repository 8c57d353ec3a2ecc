"""What a finished job was predicted to need, and what it needed."""

from __future__ import annotations

from pydantic import Field

from tunewright.jobs.kinds import JobResult
from tunewright.kinds.fine_tuning.models import FineTuningResult
from tunewright.plan.cost import Cost, CostRange
from tunewright.wire import Wire


class MeasuredObject(Wire):
    """What the steps of a finished job took. Plans of later jobs on its base predict their time from it."""

    device: str = Field(description="The name of the GPU, or `cpu`.")
    seconds: float = Field(
        description="Of the steps that its last process did, without the first, evaluations and checkpoints."
    )
    tokens: int = Field(description="Tokens in these steps.")
    peak_bytes: int = Field(description="Most memory: allocated by torch on a GPU, resident on the CPU.")
    waited: float | None = Field(
        None, description="Seconds beside these in which steps have waited for their rows."
    )
    compiled: bool = Field(False, description="Whether the layers were compiled.")
    steps: int | None = Field(None, description="How many steps these were.")
    padding: float | None = Field(
        None,
        description="Share of what their batches computed that was padding, as expected of the rows' lengths.",
    )
    reference_seconds: float | None = Field(
        None,
        description="Of the pass over all rows before the first step, by which dpo and kto with type full know what "
        "they are compared with.",
    )
    cost: Cost | None = Field(None, description="Energy and price of all these seconds.")

    @classmethod
    def of(cls, result: JobResult | None) -> MeasuredObject | None:
        measured = result.measured if isinstance(result, FineTuningResult) else None
        if measured is None or not isinstance(result, FineTuningResult):
            return None
        return cls(**measured.model_dump(exclude={"length"}), cost=result.cost)


class ForgettingObject(Wire):
    """How far the finished model is from what it was before training, on general text that is part of the package."""

    kl: float = Field(
        description="KL(before || now), nats per token: a lower bound, of the 128 likeliest tokens."
    )
    low: float = Field(description="The lower end of its 95 % interval over passages.")
    high: float
    loss: float = Field(description="Nats per token of the text.")
    loss_before: float
    tokens: int = Field(description="Of the text.")
    bound: float = Field(description="That of `kl`, above which the events have the warning `forgets`.")
    is_beyond: bool

    @classmethod
    def of(cls, result: JobResult | None) -> ForgettingObject | None:
        found = result.forgetting if isinstance(result, FineTuningResult) else None
        return cls(**found.model_dump(), is_beyond=found.is_beyond) if found is not None else None


class BestObject(Wire):
    """The checkpoint that the model is."""

    metric: str
    step: int
    value: float
    last_step: int = Field(description="The step after which training has ended.")
    stopped_early: bool = Field(description="Whether it ended since the metric got no better.")

    @classmethod
    def of(cls, result: JobResult | None) -> BestObject | None:
        best = result.best if isinstance(result, FineTuningResult) else None
        return cls(**best.model_dump()) if best is not None else None


class PlannedTime(Wire):
    """Seconds between which the steps, and the reference's pass before them where there is one, were predicted to
    take."""

    least: float
    most: float
    basis: str = Field(description="A finished job, or the card's peak.")


class PlannedObject(Wire):
    """What a finished job was predicted to need, before its first step."""

    steps: int
    tokens: int = Field(description="Of all epochs, after cutting at `max_length`.")
    peak_bytes: int = Field(description="Most memory, as in `measured`.")
    seconds: PlannedTime | None = Field(
        description="Of all steps, and of the reference's pass. null: no job of the method has finished on this base "
        "and device, and the card is not known."
    )
    cost: CostRange | None = Field(
        None,
        description="Energy and price of these seconds, where the operator's rates or the card tell them.",
    )
    compiled: bool = Field(False, description="Whether the layers are compiled.")

    @classmethod
    def of(cls, result: JobResult | None) -> PlannedObject | None:
        planned = result.planned if isinstance(result, FineTuningResult) else None
        return cls(**planned.model_dump()) if planned is not None else None
