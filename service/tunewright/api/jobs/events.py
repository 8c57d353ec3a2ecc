"""The events of a job of any kind, as pages or as a stream, and the log of its process."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from tunewright.api.http.context import ServiceContext
from tunewright.api.http.queries import Pairs
from tunewright.api.http.wire import page_of
from tunewright.api.jobs.feeds import Feed
from tunewright.api.jobs.schemas import MOST_METADATA
from tunewright.errors import InvalidRequest
from tunewright.jobs.folder import JobFolder
from tunewright.kinds.kind import Kind
from tunewright.log_files import read
from tunewright.store.records import Job, JobEvent

_COMMENT_EVERY = 15.0
"""Seconds."""
_COMMENT = ": still here\n"
"""No blank line follows: to the openai client's decoder, a blank line after any `id` is an event without data, which it
cannot parse (openai-python#2722). A comment needs none, and is ignored by all."""
_LINES_SENT_AT_ONCE = 250
ShowEvent = Callable[[JobEvent], BaseModel]
"""Converts an event to its API object."""


def events_responses(kind: Kind) -> dict[int | str, dict[str, Any]]:
    """The `responses` of the events route of `kind`."""
    example = f'id: {kind.event_prefix}-1\ndata: {{"type": "message"}}\n\ndata: [DONE]\n\n'
    return {
        200: {
            "description": "A page, newest first; with `stream=true` server-sent events, oldest first, until the "
            "job has ended (`data: [DONE]`).",
            "content": {"text/event-stream": {"example": example}},
        }
    }


LOGS: dict[int | str, dict[str, Any]] = {
    200: {"description": "Text.", "content": {"text/plain": {"example": "INFO Training 24 steps\n"}}}
}
"""The `responses` of the routes that return logs."""


def _metadata(wanted: Annotated[dict[str, str], Depends(Pairs("metadata"))]) -> dict[str, str]:
    """Raises InvalidRequest for pairs that no job can have."""
    if len(wanted) > MOST_METADATA:
        raise InvalidRequest(f"A job has at most {MOST_METADATA} pairs of metadata.", param="metadata")
    if any("\0" in text for pair in wanted.items() for text in pair):
        raise InvalidRequest("No metadata has the character U+0000.", param="metadata")
    return wanted


Metadata = Annotated[dict[str, str], Depends(_metadata)]
"""The pairs `metadata[key]=value` in the query of a list."""


async def events_page(
    context: ServiceContext, job: Job, after: str | None, limit: int, show: ShowEvent
) -> dict[str, Any]:
    """The fields of a `Page` of the job's events, newest first."""
    found, more = await asyncio.to_thread(context.store.jobs.events, job.id, after=after, limit=limit)
    return page_of([show(event) for event in found], more) | {"object": "list"}


async def events_stream(
    context: ServiceContext, job: Job, after: str | None, show: ShowEvent
) -> StreamingResponse:
    """The job's events after `after` as server-sent events.

    Raises InvalidRequest where that event does not exist, and TooManyRequests.
    """
    if after is not None:
        await asyncio.to_thread(context.store.jobs.events, job.id, after=after, limit=1)
    return _EventStream(context.feeds.join(context.store.jobs, job.id), after, show)


class _EventStream(StreamingResponse):
    """Leaves the feed in the end, also where the client has gone before its first event."""

    def __init__(self, feed: Feed, after: str | None, show: ShowEvent) -> None:
        super().__init__(
            _events(feed, after, show), media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
        )
        self._feed = feed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._feed.leave()


async def _events(feed: Feed, after: str | None, show: ShowEvent) -> AsyncIterator[str]:
    quiet_since = time.monotonic()
    while not feed.failed:
        changed, ended = feed.changed, feed.ended
        found = await feed.read(after)
        for event in found:
            after = event.id
            quiet_since = time.monotonic()
            yield f"id: {event.id}\ndata: {json.dumps(show(event).model_dump())}\n\n"
        if found:
            continue
        if ended:
            yield "data: [DONE]\n\n"
            return
        try:
            async with asyncio.timeout(_COMMENT_EVERY):
                await changed.wait()
        except TimeoutError:
            pass
        if time.monotonic() - quiet_since > _COMMENT_EVERY:
            quiet_since = time.monotonic()
            yield _COMMENT


def log_of(context: ServiceContext, job: Job, tail: int | None) -> StreamingResponse:
    """The output of the job's process; empty before it starts and after the job's folder was removed."""
    return text_of(JobFolder(context.workspace.job(job.id)).log_parts(), tail)


def text_of(log: Sequence[Path], tail: int | None) -> StreamingResponse:
    """The lines of a log's files, sent while they are read."""
    return StreamingResponse(_blocks(read(log, tail)), media_type="text/plain")


def _blocks(lines: Iterator[str]) -> Iterator[str]:
    """The lines joined, since each piece that is sent is read in a thread."""
    while block := "".join(islice(lines, _LINES_SENT_AT_ONCE)):
        yield block
