"""Aliases, their versions, and the answers of their shadows."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from tunewright.api.fine_tuning.data import FileReading
from tunewright.graders.json_values import Schema
from tunewright.metrics.names import Extract, MetricName
from tunewright.metrics.verdicts import Gate, Limit, Verdict
from tunewright.registry.aliases import (
    MOST_TARGETS,
    Alias,
    AliasGuard,
    AliasRequirement,
    AliasShadow,
    AliasTarget,
)
from tunewright.store.records import AliasVersion
from tunewright.store.shadow_answers import ShadowAnswer
from tunewright.wire import Body, Wire

Version = Annotated[int, Field(strict=True, ge=1, le=2**31 - 1)]
_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_Model = Annotated[
    str, Field(min_length=1, max_length=512, description="Name of a base or of a tuned model.")
]
_EXPECTED = "The change is refused unless the alias has this version"
_WAIT = (
    "Load the targets that are not loaded, and change the alias when all of them are, so that no request waits for "
    "one."
)


class TargetBody(Body):
    """A model that answers for the alias."""

    model: _Model
    weight: Annotated[_Number, Field(gt=0, le=1e9)] = Field(
        1.0, description="Its share of the requests is its weight over the sum of the weights."
    )


class ShadowBody(Body):
    """A model that gets copies of requests; its answers are recorded, and not sent to any client."""

    model: _Model
    share: Annotated[_Number, Field(gt=0, le=1)] = Field(1.0, description="Share of the requests.")


class GuardJudgeBody(Body):
    """A model that compares what a new target answers with what the shadow answers, each pair in both orders. The
    target is asked again with the copy of the request."""

    model: _Model = Field(
        description="Served here: a base, an adapter, a deployed model, or an alias of one."
    )
    min_win_rate: Annotated[_Number, Field(gt=0, lt=1)] = Field(
        description="The smallest share of the comparisons that it may win, a tie counting half."
    )
    min_samples: Annotated[int, Field(strict=True, ge=30, le=1000)] = Field(
        50, description="Comparisons before it is judged, and then again at twice as many, and so on."
    )
    instructions: str | None = Field(
        None,
        min_length=1,
        max_length=8_192,
        description="The system message, as that of a judge of evaluations.",
    )


class GuardBody(Body):
    """Limits for the targets that the version before did not have; the alias is rolled back where one exceeds them."""

    max_error_rate: Annotated[_Number, Field(ge=0, lt=1)] | None = Field(
        None, description="Share of its requests that the engine failed."
    )
    max_p99_seconds: Annotated[_Number, Field(gt=0, le=1e6)] | None = Field(
        None, description="Seconds to the first byte of its answers, at the 99th percentile."
    )
    window_seconds: Annotated[_Number, Field(gt=0, le=604_800)] = Field(
        600.0, description="Seconds after the version was set; later requests are not counted."
    )
    min_requests: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = Field(
        20, description="Requests before it is judged. A percentile of fewer than 100 is the slowest of them."
    )

    judge: GuardJudgeBody | None = Field(
        None, description="Compares answers with those of the `shadow`, which the alias then needs."
    )

    @model_validator(mode="after")
    def _check_limits(self) -> Self:
        if self.max_error_rate is None and self.max_p99_seconds is None and self.judge is None:
            raise ValueError("give `max_error_rate`, `max_p99_seconds`, `judge`, or several of them")
        return self


class RequiredEvaluationBody(Body):
    """Evaluations of a model on the same rows with the same settings count, however many rows they have drawn."""

    data: Annotated[str, Field(min_length=1, max_length=64, description="The id of the file.")]
    sha256: Annotated[str, Field(min_length=64, max_length=64)] | None = Field(
        None, description="The hash of the file, as an alias has it: then the file may be gone."
    )
    metric: MetricName
    reading: FileReading | None = None
    extract: Extract = "whole"
    json_schema: Schema | None = Field(None, description="That of schema_valid.")
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0


class RequireBody(Body):
    """What a model must have shown before it becomes a target of the alias. The 95 % interval of the figure must be
    within the limits."""

    evaluation: RequiredEvaluationBody | None = Field(None, description="The figure that is looked at.")
    min: float | None = Field(None, allow_inf_nan=False, description="The smallest figure.")
    max: float | None = Field(
        None, allow_inf_nan=False, description="The largest figure, where less is better."
    )
    max_drop: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="By how much it may be worse than each present target, with which the evaluation compares it.",
    )
    no_forgetting: bool = Field(
        False, strict=True, description="It must be seen to have forgotten no more than the limits allow."
    )

    @model_validator(mode="after")
    def _check_limits(self) -> Self:
        limits = {"min": self.min, "max": self.max, "max_drop": self.max_drop}
        if self.evaluation is not None:
            Limit.model_validate({"metric": self.evaluation.metric, **limits})
            if self.evaluation.metric == "schema_valid" and self.evaluation.json_schema is None:
                raise ValueError("the metric schema_valid needs a `json_schema`")
        elif any(limit is not None for limit in limits.values()):
            raise ValueError("limits need an `evaluation`, whose figure they are of")
        elif not self.no_forgetting:
            raise ValueError("give an `evaluation` with limits, `no_forgetting`, or both")
        return self


class PutAlias(Body):
    """The whole new version of the alias: without `shadow` or `guard` it has none. What it requires stays unless
    `require` is given; null requires nothing any more."""

    targets: Annotated[list[TargetBody], Field(min_length=1, max_length=MOST_TARGETS)]
    shadow: ShadowBody | None = None
    guard: GuardBody | None = None
    require: RequireBody | None = Field(
        None, description="What new targets must have passed. Left out: as it is; null: nothing."
    )
    force: bool = Field(
        False,
        strict=True,
        description="Set targets that have not passed what the alias requires; the history records it.",
    )
    expected_version: Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)] | None = Field(
        None, description=f"{_EXPECTED}; 0: unless it does not exist."
    )
    wait: bool = Field(True, strict=True, description=_WAIT)

    @model_validator(mode="after")
    def _check_judge(self) -> Self:
        if self.guard is not None and self.guard.judge is not None and self.shadow is None:
            raise ValueError("`guard.judge` compares with the answers of a `shadow`: give one")
        return self

    def parts(self) -> tuple[tuple[AliasTarget, ...], AliasShadow | None, AliasGuard | None]:
        targets = tuple(AliasTarget(**target.model_dump()) for target in self.targets)
        shadow = AliasShadow(**self.shadow.model_dump()) if self.shadow else None
        return targets, shadow, AliasGuard(**self.guard.model_dump()) if self.guard else None


class RollbackAlias(Body):
    """The version to roll back to."""

    version: Version | None = Field(None, description="Default: the one before the current one.")
    expected_version: Version | None = Field(None, description=f"{_EXPECTED}.")
    wait: bool = Field(True, strict=True, description=_WAIT)


class TargetObject(Wire):
    model: str
    weight: float


class ShadowObject(Wire):
    model: str
    share: float


class GuardJudgeObject(Wire):
    model: str
    min_win_rate: float
    min_samples: int
    instructions: str | None


class GuardObject(Wire):
    max_error_rate: float | None
    max_p99_seconds: float | None
    window_seconds: float
    min_requests: int
    judge: GuardJudgeObject | None = None


class JudgedTargetObject(Wire):
    """What the judge of the guard has made of a target's answers so far."""

    model: str
    against: str = Field(description="The shadow.")
    verdict: Verdict = Field(
        description="pass or fail: its win rate was seen to be above or below `min_win_rate`."
    )
    wins: int
    ties: int
    losses: int
    win_rate: float | None = Field(description="A tie counts half.")
    low: float | None = Field(
        description="The lower end of its interval, of 97.5 % at the first look, of more at later ones: together they "
        "err in 5 %."
    )
    high: float | None


