"""Creates evaluations from requests. A request that cannot succeed is refused here, before the evaluation is queued.

Names are looked up once, here: what an alias points to now is evaluated, whatever it points to later.
"""

from __future__ import annotations

from dataclasses import dataclass

from tunewright.apart import CutOff, OutOfMemory, call_apart
from tunewright.api.evaluations.schemas import CreateEvaluation, LoadBody
from tunewright.api.evaluations.suites import check_suite
from tunewright.api.gateway.routing import not_deployed, refuse_unservable
from tunewright.api.http.context import ServiceContext
from tunewright.api.jobs.creation import check_data_file, create_once
from tunewright.errors import EngineUnavailable, InvalidRequest, NotFound, UnsupportedFeature, quoted
from tunewright.evaluator.grading import ITEM
from tunewright.graders.calling import check_grader
from tunewright.graders.models import ScoreModelGrader, item_references, singles
from tunewright.jobs.kinds import NO_BASE
from tunewright.kinds import EVALUATION
from tunewright.kinds.data import DataOptions
from tunewright.kinds.evaluation.kind import USABLE, why_no_answers
from tunewright.kinds.evaluation.models import (
    DATA_FILE,
    WEIGHTS,
    EvaluatedModel,
    EvaluationRequest,
    JudgeRequest,
    LoadRequest,
    SuiteRequest,
)
from tunewright.metrics.names import OF_PROGRAMS, MetricName
from tunewright.metrics.structured import fault_of
from tunewright.rows.canonical import RowKind
from tunewright.store.records import Engine, EngineInfo, FileRecord, Job, JobInput, NewJob, TunedModel
from tunewright.store.states import ModelKind

_SCHEMA_SECONDS = 5
"""Processor time of the check of a schema."""


def create_evaluation(context: ServiceContext, body: CreateEvaluation, idempotency_key: str | None) -> Job:
    """Create an evaluation, or return the one that the same key created before.

    Raises InvalidRequest, NotFound, EngineUnavailable and TooManyRequests.
    """
    return create_once(context, body, idempotency_key, lambda: _checked(context, body))


@dataclass(frozen=True)
class Measured:
    """What an evaluation measures, of whatever models."""

    request: EvaluationRequest
    """Without models."""
    file: FileRecord | None
    """The rows; None where a suite has the questions, and where latency is measured."""
    judge: TunedModel | None
    """The row of a judge that was made or registered here."""


def measured(context: ServiceContext, body: CreateEvaluation) -> Measured:
    """What a request measures. Its models are not looked up. Raises InvalidRequest, NotFound and EngineUnavailable."""
    _check_metrics(body)
    _check_grader(context, body)
    judge, judge_weights = _judge(context, body)
    file = _checked_file(context, body)
    request = EvaluationRequest(
        models=[],
        filename=file.filename if file else "",
        sha256=file.sha256 if file else "",
        suite=SuiteRequest(**body.suite.model_dump()) if body.suite else None,
        load=_load(body),
        reading=_reading(body),
        metrics=_metrics(body),
        extract=body.extract,
        json_schema=body.json_schema,
        grader=body.grader,
        judge=judge,
        require=body.require,
        rows=body.rows,
        temperature=body.temperature,
        max_tokens=body.max_tokens,
    )
    return Measured(request, file, judge_weights)


def _checked(context: ServiceContext, body: CreateEvaluation) -> NewJob:
    found = [resolved_model(context, body.model, "model")]
    for number, name in enumerate(body.against):
        param = f"against.{number}"
        model, weights = resolved_model(context, name, param)
        if any(model.name == other.name for other, _ in found):
            raise InvalidRequest(f"{model.name} is named twice: there is nothing to compare.", param=param)
        found.append((model, weights))
    if body.suite is not None and not body.against:
        found += _base_of(context, found[0][1])
    what = measured(context, body)
    return NewJob(
        kind=EVALUATION.name,
        base=NO_BASE,
        request=what.request.model_copy(update={"models": [model for model, _ in found]}),
        seed=body.seed,
        inputs=(
            *((JobInput(DATA_FILE, file_id=what.file.id),) if what.file else ()),
            *(
                JobInput(WEIGHTS, sha256=weights.sha256)
                for weights in (*(weights for _, weights in found), what.judge)
                if weights is not None
            ),
        ),
        metadata=body.metadata,
    )


