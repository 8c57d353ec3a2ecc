"""`/v1/evaluations`: models are asked what the rows of a file ask, and their answers are measured and compared."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header

from tunewright.api.evaluations.creation import create_evaluation
from tunewright.api.evaluations.schemas import CreateEvaluation, EvaluationEventObject, EvaluationObject
from tunewright.api.http.context import Context
from tunewright.api.http.errors import responses
from tunewright.api.jobs.routes import JobSchemas, RouteTexts, add_job_routes
from tunewright.kinds import EVALUATION

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
