"""`/v1/evaluations`: models are asked what the rows of a file ask, and their answers are measured and compared."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query
from fastapi.responses import PlainTextResponse
from starlette.responses import Response

from tunewright.api.evaluations.creation import create_evaluation
from tunewright.api.evaluations.rating import as_csv, as_jsonl, pairs_of, rate, scored
from tunewright.api.evaluations.rating_schemas import MOST_RATINGS, RatePairs, RatingsObject
from tunewright.api.evaluations.schemas import CreateEvaluation, EvaluationEventObject, EvaluationObject
from tunewright.api.http.context import Context, ServiceContext
from tunewright.api.http.errors import responses
from tunewright.api.jobs.routes import JobSchemas, RouteTexts, add_job_routes, find_job
from tunewright.kinds import EVALUATION
from tunewright.store.records import Job
from tunewright.wire import Text

router = APIRouter(prefix="/v1/evaluations", tags=["Evaluations"])


@router.post("", summary="Create an evaluation", responses=responses(400, 404, 429, 503, 507))
def create(
    context: Context,
    body: CreateEvaluation,
    idempotency_key: Annotated[
        str | None, Header(max_length=255, description="The same key gives the same evaluation.")
    ] = None,
) -> EvaluationObject:
    """Queue an evaluation. A request that cannot succeed is refused at once. The engines that serve the models answer;
    it takes at most a quarter of the sequences that each of them runs at once, and one evaluation runs at a time,
    on the CPU, beside jobs that hold GPUs."""
    return EvaluationObject.of(create_evaluation(context, body, idempotency_key))


def _found(context: ServiceContext, id: str) -> Job:
    return find_job(context, EVALUATION, id, param="evaluation_id", code="evaluation_not_found")


@router.get(
    "/{evaluation_id}/pairs",
    summary="Export pairs of answers for people to rate",
    response_class=PlainTextResponse,
    responses={
        200: {
            "description": "A line for each pair: `id`, `asked`, the answers `a` and `b`, and an empty `choice`.",
            "content": {
                "application/jsonl": {
                    "example": '{"id": "5f2c...", "asked": "2 + 2?", "a": "4", "b": "5", "choice": ""}\n'
                },
                "text/csv": {"example": "id,asked,a,b,choice\n"},
            },
        },
        **responses(400, 404),
    },
)
def pairs(
    context: Context,
    evaluation_id: str,
    against: Annotated[
        Text | None, Query(max_length=512, description="Only the pairs with this model.")
    ] = None,
    rows: Annotated[int | None, Query(ge=1, le=MOST_RATINGS, description="How many. Default: all.")] = None,
    format: Annotated[Literal["jsonl", "csv"], Query(description="csv: for spreadsheets.")] = "jsonl",
) -> Response:
    """The answers of the evaluated model and of another one, in random order, without their names; pairs of the same
    text are left out. The same call gives the same pairs. `choice` is filled with a, b or tie."""
    job = _found(context, evaluation_id)
    found = pairs_of(context, job, against)[:rows]
    if format == "csv":
        return PlainTextResponse(as_csv(found), media_type="text/csv")
    return PlainTextResponse(as_jsonl(found), media_type="application/jsonl")


@router.post(
    "/{evaluation_id}/ratings", summary="Store a person's choices", responses=responses(400, 404, 507)
)
def rate_pairs(context: Context, evaluation_id: str, body: RatePairs) -> RatingsObject:
    """All of them, or none where one is wrong; the answer is that of `GET`."""
    job = _found(context, evaluation_id)
    rate(context, job, body.rater, [(one.id, one.choice) for one in body.ratings])
    return scored(context, job)


@router.get(
    "/{evaluation_id}/ratings", summary="Retrieve what people have chosen", responses=responses(400, 404)
)
def ratings(context: Context, evaluation_id: str) -> RatingsObject:
    """How often the evaluated model was preferred, with intervals, and how people agree with each other and with the
    judge."""
    return scored(context, _found(context, evaluation_id))


add_job_routes(
    router,
    EVALUATION,
    param="evaluation_id",
    schemas=JobSchemas(
        EvaluationObject, EvaluationEventObject, EvaluationObject.of, EvaluationEventObject.of
    ),
    texts=RouteTexts(
        one="an evaluation",
        many="evaluations",
        not_found="evaluation_not_found",
        log="the evaluation's own log",
        cancel="In any state but the final ones. Its answers are gone.",
        pause="It makes room for other jobs. The answers so far are kept.",
        resume="It queues again, and asks for the answers that are missing.",
        logs="The output of its process, all attempts one after another.\n\n"
        "Empty before it starts, and once the folder of an ended evaluation was removed (`--keep-job-folders-days`).",
    ),
)