class RequiredEvaluationObject(Wire):
    data: str
    sha256: str
    metric: MetricName
    reading: FileReading | None
    extract: Extract
    json_schema: dict[str, Any] | None
    temperature: float


class RequireObject(Wire):
    evaluation: RequiredEvaluationObject | None
    min: float | None
    max: float | None
    max_drop: float | None
    no_forgetting: bool


class AliasObject(Wire):
    """A stable name for models."""

    id: str = Field(description="Its name, to be used as `model` in requests.")
    object: Literal["alias"] = "alias"
    version: int
    targets: list[TargetObject]
    shadow: ShadowObject | None
    guard: GuardObject | None
    require: RequireObject | None = Field(description="What new targets must have passed.")
    created_at: int
    updated_at: int = Field(description="When this version was set.")
    judged: list[JudgedTargetObject] | None = Field(
        None, description="Where the guard has a judge, and the alias is asked for alone: its new targets."
    )

    @classmethod
    def of(cls, alias: Alias, judged: list[JudgedTargetObject] | None = None) -> AliasObject:
        return cls(
            judged=judged,
            id=alias.name,
            version=alias.version,
            created_at=int(alias.created_at),
            updated_at=int(alias.updated_at),
            **_content(alias),
        )


class AliasVersionObject(Wire):
    """The state of an alias from one change to the next."""

    id: str = Field(description="The version, as `after` takes it.")
    object: Literal["alias.version"] = "alias.version"
    alias: str
    version: int
    targets: list[TargetObject] = Field(description="Empty where the alias was deleted.")
    shadow: ShadowObject | None
    guard: GuardObject | None
    require: RequireObject | None
    gate: Gate | None = Field(
        description="What was found of its new targets, where the alias required something."
    )
    created_at: int
    who: str | None = Field(
        description="The value of `X-Tunewright-User`; guard where the guard rolled it back."
    )
    why: str
    rolled_back_to: int | None = Field(description="The version that it repeats, where it is a rollback.")

    @classmethod
    def of(cls, version: AliasVersion) -> AliasVersionObject:
        return cls(
            id=str(version.version),
            alias=version.alias,
            version=version.version,
            created_at=int(version.at),
            who=version.who,
            why=version.why,
            rolled_back_to=version.rolled_back_to,
            gate=version.gate,
            **_content(version),
        )


