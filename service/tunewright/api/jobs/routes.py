"""The routes that jobs of all kinds have: list, retrieve, cancel, pause, resume, events and logs."""

# No `from __future__ import annotations`: FastAPI could not resolve annotations that name the arguments of
# `add_job_routes`.

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query
from fastapi.responses import PlainTextResponse, Response

from tunewright.api.http.context import Context, ServiceContext
from tunewright.api.http.errors import responses
from tunewright.api.http.wire import After, Page, page_of
from tunewright.api.jobs.events import (
    LOGS,
    Metadata,
    events_page,
    events_responses,
    events_stream,
    log_of,
)
from tunewright.errors import NotFound, quoted
from tunewright.kinds.kind import Kind
from tunewright.store.records import Job, JobEvent
from tunewright.wire import Wire

Limit = Annotated[int, Query(ge=1, le=1000)]
Stream = Annotated[bool, Query(description="Server-sent events from `after` on, or from the beginning.")]
LastEventId = Annotated[str | None, Header(description="As browsers send it when they reconnect.")]
Tail = Annotated[int | None, Query(ge=1, le=100_000, description="Only so many last lines.")]


@dataclass(frozen=True)
class JobSchemas:
    """The API objects of a kind's jobs and events, and the functions that make them."""

    job: type[Wire]
    event: type[Wire]
    show: Callable[[Job], Any]
    show_event: Callable[[JobEvent], Any]


@dataclass(frozen=True)
class RouteTexts:
    """The texts of a kind's routes in the OpenAPI document."""

    one: str
    """With its article: "an export"."""
    many: str
    not_found: str
    """The error code for an unknown id."""
    log: str
    cancel: str
    pause: str
    resume: str
    logs: str


def find_job(context: ServiceContext, kind: Kind, id: str, *, param: str, code: str) -> Job:
    """The job of this kind with this id. Raises NotFound."""
    job = context.store.jobs.get(id, kind.name)
    if job is None:
        raise NotFound(f"No such {kind.noun}: {quoted(id)}.", param=param, code=code)
    return job


def add_job_routes(
    router: APIRouter,
    kind: Kind,
    *,
    param: str,
    schemas: JobSchemas,
    texts: RouteTexts,
    may_resume: Callable[[Any, Job], None] = lambda context, job: None,
) -> None:
    """Add the routes to the router of a kind. `param` is the name of the id in paths and errors.

    `may_resume(context, job)` raises where a paused job could not run if it were resumed.
    """

    def find(context: ServiceContext, id: str) -> Job:
        return find_job(context, kind, id, param=param, code=texts.not_found)

    # No dependency finds the job: it would answer 404 before the other parameters are validated.
    JobId = Annotated[str, Path(alias=param)]  # noqa: N806 (a type)
    job_page: Any = Page[schemas.job]  # type: ignore[name-defined]
    paused = texts.one.replace(" ", " paused ", 1).replace("an paused", "a paused")

    @router.get(
        "", summary=f"List {texts.many}", response_model=job_page, responses=responses(400),
        name=f"list_{texts.many}", description="Newest first. `metadata[key]=value` keeps those that match.",
    )  # fmt: skip
    def list_(context: Context, metadata: Metadata, after: After = None, limit: Limit = 20) -> Any:
        found, more = context.store.jobs.list(kind=kind.name, after=after, limit=limit, metadata=metadata)
        return page_of([schemas.show(job) for job in found], more) | {"object": "list"}

    item = f"/{{{param}}}"

    @router.get(item, summary=f"Retrieve {texts.one}", response_model=schemas.job, responses=responses(404))
    def retrieve(context: Context, job_id: JobId) -> Any:
        return schemas.show(find(context, job_id))

    def add_action(name: str, summary: str, description: str, act: Callable[[Any, Job], Job | None]) -> None:
        def action(context: Context, job_id: JobId) -> Any:
            changed = act(context, find(context, job_id))
            # None: it had ended long ago, and was removed at this moment
            return schemas.show(changed or find(context, job_id))

        router.add_api_route(
            f"{item}/{name}", action, methods=["POST"], summary=summary, description=description, name=name,
            response_model=schemas.job, responses=responses(400, 404, 507),
        )  # fmt: skip

    def resume(context: Any, job: Job) -> Job | None:
        may_resume(context, job)
        return context.store.jobs.resume(job.id)  # type: ignore[no-any-return]

    add_action(
        "cancel", f"Cancel {texts.one}", texts.cancel, lambda context, job: context.store.jobs.cancel(job.id)
    )
    add_action(
        "pause", f"Pause {texts.one}", texts.pause, lambda context, job: context.store.jobs.pause(job.id)
    )
    add_action("resume", f"Resume {paused}", texts.resume, resume)

    add_output_routes(
        router, kind, param=param, not_found=texts.not_found, event=schemas.event, show_event=schemas.show_event,
        one=texts.one, log=texts.log, logs=texts.logs,
    )  # fmt: skip


def add_output_routes(
    router: APIRouter,
    kind: Kind,
    *,
    param: str,
    not_found: str,
    event: type[Wire],
    show_event: Callable[[JobEvent], Any],
    one: str,
    log: str,
    logs: str,
) -> None:
    """Add the routes of a job's events and of its log. The other arguments are those of `add_job_routes`, `JobSchemas`
    and `RouteTexts`."""

    def find(context: ServiceContext, id: str) -> Job:
        return find_job(context, kind, id, param=param, code=not_found)

    JobId = Annotated[str, Path(alias=param)]  # noqa: N806 (a type)
    item = f"/{{{param}}}"
    event_page: Any = Page[event]  # type: ignore[valid-type]

    @router.get(
        f"{item}/events",
        summary=f"List or stream {one}'s events",
        response_model=event_page,
        responses={**events_responses(kind), **responses(400, 404, 429)},
    )
    async def events(
        context: Context,
        job_id: JobId,
        after: After = None,
        limit: Limit = 20,
        stream: Stream = False,
        last_event_id: LastEventId = None,
    ) -> Any:
        job = await asyncio.to_thread(find, context, job_id)
        if stream:
            return await events_stream(context, job, after or last_event_id, show_event)
        return await events_page(context, job, after, limit, show_event)

    @router.get(
        f"{item}/logs",
        name="logs",
        summary=f"Read {log}",
        response_class=PlainTextResponse,
        responses={**LOGS, **responses(400, 404)},
        description=logs,
    )
    def read_log(context: Context, job_id: JobId, tail: Tail = None) -> Response:
        return log_of(context, find(context, job_id), tail)
