"""Jobs that follow another one in one request, each from the model of the one before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tunewright.api.fine_tuning.schemas import CreateJob, FollowingStep
from tunewright.errors import InvalidRequest
from tunewright.kinds.fine_tuning.models import PARENT, FineTuningRequest
from tunewright.plan.methods import METHODS
from tunewright.store.records import NewJob

_FIXED = ("rank", "alpha", "dropout", "target_modules", "use_rslora", "use_dora", "init")
"""Options that the adapter of the first step decides."""


def with_steps(body: CreateJob, first: NewJob, checked: Callable[[CreateJob], NewJob]) -> NewJob:
    """The job with those that follow it. Raises what `checked` raises of a step, whose `param` then names the step."""
    request = first.request
    assert isinstance(request, FineTuningRequest)
    followers = []
    before = request.method
    for number, step in enumerate(body.steps or ()):
        try:
            if METHODS[before].scores:
                raise InvalidRequest(
                    f"no step goes on from the model of the method {before}: make it the last.",
                    param="method",
                )
            before = step.method.type if step.method else "supervised"
            if METHODS[before].scores and request.tuning.type != "full":
                raise InvalidRequest(
                    f"the method {before} begins with a base or a whole model, and the step before makes an adapter: "
                    "use tuning.type full, or a job of its own.",
                    param="method",
                )
            followers.append(_following(body, step, request, checked))
        except InvalidRequest as error:
            error.param = f"steps.{number}.{error.param}" if error.param else f"steps.{number}"
            raise
    return replace(first, then=tuple(followers))


def _following(
    body: CreateJob, step: FollowingStep, first: FineTuningRequest, checked: Callable[[CreateJob], NewJob]
) -> NewJob:
    type, tuning = first.tuning.type, step.tuning
    if tuning is not None:
        if tuning.type not in ("auto", type) and "full" in (tuning.type, type):
            raise InvalidRequest(
                f"a step goes on from the model of the one before, which is of type {type}: leave tuning.type out.",
                param="tuning.type",
            )
        given = [
            name for name in _FIXED if name in tuning.model_fields_set and getattr(tuning, name) != "auto"
        ]
        if given and type != "full":
            raise InvalidRequest(
                f"a step goes on from the adapter of the one before: set tuning.{given[0]} for the first one.",
                param=f"tuning.{given[0]}",
            )
    asked = {name: getattr(step, name) for name in step.model_fields_set if name != "tuning"}
    options = {} if tuning is None else tuning.model_dump(exclude_unset=True)
    options["type"] = type if options.get("type", "auto") == "auto" else options["type"]
    shared = {"chat_template": body.chat_template, "seed": body.seed, "metadata": body.metadata}
    made = checked(CreateJob.model_validate({"model": body.model, **shared, **asked, "tuning": options}))
    return replace(made, inputs=tuple(one for one in made.inputs if one.role != PARENT))
