"""What a fine-tuning job asks of the evaluations of its model and its checkpoints, and what they have found."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tunewright.kinds.evaluation.models import EvaluationRequest
from tunewright.metrics.names import MetricName
from tunewright.metrics.verdicts import Verdict
from tunewright.wire import Wire

EVALUATED_FILE, JUDGE = "evaluate.data", "evaluate.judge"
"""Roles of a job's inputs: the rows of its evaluations, and the weights of their judge."""
OF_DATA = "data"
"""The name of the evaluation on rows; others have that of their suite."""

Point = Literal["before", "checkpoints", "end"]
Select = Literal["last", "best"]


class Measure(BaseModel):
    """One kind of evaluation that a job has asked for."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    """`OF_DATA`, or a suite."""
    request: EvaluationRequest
    """Without models."""
    sha256: str
    """The hash of the rows' file, or of the files of the suite."""


class EvaluateRequest(BaseModel):
    """`evaluate` of a job's request."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    asked: dict[str, Any]
    """As it was given."""
    at: list[Point]
    select: Select = "last"
    metric: MetricName | None = None
    """By which the best checkpoint is found; None: the first metric of the evaluation on rows."""
    seed: int = 0
    measures: list[Measure]


class EvaluatedFigure(Wire):
    """A metric of a model, and how it is compared with the base."""

    metric: MetricName
    value: float | None
    low: float | None = Field(description="The lower end of its 95 % interval.")
    high: float | None
    gain: float | None = Field(None, description="Minus that of the base, on the same rows.")
    gain_low: float | None = Field(None, description="The lower end of its 95 % interval.")
    gain_high: float | None = None


class Forgotten(Wire):
    """By how much a model is below the base on a suite, as a share of what the base has right."""

    value: float | None
    low: float | None = Field(description="The lower end of its 95 % interval.")
    high: float | None
    limit: float | None


class PointEvaluation(Wire):
    """What one evaluation of a job has found."""

    model_config = ConfigDict(protected_namespaces=())

    at: Literal["before", "checkpoint", "end"]
    step: int | None = Field(description="That of the checkpoint.")
    model: str
    measure: str = Field(description="data, or the suite.")
    evaluation: str | None = Field(description="Its id; null where none could be made.")
    status: Literal["succeeded", "failed", "cancelled"]
    why: str | None = Field(description="Why there are no figures.")
    figures: list[EvaluatedFigure]
    forgotten: Forgotten | None
    verdict: Verdict | None = Field(
        description="Whether the model keeps the limits; null without limits, and of the base."
    )
    reasons: list[str] = Field(description="What was found about each limit.")


class TrainingReport(Wire):
    """The evaluations of a job so far, and what they say of its model."""

    model_config = ConfigDict(protected_namespaces=())

    points: list[PointEvaluation]
    model: str | None = Field(None, description="What became the job's model; null until it has ended.")
    step: int | None = Field(None, description="The step of the checkpoint that it is; null: the last state.")
    verdict: Verdict | None = Field(None, description="Whether it keeps the limits; null without limits.")
    why: str | None = Field(None, description="Why it is this one.")
