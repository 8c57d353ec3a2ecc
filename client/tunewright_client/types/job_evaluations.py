"""What the evaluations have found that a fine-tuning job asked for."""

from pydantic import Field

from .base import Wire


class JobEvaluationFigure(Wire):
    """A metric of a model with its 95 % interval, and `gain`: it minus that of the base, with the same."""

    metric: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    gain: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None


class JobForgotten(Wire):
    """By how much a model is below the base on a suite, as a share of what the base has right."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    limit: float | None = None


class JobEvaluationPoint(Wire):
    """What one evaluation has found.

    - at: before (the base), checkpoint or end
    - measure: data, or the suite
    - evaluation: its id, for `client.evaluations.retrieve`
    - why: where it has not succeeded, the reason
    - verdict: pass, fail or not_enough_data; reasons: of each limit
    """

    at: str
    step: int | None = None
    model: str = ""
    measure: str = ""
    evaluation: str | None = None
    status: str = ""
    why: str | None = None
    figures: list[JobEvaluationFigure] = Field(default_factory=list[JobEvaluationFigure])
    forgotten: JobForgotten | None = None
    verdict: str | None = None
    reasons: list[str] = Field(default_factory=list)


class JobEvaluation(Wire):
    """The evaluations of a job so far.

    - model, step: what became its model, when it has ended, and the step of that checkpoint; the last state has none
    - verdict: whether it keeps the limits: pass, fail or not_enough_data; None without limits
    - why: why it is this one
    """

    points: list[JobEvaluationPoint] = Field(default_factory=list[JobEvaluationPoint])
    model: str | None = None
    step: int | None = None
    verdict: str | None = None
    why: str | None = None