class ShadowAnswerObject(Wire):
    """The answer of a shadow to the copy of a request."""

    id: str
    object: Literal["alias.shadow_answer"] = "alias.shadow_answer"
    alias: str
    model: str = Field(description="The shadow.")
    answered_by: str = Field(description="The model that answered the request itself.")
    path: str
    created_at: int
    seconds: float = Field(description="Until the whole answer was received.")
    status: int = Field(description="HTTP status.")
    request: Any = Field(description="The body, without `stream`; above 64 KiB, the beginning of its text.")
    answer: Any = Field(description="Cut like `request`; an error where the status is one.")
    model_config = ConfigDict(protected_namespaces=())

    @classmethod
    def of(cls, answer: ShadowAnswer) -> ShadowAnswerObject:
        return cls(
            id=answer.id,
            alias=answer.alias,
            model=answer.model,
            answered_by=answer.answered_by,
            path=answer.path,
            created_at=int(answer.at),
            seconds=answer.seconds,
            status=answer.status,
            request=answer.request,
            answer=answer.answer,
        )


def _content(of: Alias | AliasVersion) -> dict[str, Any]:
    return {
        "targets": [TargetObject(**asdict(target)) for target in of.targets],
        "shadow": ShadowObject(**asdict(of.shadow)) if of.shadow else None,
        "guard": GuardObject(**asdict(of.guard)) if of.guard else None,
        "require": _require(of.require) if of.require else None,
    }


def _require(of: AliasRequirement) -> RequireObject:
    values = asdict(of)
    if values["evaluation"] is not None:
        values["evaluation"]["reading"] = values["evaluation"]["reading"] or None
    return RequireObject.model_validate(values)
