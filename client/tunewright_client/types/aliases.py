"""Aliases, as the server sends them. Times are Unix seconds."""

from typing import Any

from pydantic import Field

from .base import Wire


class AliasTarget(Wire):
    """A model that answers for an alias; its share of the requests is its weight over the sum of weights."""

    model: str
    weight: float = 1.0


class AliasShadow(Wire):
    """A model that gets copies of a share of the requests; its answers are recorded and sent to nobody."""

    model: str
    share: float = 1.0


class AliasGuard(Wire):
    """When a new target is taken to be bad, so that the alias is rolled back by itself.

    `max_error_rate` is of its requests, from 0 to 1; `max_p99_seconds` of the time to the first byte.
    `window_seconds` after the version was put the guard looks no more; `min_requests` it must have had.
    """

    max_error_rate: float | None = None
    max_p99_seconds: float | None = None
    window_seconds: float | None = None
    min_requests: int | None = None


class Alias(Wire):
    """A stable name for models. `id` is the name, `updated_at` when this version was put."""

    id: str
    object: str = "alias"
    version: int = 0
    targets: list[AliasTarget] = Field(default_factory=list)
    shadow: AliasShadow | None = None
    guard: AliasGuard | None = None
    created_at: int = 0
    updated_at: int = 0


class AliasVersion(Wire):
    """What an alias was from one change to the next; without targets where it was deleted.

    `who` is what was given as `user`, or "guard"; `rolled_back_to` the version that a rollback repeats.
    """

    id: str
    object: str = "alias.version"
    alias: str = ""
    version: int = 0
    targets: list[AliasTarget] = Field(default_factory=list)
    shadow: AliasShadow | None = None
    guard: AliasGuard | None = None
    created_at: int = 0
    who: str | None = None
    why: str = ""
    rolled_back_to: int | None = None


class ShadowAnswer(Wire):
    """What a shadow (`model`) answered to the copy of a request that `answered_by` answered.

    `request` and `answer` are JSON; where they are longer than 64 KiB, the beginning of their text.
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
