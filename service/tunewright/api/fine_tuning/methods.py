"""What a method asks of the options beside it, for jobs and plans."""

from __future__ import annotations

from typing import Protocol

from tunewright.api.fine_tuning.method_schemas import Hyperparameters, Method
from tunewright.api.fine_tuning.schemas import Tuning
from tunewright.errors import InvalidRequest
from tunewright.plan.methods import LABEL_SMOOTHING, LOSS_TYPE
from tunewright.plan.options import OF_DPO


def check_method(method: Method, tuning: Tuning) -> None:
    """Raises InvalidRequest for an option of `tuning` that the method does not have, or would ignore."""
    given = [name for name in OF_DPO if getattr(tuning, name) != "auto"]
    if method.type != "dpo":
        if given:
            raise InvalidRequest(
                f"tuning.{given[0]} is for the method dpo; the method is {method.type}.",
                param=f"tuning.{given[0]}",
            )
        return
    loss = LOSS_TYPE if tuning.loss_type == "auto" else tuning.loss_type
    if "label_smoothing" in given and loss not in LABEL_SMOOTHING:
        raise InvalidRequest(
            f"tuning.label_smoothing is for the losses {' and '.join(LABEL_SMOOTHING)}; {loss} has none. Set "
            "tuning.loss_type to one of them, or leave it out.",
            param="tuning.label_smoothing",
        )
    if tuning.dropout not in ("auto", 0):
        raise InvalidRequest(
            "dpo trains without dropout, which would make the model differ from its reference at random: leave "
            "tuning.dropout out.",
            param="tuning.dropout",
        )


def without_dropout(method: Method, tuning: Tuning) -> Tuning:
    """With dpo, the options without the dropout that a model from which training continues had."""
    if method.type != "dpo" or tuning.dropout == "auto":
        return tuning
    return tuning.model_copy(update={"dropout": 0.0})


class _WithMethod(Protocol):
    """A request that has both places."""

    @property
    def method(self) -> Method | None: ...

    @property
    def hyperparameters(self) -> Hyperparameters | None: ...


def batch_size_of(body: _WithMethod, tuning: Tuning) -> int | str:
    """The one that is asked for; "auto" where it is left to the service."""
    asked = tuning.batch_size
    return asked if asked != "auto" else hyperparameters_of(body).batch_size


def hyperparameters_of(body: _WithMethod) -> Hyperparameters:
    """OpenAI moved the hyperparameters into `method`; both places are read, and the new one takes precedence.
    Raises InvalidRequest where they disagree."""
    older = body.hyperparameters
    if body.method is None:
        return older or Hyperparameters()
    newer = body.method.hyperparameters
    if older is None:
        return newer
    old, new = older.model_dump(exclude_unset=True), newer.model_dump(exclude_unset=True)
    if {**old, **new} != {**new, **old}:
        raise InvalidRequest(
            f"`hyperparameters` and `method.{body.method.type}.hyperparameters` disagree; give only the latter.",
            param="hyperparameters",
        )
    return type(newer)(**(old | new))
