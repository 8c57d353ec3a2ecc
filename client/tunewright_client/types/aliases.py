"""Aliases. Times are Unix seconds."""

from typing import Any

from pydantic import Field

from .base import Wire
from .verdicts import AliasGate, AliasRequirement


class AliasTarget(Wire):
    """A model that answers requests to an alias. Its share of them is its weight divided by the sum of all weights."""

    model: str
    weight: float = 1.0


class AliasShadow(Wire):
    """A model that gets copies of a share of the requests. Its answers are only recorded."""

    model: str
    share: float = 1.0


class AliasJudge(Wire):
    """A model that compares answers of new targets with those of the shadow.

    - min_win_rate: the smallest share of comparisons that a target may win, a tie counting half
    - min_samples: comparisons before it is judged, and then again at twice as many, and so on
    """

    model: str
    min_win_rate: float
    min_samples: int | None = None
    instructions: str | None = None


class JudgedTarget(Wire):
    """What the judge of a guard has made of a target so far; verdict is pass, fail or not_enough_data."""

    model: str
    against: str = ""
    verdict: str = ""
    wins: int = 0
    ties: int = 0
    losses: int = 0
    win_rate: float | None = None
    low: float | None = None
    high: float | None = None


class AliasGuard(Wire):
    """The limits past which an alias is rolled back automatically after a new version was set.

    - max_error_rate: the largest share of failed requests, 0 to 1
    - max_p99_seconds: the largest 99th percentile of the time to the first byte
    - window_seconds: how long the guard watches a new version
    - min_requests: how many requests the version must have had before the guard judges it
    - judge: compares the answers of new targets with those of the shadow
    """

    max_error_rate: float | None = None
    max_p99_seconds: float | None = None
    window_seconds: float | None = None
    min_requests: int | None = None
    judge: AliasJudge | None = None


class Alias(Wire):
    """A stable name for models. `id` is the name; `updated_at` is when this version was set; `judged` has, of one that
    was retrieved, what the judge of its guard has made of its new targets."""

    id: str
    object: str = "alias"
    version: int = 0
    targets: list[AliasTarget] = Field(default_factory=list[AliasTarget])
    shadow: AliasShadow | None = None
    guard: AliasGuard | None = None
    require: AliasRequirement | None = None
    created_at: int = 0
    updated_at: int = 0
    judged: list[JudgedTarget] | None = None


class AliasVersion(Wire):
    """One version of an alias. A version without targets records a deletion.

    `who` is the `user` of the change, or "guard"; `rolled_back_to` is the version that a rollback repeats; `gate` has
    what was found of new targets, where the alias required something.
    """

    id: str
    object: str = "alias.version"
    alias: str = ""
    version: int = 0
    targets: list[AliasTarget] = Field(default_factory=list[AliasTarget])
    shadow: AliasShadow | None = None
    guard: AliasGuard | None = None
    require: AliasRequirement | None = None
    gate: AliasGate | None = None
    created_at: int = 0
    who: str | None = None
    why: str = ""
    rolled_back_to: int | None = None


class ShadowAnswer(Wire):
    """The answer of a shadow (`model`) to the copy of a request, whose original `answered_by` answered.

    `request` and `answer` are JSON, or the first 64 KiB of their text where they are longer.
    """

    id: str
    object: str = "alias.shadow_answer"
    alias: str = ""
    model: str = ""
    answered_by: str = ""
    path: str = ""
    created_at: int = 0
    seconds: float = 0.0
    status: int = 0
    request: Any = None
    answer: Any = None
