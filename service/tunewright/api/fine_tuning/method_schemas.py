"""OpenAI's `method` of a job, further ones in its form, and the hyperparameters of each."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from tunewright.errors import InvalidRequest, UnsupportedFeature
from tunewright.graders.models import AnyGrader, Grader
from tunewright.plan.methods import METHODS, MethodName
from tunewright.plan.options import HyperparameterOptions
from tunewright.wire import Body

Auto = Literal["auto"]


class Hyperparameters(Body):
    """OpenAI's hyperparameters. `auto`: Tunewright's defaults for `tuning.type`."""

    n_epochs: Auto | Annotated[int, Field(strict=True, ge=1, le=1000)] = "auto"
    batch_size: Auto | Annotated[int, Field(strict=True, ge=1, le=4096)] = Field(
        "auto", description="Rows per optimizer step."
    )
    learning_rate_multiplier: Auto | Annotated[float, Field(strict=True, gt=0, le=1e4)] = Field(
        "auto", description="Factor of the default learning rate of `tuning.type`."
    )


class DpoHyperparameters(Hyperparameters):
    """OpenAI's hyperparameters of `dpo`."""

    beta: Auto | Annotated[float, Field(strict=True, gt=0, le=100)] = Field(
        "auto",
        description="How strongly the model is kept near the reference, which is the model before the job; 0.1 by "
        "default.",
    )


class ReinforcementHyperparameters(Hyperparameters):
    """OpenAI's hyperparameters of `reinforcement`, and `beta`, which OpenAI does not have."""

    batch_size: Auto | Annotated[int, Field(strict=True, ge=1, le=4096)] = Field(
        "auto", description="Prompts per optimizer step; 8 by default, of fewer rows fewer."
    )
    compute_multiplier: Auto | Annotated[float, Field(strict=True, gt=0, le=32)] = Field(
        "auto",
        description="Factor of the 8 answers to each prompt, unless `tuning.num_generations` says how many.",
    )
    eval_interval: Auto | Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = Field(
        "auto",
        description="Steps between evaluations on the validation file; at the end of each epoch by default.",
    )
    eval_samples: Auto | Annotated[int, Field(strict=True, ge=1, le=64)] = Field(
        "auto", description="Answers to each row of the validation file in an evaluation; 1 by default."
    )
    reasoning_effort: Literal["default"] | None = Field(
        None, description="Only `default`: how models here think is in their chat templates."
    )
    beta: Auto | Annotated[float, Field(strict=True, ge=0, le=100)] = Field(
        "auto",
        description="How strongly the model is kept near what it was before the job (the weight of the KL divergence); "
        "0 by default, without a reference.",
    )


class KtoHyperparameters(DpoHyperparameters):
    """The hyperparameters of `kto`, which OpenAI does not have: those of `dpo`."""


class OrpoHyperparameters(Hyperparameters):
    """The hyperparameters of `orpo`, which OpenAI does not have."""

    beta: Auto | Annotated[float, Field(strict=True, gt=0, le=100)] = Field(
        "auto",
        description="The weight of the odds of the two answers beside the loss of the better one; 0.1 by default.",
    )


class Supervised(Body):
    hyperparameters: Hyperparameters = Hyperparameters()


class Dpo(Body):
    hyperparameters: DpoHyperparameters = DpoHyperparameters()


class Reinforcement(Body):
    """The grader, and the hyperparameters."""

    grader: Grader
    hyperparameters: ReinforcementHyperparameters = ReinforcementHyperparameters()
    response_format: None = Field(
        None, description="Not offered: answers are not forced into a form in training."
    )

    @field_validator("response_format", mode="before")
    @classmethod
    def _refuse_formats(cls, value: object) -> object:
        if value is not None:
            raise UnsupportedFeature(
                "Answers are not forced into a form in training: leave `response_format` out, and let a grader "
                "(json_schema) reward it.",
                param="method.reinforcement.response_format",
            )
        return value


class Reward(Body):
    """OpenAI does not have it."""

    hyperparameters: Hyperparameters = Hyperparameters()


class Kto(Body):
    hyperparameters: KtoHyperparameters = KtoHyperparameters()


class Orpo(Body):
    hyperparameters: OrpoHyperparameters = OrpoHyperparameters()


_OFFERED = tuple(METHODS)


class Method(Body):
    """OpenAI's method: `supervised`, `dpo` (direct preference optimization, on pairs of answers), or `reinforcement`
    (GRPO, on prompts whose answers are graded). In the form of `dpo` there are `kto` (Kahneman-Tversky optimization, on
    answers that are good or bad), `reward` (on pairs of answers: a model that gives answers a score) and, experimental,
    `orpo` (odds ratio preference optimization, on pairs of answers), which OpenAI does not have."""

    type: MethodName = "supervised"
    supervised: Supervised | None = None
    dpo: Dpo | None = None
    kto: Kto | None = None
    orpo: Orpo | None = None
    reward: Reward | None = None
    reinforcement: Reinforcement | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_others(cls, value: object) -> object:
        """A null, as the openai client's models are dumped with, is taken as absent."""
        if not isinstance(value, dict):
            return value
        type = value.get("type", "supervised")
        if type == "reinforcement" and value.get("reinforcement") is None:
            raise InvalidRequest(
                "The method reinforcement needs a grader: set `method.reinforcement.grader`.",
                param="method.reinforcement.grader",
                code="missing_parameter",
            )
        for name in _OFFERED:
            if value.get(name) is None or name == type:
                continue
            raise InvalidRequest(
                f"`method.{name}` is for the type {name}: set `method.type` to {name}, or leave `method.{name}` out.",
                param=f"method.{name}",
            )
        return value

    @classmethod
    def of(
        cls, type: MethodName, hyperparameters: HyperparameterOptions, grader: AnyGrader | None = None
    ) -> Method:
        """OpenAI's form of a method with these hyperparameters."""
        shown: dict[str, object] = {"hyperparameters": hyperparameters.of_method(type)}
        return cls.model_validate({"type": type, type: shown | ({"grader": grader} if grader else {})})

    @property
    def hyperparameters(self) -> Hyperparameters:
        chosen: Supervised | Dpo | Kto | Orpo | Reward | Reinforcement | None = getattr(self, self.type)
        return Hyperparameters() if chosen is None else chosen.hyperparameters
