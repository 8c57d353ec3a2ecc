"""Requests and answers of OpenAI's routes for graders."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from tunewright.graders.json_values import check_json
from tunewright.graders.models import AnyGrader, Grader
from tunewright.graders.outcome import GraderErrors, Outcome
from tunewright.wire import Body, Wire

LONGEST_SAMPLE = 262_144
_MOST_ITEM = 1_048_576


class RunGrader(Body):
    """An answer of a model, and the grader that scores it."""

    grader: Grader
    model_sample: str = Field(
        max_length=LONGEST_SAMPLE,
        description="The answer: `sample.output_text`, and `sample.output_json` where it is JSON.",
    )
    item: dict[str, Any] | None = Field(None, description="The row: `item` in the grader's texts.")

    @field_validator("item")
    @classmethod
    def _check_item(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        check_json(value, _MOST_ITEM)
        return value


class ValidateGrader(Body):
    grader: Grader


class ValidatedGrader(Wire):
    """OpenAI's answer for a grader without faults: the grader."""

    grader: Grader


class GraderRunMetadata(Wire):
    """How it went."""

    name: str
    type: str
    errors: GraderErrors = Field(description="OpenAI's flags. Where one is set, the reward is 0.")
    execution_time: float = Field(description="Seconds.")
    scores: dict[str, float] = Field(description="The reward of each grader, by its name.")
    token_usage: int | None = Field(description="Tokens that models which grade have read and written.")
    sampled_model_name: str | None


class GraderRun(Wire):
    """The reward of an answer."""

    reward: float
    sub_rewards: dict[str, float] = Field(description="Of a multi grader: the reward of each, by its name.")
    metadata: GraderRunMetadata
    model_grader_token_usage_per_model: dict[str, int]

    @classmethod
    def of(cls, grader: AnyGrader, outcome: Outcome, seconds: float) -> GraderRun:
        models = list(outcome.tokens)
        return cls(
            reward=outcome.reward,
            sub_rewards=dict(outcome.sub_rewards),
            metadata=GraderRunMetadata(
                name=grader.name,
                type=grader.type,
                errors=outcome.errors,
                execution_time=seconds,
                scores=dict(outcome.sub_rewards) or {grader.name: outcome.reward},
                token_usage=sum(outcome.tokens.values()) if models else None,
                sampled_model_name=models[0] if len(models) == 1 else None,
            ),
            model_grader_token_usage_per_model=dict(outcome.tokens),
        )
