"""Creates syntheses from requests. A request that cannot succeed is refused here, before the synthesis is queued."""

from __future__ import annotations

from typing import Any

from tunewright.api.evaluations.creation import resolved_model
from tunewright.api.http.context import ServiceContext
from tunewright.api.jobs.creation import check_data_file, create_once
from tunewright.api.syntheses.schemas import CreateSynthesis
from tunewright.errors import InvalidRequest, UnsupportedFeature
from tunewright.graders.calling import check_grader
from tunewright.graders.models import ScoreModelGrader, singles
from tunewright.jobs.kinds import NO_BASE
from tunewright.kinds import SYNTHESIS
from tunewright.kinds.data import DataOptions
from tunewright.kinds.synthesis.kind import unknown_item
from tunewright.kinds.synthesis.models import SOURCE_FILE, TEACHER, SynthesisRequest
from tunewright.store.records import Job, JobInput, NewJob
from tunewright.synthesizer.tasks import (
    MOST_REQUESTS,
    AnswersTask,
    Deduplication,
    requests_of,
    why_unusable,
)


def create_synthesis(context: ServiceContext, body: CreateSynthesis, idempotency_key: str | None) -> Job:
    """Create a synthesis, or return the one that the same key created before.

    Raises InvalidRequest, NotFound, EngineUnavailable and TooManyRequests.
    """
    return create_once(context, body, idempotency_key, lambda: _checked(context, body))


def _checked(context: ServiceContext, body: CreateSynthesis) -> NewJob:
    teacher, weights = resolved_model(context, body.model, "model")
    if isinstance(body.task, AnswersTask):
        _check_answers(context, body.task)
    data = DataOptions(**body.data.model_dump()) if body.data else DataOptions()
    source, report = check_data_file(context, "file", body.file, data)
    if report is not None and report["kind"] is not None:
        _check_rows(body, report)
    inputs = [JobInput(SOURCE_FILE, file_id=source.id)]
    if weights is not None:
        inputs.append(JobInput(TEACHER, sha256=weights.sha256))
    request = SynthesisRequest(
        teacher=teacher,
        filename=source.filename,
        sha256=source.sha256,
        task=body.task,
        deduplicate=body.deduplicate or Deduplication(),
        data=data,
        rows=body.rows,
        temperature=body.temperature,
        top_p=body.top_p,
        max_tokens=body.max_tokens,
    )
    return NewJob(
        kind=SYNTHESIS.name,
        base=NO_BASE,
        request=request,
        seed=body.seed,
        inputs=tuple(inputs),
        metadata=body.metadata,
    )


def _check_answers(context: ServiceContext, task: AnswersTask) -> None:
    if task.grader is None:
        if task.min_score is not None or task.keep == "best":
            name = "min_score" if task.min_score is not None else "keep"
            raise InvalidRequest(
                f"`{name}` needs a `grader`, which gives the scores.",
                param="task.grader",
                code="missing_parameter",
            )
        return
    if task.min_score is None and task.keep == "all":
        raise InvalidRequest(
            "A grader drops nothing by itself: give `min_score`, or `keep` best.",
            param="task.min_score",
            code="missing_parameter",
        )
    for one in singles(task.grader).values():
        if isinstance(one, ScoreModelGrader):
            raise UnsupportedFeature(
                f"The grader {one.name!r} asks a model, which a synthesis cannot do: use one that computes.",
                param="task.grader",
            )
    check_grader(task.grader, "task.grader", context.settings.jobs.python_graders)


def _check_rows(body: CreateSynthesis, report: dict[str, Any]) -> None:
    """What is known of the rows already; all else when the job is validated."""
    task, kind = body.task, report["kind"]
    why = why_unusable(task, report["format"], kind)
    if why is not None:
        raise InvalidRequest(f"File {body.file} cannot be used: {why}.", param="file", code="invalid_file")
    rows = report["rows"] if body.rows is None else min(body.rows, report["rows"])
    if requests_of(task, rows) > MOST_REQUESTS:
        raise InvalidRequest(
            f"The teacher would be asked {requests_of(task, rows)} times, and may be {MOST_REQUESTS} times: draw fewer "
            "`rows`.",
            param="rows",
            code="too_many_requests",
        )
    if isinstance(task, AnswersTask) and task.grader is not None:
        unknown = unknown_item(task.grader, kind)
        if unknown is not None:
            raise InvalidRequest(
                f"{unknown[0].upper()}{unknown[1:]}.", param="task.grader", code="invalid_grader"
            )
