"""Aliases, their versions, and the answers of their shadows."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from tunewright.registry.aliases import MOST_TARGETS, Alias, AliasGuard, AliasShadow, AliasTarget
from tunewright.store.records import AliasVersion, ShadowAnswer
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

    @model_validator(mode="after")
    def _check_limits(self) -> Self:
        if self.max_error_rate is None and self.max_p99_seconds is None:
            raise ValueError("give `max_error_rate`, `max_p99_seconds` or both")
        return self


class PutAlias(Body):
    """The whole new version of the alias: without `shadow` or `guard` it has none."""

    targets: Annotated[list[TargetBody], Field(min_length=1, max_length=MOST_TARGETS)]
    shadow: ShadowBody | None = None
    guard: GuardBody | None = None
    expected_version: Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)] | None = Field(
        None, description=f"{_EXPECTED}; 0: unless it does not exist."
    )
    wait: bool = Field(True, strict=True, description=_WAIT)

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


class GuardObject(Wire):
    max_error_rate: float | None
    max_p99_seconds: float | None
    window_seconds: float
    min_requests: int


class AliasObject(Wire):
    """A stable name for models."""

    id: str = Field(description="Its name, to be used as `model` in requests.")
    object: Literal["alias"] = "alias"
    version: int
    targets: list[TargetObject]
    shadow: ShadowObject | None
    guard: GuardObject | None
    created_at: int
    updated_at: int = Field(description="When this version was set.")

    @classmethod
    def of(cls, alias: Alias) -> AliasObject:
        return cls(
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
    }
