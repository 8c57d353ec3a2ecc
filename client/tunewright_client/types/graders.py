"""What graders answer."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from .base import Wire


class GraderRunMetadata(Wire):
    """How it went. `errors` has OpenAI's flags; where one is set, the reward is 0."""

    name: str
    type: str
    errors: dict[str, Any] = Field(default_factory=dict)
    execution_time: float | None = None
    scores: dict[str, float] = Field(default_factory=dict)
    token_usage: int | None = None
    sampled_model_name: str | None = None

    @property
    def failures(self) -> list[str]:
        """The names of the flags that are set, and the details that come with them."""
        return [name if value is True else str(value) for name, value in self.errors.items() if value]


class GraderRun(Wire):
    """The reward of an answer, and of each grader of a multi grader."""

    reward: float
    sub_rewards: dict[str, float] = Field(default_factory=dict)
    metadata: GraderRunMetadata
    model_grader_token_usage_per_model: dict[str, int] = Field(default_factory=dict)
