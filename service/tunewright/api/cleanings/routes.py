"""`/v1/cleanings`: the rows of a file go through steps, and what is left is a new file."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header

from tunewright.api.cleanings.creation import create_cleaning
from tunewright.api.cleanings.schemas import CleaningEventObject, CleaningObject, CreateCleaning
from tunewright.api.http.context import Context
from tunewright.api.http.errors import responses
from tunewright.api.jobs.routes import JobSchemas, RouteTexts, add_job_routes
from tunewright.kinds import CLEANING

router = APIRouter(prefix="/v1/cleanings", tags=["Cleanings"])


@router.post("", summary="Create a cleaning", responses=responses(400, 429, 503, 507))
def create(
    context: Context,
    body: CreateCleaning,
    idempotency_key: Annotated[
        str | None, Header(max_length=255, description="The same key gives the same cleaning.")
    ] = None,
) -> CleaningObject:
    """Queue a cleaning. A request that cannot succeed is refused at once. It needs no GPU and no engine: one runs at a
    time on the CPU, beside jobs that hold GPUs."""
    return CleaningObject.of(create_cleaning(context, body, idempotency_key))


add_job_routes(
    router,
    CLEANING,
    param="cleaning_id",
    schemas=JobSchemas(CleaningObject, CleaningEventObject, CleaningObject.of, CleaningEventObject.of),
    texts=RouteTexts(
        one="a cleaning",
        many="cleanings",
        not_found="cleaning_not_found",
        log="the cleaning's own log",
        cancel="In any state but the final ones. There is no new file.",
        pause="It makes room for other jobs. What is done is kept.",
        resume="It queues again, and continues from what is done.",
        logs="The output of its process, all attempts one after another.\n\n"
        "Empty before it starts, and once the folder of an ended cleaning was removed (`--keep-job-folders-days`).",
    ),
)
