"""`/v1/syntheses`: a teacher that is served here makes training rows of the rows of a file, which are a new file."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header

from tunewright.api.http.context import Context
from tunewright.api.http.errors import responses
from tunewright.api.jobs.routes import JobSchemas, RouteTexts, add_job_routes
from tunewright.api.syntheses.creation import create_synthesis
from tunewright.api.syntheses.schemas import CreateSynthesis, SynthesisEventObject, SynthesisObject
from tunewright.kinds import SYNTHESIS

router = APIRouter(prefix="/v1/syntheses", tags=["Syntheses"])


@router.post("", summary="Create a synthesis", responses=responses(400, 404, 429, 503, 507))
def create(
    context: Context,
    body: CreateSynthesis,
    idempotency_key: Annotated[
        str | None, Header(max_length=255, description="The same key gives the same synthesis.")
    ] = None,
) -> SynthesisObject:
    """Queue a synthesis. A request that cannot succeed is refused at once. The engine that serves the teacher answers;
    it takes at most a quarter of the sequences that the engine runs at once, and one synthesis runs at a time, beside
    jobs of all other kinds."""
    return SynthesisObject.of(create_synthesis(context, body, idempotency_key))


add_job_routes(
    router,
    SYNTHESIS,
    param="synthesis_id",
    schemas=JobSchemas(SynthesisObject, SynthesisEventObject, SynthesisObject.of, SynthesisEventObject.of),
    texts=RouteTexts(
        one="a synthesis",
        many="syntheses",
        not_found="synthesis_not_found",
        log="the synthesis's own log",
        cancel="In any state but the final ones. Its answers are gone, and there is no new file.",
        pause="It makes room for other jobs. The answers so far are kept.",
        resume="It queues again, and asks for the answers that are missing.",
        logs="The output of its process, all attempts one after another.\n\n"
        "Empty before it starts, and once the folder of an ended synthesis was removed (`--keep-job-folders-days`).",
    ),
)