def _check_grader(context: ServiceContext, body: CreateEvaluation) -> None:
    if body.grader is None:
        if "grader" in body.metrics:
            raise InvalidRequest(
                "The metric grader needs a `grader`.", param="grader", code="missing_parameter"
            )
        return
    for one in singles(body.grader).values():
        if isinstance(one, ScoreModelGrader):
            raise UnsupportedFeature(
                f"The grader {one.name!r} asks a model: let a `judge` compare the answers.", param="grader"
            )
    for reference in item_references(body.grader):
        if reference.keys[0] not in ITEM or len(reference.keys) > 1:
            raise InvalidRequest(
                f"The grader refers to {reference}: of a row there are item.asked and item.expected.",
                param="grader",
                code="invalid_grader",
            )
    check_grader(body.grader, "grader", context.settings.jobs.python_graders)


def _judge(context: ServiceContext, body: CreateEvaluation) -> tuple[JudgeRequest | None, TunedModel | None]:
    """The judge, and its row where it was made or registered here."""
    if (body.judge is None) and "judge" in body.metrics:
        raise InvalidRequest("The metric judge needs a `judge`.", param="judge", code="missing_parameter")
    if body.judge is None:
        return None, None
    if not body.against:
        raise InvalidRequest(
            "A judge compares with other models: name them in `against`.",
            param="against",
            code="missing_parameter",
        )
    how = body.judge.model_dump(exclude={"model", "external"})
    if body.judge.model is None:
        options = context.settings.server
        if options.judge_url is None or options.judge_model is None:
            raise InvalidRequest(
                "The operator of this service allows no judge elsewhere (--judge-url, --judge-model): name a `model` "
                "that is served here.",
                param="judge.external",
                code="unsupported",
            )
        return JudgeRequest(**how), None
    model, weights = resolved_model(context, body.judge.model, "judge.model")
    return JudgeRequest(model=model, **how), weights


def _checked_file(context: ServiceContext, body: CreateEvaluation) -> FileRecord | None:
    """The file of the rows; None where a suite has the questions, and where latency is measured. Raises
    InvalidRequest."""
    if "latency" in body.metrics:
        _check_load(body)
        return None
    if body.load is not None:
        raise InvalidRequest("`load` is of the metric latency.", param="load")
    if (body.data is None) == (body.suite is None):
        raise InvalidRequest("Give either `data` or `suite`.", param="data", code="missing_parameter")
    if body.suite is not None:
        check_suite(context.settings, body, body.suite)
    if body.data is None:
        return None
    if named := OF_PROGRAMS & set(body.metrics):
        raise InvalidRequest(
            f"{min(named)} is measured by the tests of a suite: give `suite` humaneval in the place of `data`.",
            param="metrics",
        )
    file, report = check_data_file(context, "data", body.data, _reading(body), code="invalid_data")
    if report is not None and report["kind"] is not None and RowKind(report["kind"]) not in USABLE:
        why = why_no_answers(report["format"], report["kind"])
        raise InvalidRequest(f"File {file.id} cannot be used: {why}.", param="data", code="invalid_data")
    return file


def _check_load(body: CreateEvaluation) -> None:
    if len(body.metrics) > 1:
        raise InvalidRequest("The metric latency is measured alone.", param="metrics")
    for name in (
        "data",
        "suite",
        "reading",
        "json_schema",
        "grader",
        "judge",
        "require",
        "rows",
        "max_tokens",
    ):
        if getattr(body, name) is not None:
            raise InvalidRequest(f"`{name}` has no meaning for latency, which `load` describes.", param=name)


def _load(body: CreateEvaluation) -> LoadRequest | None:
    if "latency" not in body.metrics:
        return None
    return LoadRequest(**(body.load or LoadBody()).model_dump())


def _metrics(body: CreateEvaluation) -> list[MetricName] | None:
    """None: auto, and where latency is measured."""
    if body.metrics == "auto" or "latency" in body.metrics:
        return None
    return [name for name in body.metrics if name != "latency"]


