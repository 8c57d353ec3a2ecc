"""Verdicts of evaluations, and what aliases require."""

from typing import Any

from pydantic import Field

from .base import Wire


class VerdictReason(Wire):
    """What was found about one limit.

    - name: min, max, max_drop; rows: too few to judge; evaluation: it was not measured; forgetting
    - verdict: pass, fail or not_enough_data
    - value, low, high, limit: the figure with its 95 % interval, and what it was compared with; for max_drop by how
      much it is worse than that of `against`
    """

    name: str
    verdict: str
    message: str = ""
    metric: str | None = None
    against: str | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    limit: float | None = None


class Judgement(Wire):
    """Whether limits are kept: `verdict` is pass, fail or not_enough_data; a reason for each limit."""

    verdict: str
    reasons: list[VerdictReason] = Field(default_factory=list[VerdictReason])


class TargetVerdict(Judgement):
    """The same of a new target of an alias, with the id of the evaluation that decided."""

    model: str = ""
    evaluation: str | None = None


class AliasGate(Wire):
    """What an alias's requirement has found of the new targets of a version. `forced`: one has not passed."""

    forced: bool = False
    targets: list[TargetVerdict] = Field(default_factory=list[TargetVerdict])


class RatedModel(Wire):
    """What people have preferred: the evaluated model (wins) or another one. win_rate has its 95 % interval over rows;
    conclusion is better, worse or no_difference_seen."""

    against: str
    rows: int = 0
    ratings: int = 0
    wins: int = 0
    ties: int = 0
    losses: int = 0
    win_rate: float = 0.0
    low: float = 0.0
    high: float = 0.0
    p_value: float = 1.0
    conclusion: str = ""


class RatersAgreement(Wire):
    """How two people, or a person and the judge, agree about pairs that both have rated; kappa is Cohen's."""

    first: str
    second: str
    rows: int = 0
    agreement: float = 0.0
    kappa: float | None = None


class Ratings(Wire):
    """What people have chosen of the pairs of an evaluation."""

    evaluation: str
    model: str = ""
    raters: list[str] = Field(default_factory=list)
    models: list[RatedModel] = Field(default_factory=list[RatedModel])
    agreement: list[RatersAgreement] = Field(default_factory=list[RatersAgreement])


class RequiredEvaluation(Wire):
    """Which evaluations of a model count: those on the file `data` with these settings. `sha256` is the file's."""

    data: str
    metric: str
    sha256: str | None = None
    reading: dict[str, Any] | None = None
    extract: str = "whole"
    json_schema: dict[str, Any] | None = None
    temperature: float = 0.0


class AliasRequirement(Wire):
    """What an alias requires of new targets: limits of the figure of an evaluation, and that they have not forgotten.

    - max_drop: by how much the figure may be worse than that of each present target
    """

    evaluation: RequiredEvaluation | None = None
    min: float | None = None
    max: float | None = None
    max_drop: float | None = None
    no_forgetting: bool = False
