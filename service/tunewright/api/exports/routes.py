"""`/v1/exports`: adapters combined, merged into their base and quantized, with the loss of quality measured."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header

from tunewright.api.exports.creation import create_export
from tunewright.api.exports.schemas import CreateExport, ExportEventObject, ExportObject
from tunewright.api.http.context import Context
from tunewright.api.http.errors import responses
from tunewright.api.jobs.routes import JobSchemas, RouteTexts, add_job_routes
from tunewright.kinds import EXPORT

router = APIRouter(prefix="/v1/exports", tags=["Exports"])


@router.post("", summary="Create an export", responses=responses(400, 404, 429, 503, 507))
def create(
    context: Context,
    body: CreateExport,
    idempotency_key: Annotated[
        str | None, Header(max_length=255, description="The same key gives the same export.")
    ] = None,
) -> ExportObject:
    """Queue an export. A request that cannot succeed is refused at once. It waits for a device as jobs do."""
    return ExportObject.of(create_export(context, body, idempotency_key))


add_job_routes(
    router,
    EXPORT,
    param="export_id",
    schemas=JobSchemas(ExportObject, ExportEventObject, ExportObject.of, ExportEventObject.of),
    texts=RouteTexts(
        one="an export",
        many="exports",
        not_found="export_not_found",
        log="the export's own log",
        cancel="In any state but the final ones. Nothing of it is published.",
        pause="It frees its device. What is done (shards, layers) is kept.",
        resume="It queues for a device and continues from what is done.",
        logs="The output of its process, all attempts one after another.\n\n"
        "Empty before it starts, and once the folder of an ended export was removed (`--keep-job-folders-days`).",
    ),
)