def _reading(body: CreateEvaluation) -> DataOptions:
    return DataOptions(**body.reading.model_dump()) if body.reading else DataOptions()


def _base_of(
    context: ServiceContext, model: TunedModel | None
) -> list[tuple[EvaluatedModel, TunedModel | None]]:
    """The base of an adapter, which is served where the adapter is."""
    if model is None or model.kind is not ModelKind.ADAPTER:
        return []
    return [resolved_model(context, model.base, "against")]


def _check_metrics(body: CreateEvaluation) -> None:
    if body.json_schema is not None:
        try:
            fault = call_apart(fault_of, [], body.json_schema, seconds=_SCHEMA_SECONDS)
        except (CutOff, OutOfMemory) as error:
            raise InvalidRequest(
                f"`json_schema` could not be checked: {error}.", param="json_schema"
            ) from error
        if fault is not None:
            raise InvalidRequest(f"`json_schema` is no JSON schema: {fault}.", param="json_schema")
    elif "schema_valid" in body.metrics:
        raise InvalidRequest(
            "The metric schema_valid needs a `json_schema`.", param="json_schema", code="missing_parameter"
        )
    _check_limits(body)


def _check_limits(body: CreateEvaluation) -> None:
    named = [limit.metric for limit in body.require or ()]
    for number, limit in enumerate(body.require or ()):
        param = f"require.{number}"
        if named.count(limit.metric) > 1:
            raise InvalidRequest(
                f"{limit.metric} is named twice: give all of its limits at once.", param=param
            )
        is_measured = body.metrics == "auto" or limit.metric in body.metrics
        if limit.metric in ("judge", "grader"):
            is_measured = getattr(body, limit.metric) is not None
        if not is_measured:
            raise InvalidRequest(
                f"{limit.metric} has a limit, and is not among `metrics`: add it there.", param=param
            )
        if limit.max_drop is not None and not body.against:
            raise InvalidRequest(
                "`max_drop` compares with other models: name them in `against`.", param=f"{param}.max_drop"
            )
    if "schema_valid" in named and body.json_schema is None:
        raise InvalidRequest(
            "The metric schema_valid needs a `json_schema`.", param="json_schema", code="missing_parameter"
        )


def resolved_model(
    context: ServiceContext, asked: str, param: str
) -> tuple[EvaluatedModel, TunedModel | None]:
    """The model that a name stands for now, and its row if it was made or registered here."""
    name = asked
    alias = context.store.aliases.get(asked)
    if alias is not None:
        if len(alias.targets) > 1:
            names = ", ".join(target.model for target in alias.targets)
            raise InvalidRequest(
                f"{asked} is an alias of several models: name one of {names}.",
                param=param,
                code="alias_is_split",
            )
        name = alias.targets[0].model
    model = context.store.models.get(name)
    if model is not None and model.name == name:
        return _tuned(context, asked, model, param), model
    engine = context.store.engines.get(name)
    if engine is None:
        raise NotFound(f"No such model: {quoted(name)}.", param=param, code="model_not_found")
    content = _info(engine).fingerprint
    return EvaluatedModel(asked=asked, name=name, engine=name, content=content, has_weights=False), None


def _tuned(context: ServiceContext, asked: str, model: TunedModel, param: str) -> EvaluatedModel:
    engine_name = model.base if model.kind is ModelKind.ADAPTER else model.name
    try:
        refuse_unservable(model)
        engine = context.store.engines.get(engine_name)
        if engine is None and model.kind is ModelKind.FULL:
            raise not_deployed(model.name)
    except InvalidRequest as error:
        error.param = param
        raise
    if engine is None:
        raise InvalidRequest(
            f"The base of {model.name} is not among those served here.", param=param, code="base_not_served"
        )
    content = model.sha256 if model.kind is ModelKind.ADAPTER else _info(engine).fingerprint
    return EvaluatedModel(asked=asked, name=model.name, engine=engine_name, content=content, has_weights=True)


def _info(engine: Engine) -> EngineInfo:
    if engine.info is None:
        raise EngineUnavailable(f"The engine of {engine.name} has not been ready yet: try again later.")
    return engine.info
