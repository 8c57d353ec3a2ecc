"""Checks what a job asks of its evaluations, before the job is queued."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from tunewright.api.evaluations.creation import Measured, measured
from tunewright.api.evaluations.schemas import CreateEvaluation, SuiteBody
from tunewright.api.fine_tuning.evaluate_schemas import Evaluate
from tunewright.api.fine_tuning.tuning_schemas import Tuning
from tunewright.api.http.context import ServiceContext
from tunewright.errors import InvalidRequest, TunewrightError, UnsupportedFeature
from tunewright.evaluator.suites import SUITES
from tunewright.kinds.fine_tuning.evaluated import (
    EVALUATED_FILE,
    JUDGE,
    OF_DATA,
    EvaluateRequest,
    Measure,
)
from tunewright.rows.faults import InvalidData
from tunewright.store.records import JobInput

_OF_DATA = ("data", "metrics", "extract", "reading", "json_schema", "grader", "judge", "require")
_OF_ALL = ("rows", "temperature", "max_tokens", "seed")


def evaluate_request(
    context: ServiceContext, body: Evaluate | None, base: str, tuning: Tuning
) -> tuple[EvaluateRequest | None, list[JobInput]]:
    """The evaluations that a job asks for, and the inputs that they need. `tuning`: with the type that it gets. Raises
    InvalidRequest, NotFound and EngineUnavailable."""
    if body is None:
        return None, []
    if tuning.type == "full" or tuning.use_dora:
        what = "A model that is trained as a whole" if tuning.type == "full" else "An adapter with use_dora"
        raise UnsupportedFeature(
            f"{what} is not served before it is deployed or merged: evaluate it then, with POST /v1/evaluations.",
            param="evaluate",
        )
    measures, inputs = [], []
    if body.data is not None:
        asked = body.model_dump(include={*_OF_DATA, *_OF_ALL}, exclude_unset=True)
        found = _measured(context, base, asked, lambda param: param)
        assert found.file is not None, "it has a file"
        measures.append(Measure(name=OF_DATA, request=found.request, sha256=found.file.sha256))
        inputs.append(JobInput(EVALUATED_FILE, file_id=found.file.id))
        if found.judge is not None:
            inputs.append(JobInput(JUDGE, sha256=found.judge.sha256))
    else:
        _refuse_of_data(body)
    for number, suite in enumerate(body.suites or ()):
        measures.append(_suite(context, body, base, suite, number))
    request = EvaluateRequest(
        asked=body.model_dump(mode="json", exclude_unset=True),
        at=body.points(),
        select=body.select,
        metric=body.metric,
        seed=body.seed,
        measures=measures,
    )
    return request, inputs


def _refuse_of_data(body: Evaluate) -> None:
    for name in _OF_DATA[1:]:
        if name in body.model_fields_set and getattr(body, name) is not None:
            raise InvalidRequest(f"`{name}` is of `data`: a suite has its own.", param=f"evaluate.{name}")


def _suite(context: ServiceContext, body: Evaluate, base: str, suite: SuiteBody, number: int) -> Measure:
    asked = body.model_dump(include=set(_OF_ALL), exclude_unset=True) | {"suite": suite.model_dump()}
    at = f"suites.{number}"
    found = _measured(context, base, asked, lambda param: param.replace("suite", at, 1))
    assert context.settings.jobs.eval_data is not None, "it was checked"
    try:
        sha256 = SUITES[suite.name].sha256(context.settings.jobs.eval_data)
    except (InvalidData, OSError) as error:
        raise InvalidRequest(f"{suite.name} cannot be asked: {error}.", param=f"evaluate.{at}") from error
    return Measure(name=suite.name, request=found.request, sha256=sha256)


def _measured(
    context: ServiceContext, base: str, asked: dict[str, Any], place: Callable[[str], str]
) -> Measured:
    """`place` makes the parameter of `evaluate` from that of an evaluation."""
    try:
        return measured(context, CreateEvaluation(model=base, against=[base], **asked))
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"]))
        raise InvalidRequest(f"{at}: {first['msg']}.", param=f"evaluate.{place(at)}") from error
    except TunewrightError as error:
        error.param = f"evaluate.{place(error.param)}" if error.param else "evaluate"
        raise
