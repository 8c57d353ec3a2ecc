"""`/metrics`, in the text format of Prometheus."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse
from starlette.responses import Response

from tunewright.api.http.context import Context
from tunewright.api.http.errors import responses
from tunewright.api.telemetry.exporter import CONTENT_TYPE
from tunewright.errors import Busy, NotFound

router = APIRouter(tags=["Health"])
_EXAMPLE = """# HELP tunewright_jobs Jobs that are listed, by kind and state.
# TYPE tunewright_jobs gauge
tunewright_jobs{kind="fine_tuning",state="running"} 1.0
"""


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=PlainTextResponse,
    responses={
        200: {
            "content": {"text/plain": {"example": _EXAMPLE}},
            "description": "Prometheus' text format.",
        },
        **responses(404, 503),
    },
)
async def metrics(context: Context) -> Response:
    """Behind the API key, behind a key of its own (`--metrics-key`) or open, as `--metrics` says; 404 where it is off.
    What is told is in docs/how-to/monitor.md."""
    exporter = context.exporter
    if exporter is None:
        raise NotFound("Metrics are off: start the service with --metrics key or --metrics open.")
    try:
        page = await exporter.page()
    except TimeoutError as error:
        raise Busy("The metrics could not be told in time: try again.") from error
    return Response(page, media_type=CONTENT_TYPE)
