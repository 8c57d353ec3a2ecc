"""What a grader makes of an answer: the reward, and OpenAI's flags of what went wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict

_LONGEST_DETAILS = 2000


class GraderErrors(BaseModel):
    """OpenAI's flags. Where one of them is set, the reward is 0."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    formula_parse_error: bool = False
    sample_parse_error: bool = False
    truncated_observation_error: bool = False
    unresponsive_reward_error: bool = False
    invalid_variable_error: bool = False
    other_error: bool = False
    other_error_details: str | None = None
    """Tunewright's own: what the flags before it do not say."""
    python_grader_server_error: bool = False
    python_grader_server_error_type: str | None = None
    python_grader_runtime_error: bool = False
    python_grader_runtime_error_details: str | None = None
    model_grader_server_error: bool = False
    model_grader_refusal_error: bool = False
    model_grader_parse_error: bool = False
    model_grader_server_error_details: str | None = None

    @property
    def names(self) -> list[str]:
        """The flags that are set."""
        return [name for name, value in self if value is True]

    @property
    def is_of_the_grader(self) -> bool:
        """Whether the grader failed, whatever the answer was."""
        return any(name not in ("sample_parse_error", "truncated_observation_error") for name in self.names)

    def describe(self) -> str:
        details = [value for _, value in self if isinstance(value, str)]
        return "; ".join([", ".join(self.names), *details])


@dataclass(frozen=True)
class Outcome:
    """The reward of an answer, and of each grader of a `multi`."""

    reward: float
    errors: GraderErrors = field(default_factory=GraderErrors)
    sub_rewards: Mapping[str, float] = field(default_factory=dict)
    tokens: Mapping[str, int] = field(default_factory=dict)
    """Tokens that models which grade have read and written, by model."""


def failed(flag: str, details: str | None = None, *, of: str | None = None) -> Outcome:
    """An outcome with a flag set; `of`: the field of the details, by default the flag's own."""
    values: dict[str, Any] = {flag: True}
    name = of or f"{flag}_details"
    if details is not None:
        values[name if name in GraderErrors.model_fields else "other_error_details"] = _sendable(details)
    return Outcome(0.0, GraderErrors(**values))


def _sendable(details: str) -> str:
    """The beginning of what a stranger's program or a library says, without what no answer can carry."""
    return details[:_LONGEST_DETAILS].encode("utf-8", "replace").decode()


def merged(errors: Iterable[GraderErrors]) -> GraderErrors:
    """All flags that are set in any of them, with the first details of each."""
    values: dict[str, Any] = {}
    for one in errors:
        values = {**one.model_dump(exclude_defaults=True), **values}
    return GraderErrors(**values)
