"""OpenAI's `method` of a job, and the hyperparameters of each."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tunewright.errors import InvalidRequest, UnsupportedFeature
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


class Supervised(Body):
    hyperparameters: Hyperparameters = Hyperparameters()


class Dpo(Body):
    hyperparameters: DpoHyperparameters = DpoHyperparameters()


_OFFERED = tuple(METHODS)
_OTHER_METHODS = ("reinforcement",)
"""OpenAI's."""


class Method(Body):
    """OpenAI's method: `supervised`, or `dpo` (direct preference optimization, on pairs of answers)."""

    type: MethodName = "supervised"
    supervised: Supervised | None = None
    dpo: Dpo | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_others(cls, value: object) -> object:
        """A null, as the openai client's models are dumped with, is taken as absent."""
        if not isinstance(value, dict):
            return value
        if value.get("type") in _OTHER_METHODS:
            raise UnsupportedFeature(
                f"The method {value['type']} is not offered; {' and '.join(_OFFERED)} are.",
                param="method.type",
            )
        type = value.get("type", "supervised")
        for name in (*_OFFERED, *_OTHER_METHODS):
            if value.get(name) is None or name == type:
                continue
            if name in _OTHER_METHODS:
                raise UnsupportedFeature(
                    f"The method {name} is not offered; leave `method.{name}` out.", param=f"method.{name}"
                )
            raise InvalidRequest(
                f"`method.{name}` is for the type {name}: set `method.type` to {name}, or leave `method.{name}` out.",
                param=f"method.{name}",
            )
        return {key: part for key, part in value.items() if key not in _OTHER_METHODS}

    @classmethod
    def of(cls, type: MethodName, hyperparameters: HyperparameterOptions) -> Method:
        """OpenAI's form of a method with these hyperparameters."""
        return cls.model_validate({"type": type, type: {"hyperparameters": hyperparameters.of_method(type)}})

    @property
    def hyperparameters(self) -> Hyperparameters:
        chosen = self.dpo if self.type == "dpo" else self.supervised
        return Hyperparameters() if chosen is None else chosen.hyperparameters
