"""Evaluations: models are asked what the rows of a file ask, and their answers are measured and compared."""

from __future__ import annotations

from pydantic import BaseModel

from tunewright.engine.command import inner_socket
from tunewright.evaluator.folder import (
    EXTERNAL,
    Asked,
    AskedGrader,
    AskedJudge,
    Evaluated,
    EvaluationSpec,
    results_file,
)
from tunewright.evaluator.report import EvaluationReport
from tunewright.ids import id_for_key
from tunewright.jobs.folder import JobFolder
from tunewright.kinds.data import inspect_apart
from tunewright.kinds.evaluation.loads import loads_of, validated_load, with_memory
from tunewright.kinds.evaluation.models import (
    DATA_FILE,
    EvaluatedModel,
    EvaluationPlan,
    EvaluationRequest,
    EvaluationResult,
    JudgeRequest,
)
from tunewright.kinds.evaluation.suites import asked_suite, at_once, cache_file, fitting, validated_suite
from tunewright.kinds.kind import JobRefused, Kind, Service, Validated
from tunewright.kinds.products import place_file
from tunewright.kinds.shares import places_at
from tunewright.registry.bases import BaseInfo
from tunewright.rows.canonical import RowKind
from tunewright.store.records import Engine, Job
from tunewright.store.states import FileStatus

MOST_ROWS = 20_000
"""Rows that are drawn where the request does not say how many."""
PURPOSE = "evaluation-results"
USABLE = (RowKind.CHAT, RowKind.PROMPT_COMPLETION, RowKind.PREFERENCE)
MEMORY = 2 * 2**30
_MAX_TOKENS = 256
_EXTERNAL_AT_ONCE = 8


class Evaluation(Kind):
    name = "evaluation"
    id_prefix, event_prefix = "eval", "evalevent"
    noun, product = "evaluation", "file"
    request, resolved, result, report = EvaluationRequest, EvaluationPlan, EvaluationResult, EvaluationReport
    needs_base = imports_torch = False
    path = "/v1/evaluations"
    module, process = "tunewright.evaluator", "evaluator"
    saves = "its last answer"
    on_kill = "evaluate on fewer rows, with `rows`"

    def name_of_input(self, request: BaseModel, role: str, position: int) -> str:
        assert isinstance(request, EvaluationRequest)
        return [model.name for model in _asked(request) if model.has_weights][position]

    def validate(self, service: Service, job: Job, base: BaseInfo) -> Validated:
        request = request_of(job)
        engines = _engines(service, request)
        if request.load is not None:
            return validated_load(request.load, engines)
        if request.suite is not None:
            return validated_suite(service, request, request.suite, engines)
        id = file_of(job)
        assert id is not None, "an evaluation without a suite has a file"
        has_template = all(engine.info is None or engine.info.has_chat_template for engine in engines)
        try:
            with service.workspace.file(id).open("rb") as file:
                found = inspect_apart(file, request.reading.reading(has_template))
        except OSError as error:
            raise JobRefused("invalid_data", f"the file cannot be read: {error.strerror}", "data") from error
        if found.problem is not None:
            raise JobRefused("invalid_data", found.problem, "data")
        if found.kind not in USABLE:
            raise JobRefused("invalid_data", why_no_answers(str(found.format), str(found.kind)), "data")
        plan = EvaluationPlan(
            rows_in_file=found.rows,
            has_template=has_template,
            max_tokens=request.max_tokens or fitting(_MAX_TOKENS, engines),
        )
        return Validated(plan, f"File validated ({found.rows} rows)")

    def spec(self, service: Service, job: Job, base: BaseInfo) -> EvaluationSpec:
        request, plan = request_of(job), job.resolved
        assert isinstance(plan, EvaluationPlan), f"{job.id} was not validated"
        places = {engine.name: places_at(engine) for engine in _engines(service, request)}
        data, suite = file_of(job), request.suite
        return EvaluationSpec(
            job_id=job.id,
            socket=str(inner_socket(service.workspace.path)),
            project=job.project,
            key=job.api_key_id,
            request_timeout=service.settings.server.request_timeout,
            models=[
                Asked(
                    name=model.name,
                    content=model.content,
                    at_once=at_once(places.get(model.engine, 1), suite),
                    cache=cache_file(service, job, request, plan, model),
                )
                for model in request.models
            ],
            file=str(service.workspace.file(data)) if data is not None else None,
            suite=asked_suite(service, suite) if suite is not None else None,
            loads=loads_of(service, request.load, places.values()) if request.load is not None else None,
            reading=request.reading.reading(plan.has_template),
            rows_in_file=plan.rows_in_file,
            rows=request.rows or (MOST_ROWS if plan.rows_in_file > MOST_ROWS else None),
            seed=job.seed,
            metrics=request.metrics,
            extract=request.extract,
            json_schema=request.json_schema,
            require=request.require,
            grader=AskedGrader(grader=request.grader, mode=service.settings.jobs.python_graders)
            if request.grader is not None
            else None,
            judge=_judge(service, request.judge, places),
            temperature=request.temperature,
            max_tokens=plan.max_tokens,
            memory_bytes=MEMORY,
        )

    def publish(self, service: Service, job: Job, base: BaseInfo, folder: JobFolder) -> None:
        outcome = folder.read_result(Evaluated)
        assert outcome is not None, "only what has succeeded is published"
        id, files = id_for_key("file", job.id), service.store.files
        report = with_memory(service, request_of(job), outcome.report)
        with service.workspace.keeping(id):
            place_file(service.workspace, results_file(folder), id)
            is_listed = service.store.jobs.succeed(
                job.id,
                EvaluationResult(file=id),
                report=report,
                files=[
                    {
                        "id": id,
                        "filename": f"{job.id}.jsonl",
                        "purpose": PURPOSE,
                        "bytes": outcome.bytes,
                        "sha256": outcome.sha256,
                        "status": FileStatus.PROCESSED,
                    }
                ],
            )
        if not is_listed:  # it was cancelled
            service.workspace.remove_file(id, lambda: files.get(id))


def request_of(job: Job) -> EvaluationRequest:
    assert isinstance(job.request, EvaluationRequest), f"{job.id} is no evaluation"
    return job.request


def file_of(job: Job) -> str | None:
    """The id of the rows' file; None where a suite has the questions."""
    return job.file(DATA_FILE)


def why_no_answers(format: str, kind: str) -> str:
    return (
        f"the file has {kind} rows (format {format}), which have no question with an answer to compare with: "
        "conversations, prompts with completions, and preferences have"
    )


def _asked(request: EvaluationRequest) -> list[EvaluatedModel]:
    """All models that are asked; a judge that is served here is the last one."""
    judge = request.judge.model if request.judge else None
    return [*request.models, judge] if judge else request.models


def _judge(service: Service, judge: JudgeRequest | None, places: dict[str, int]) -> AskedJudge | None:
    if judge is None:
        return None
    how = judge.model_dump(exclude={"model"})
    if judge.model is None:
        name = service.settings.server.judge_model
        return AskedJudge(name=name or "judge", content=EXTERNAL, at_once=_EXTERNAL_AT_ONCE, **how)
    model = judge.model
    return AskedJudge(name=model.name, content=model.content, at_once=places.get(model.engine, 1), **how)


def _engines(service: Service, request: EvaluationRequest) -> list[Engine]:
    found = [service.store.engines.get(name) for name in {model.engine for model in _asked(request)}]
    return [engine for engine in found if engine is not None]
