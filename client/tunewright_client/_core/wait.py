"""Waiting: for a job to end, for the service to be ready. Both outlast a restart of the server."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from .._errors import (
    APIStatusError,
    JobCancelledError,
    JobFailedError,
    TunewrightError,
    WaitTimeoutError,
)
from ..types import JobEvent, JobStatus, Ready, WorkRecord
from . import endpoints
from .call import Call, Context
from .flow import Flow, Notify, Sleep, fetch
from .pages import PageData
from .progress import ProgressReporter
from .retry import backoff, is_outage, is_retryable

J = TypeVar("J", bound=WorkRecord)
OnEvent = Callable[[JobEvent], Awaitable[None] | None]

EVENTS_PER_PAGE = 100
LAST_REQUEST_SECONDS = 1.0  # the last look before a deadline gets at least so long


class _EventTail:
    """Finds the events that are new since the last look, in a list that comes newest first."""

    def __init__(self, path: str, job_id: str, whole: bool) -> None:
        self._path = path
        self._job_id = job_id
        self._whole = whole  # every event from the job's first on, not only the newest page
        self._seen: set[str] = set()

    def read(self, context: Context) -> Flow[list[JobEvent]]:
        """The new events, oldest first. What it read is forgotten unless the whole of it could be read."""
        new: list[JobEvent] = []
        first = endpoints.list_events(self._path, self._job_id, None, EVENTS_PER_PAGE)
        call: Call[PageData[JobEvent]] | None = first
        while call is not None:
            page = yield from fetch(context, call)
            unseen = [event for event in page.data if event.id not in self._seen]
            new += unseen
            call = page.next_call if self._whole and len(unseen) == len(page.data) else None
        self._seen.update(event.id for event in new)
        return new[::-1]


def job_end(
    context: Context,
    path: str,
    make: endpoints.MakeJob[J],
    job_id: str,
    *,
    timeout: float | None,
    poll_interval: float,
    on_event: OnEvent | None,
    reporter: ProgressReporter | None,
) -> Flow[J]:
    """Look at a job of the collection at `path` every `poll_interval` seconds until it has ended; times are
    in seconds.

    A server that is away (refused or broken connections, 408, 429, 502, 503, 504) is waited for until the
    timeout, other 5xx for max_retries looks in a row; other errors are raised at once. A paused job is waited
    for too.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    call = endpoints.retrieve_job(path, make, job_id)
    tail = _EventTail(path, job_id, whole=on_event is not None)
    watched = on_event is not None or reporter is not None
    job: J | None = None
    failures = 0
    trouble: TunewrightError | None = None
    try:
        while True:
            capped = context.capped(left(deadline))
            events: list[JobEvent] = []
            try:
                latest = yield from fetch(capped, call)
                if watched:
                    events = yield from tail.read(capped)
            except TunewrightError as error:
                if not worth_waiting(error, failures, context.max_retries):
                    raise
                trouble = error
                failures += 1
                delay = max(wanted(error), min(poll_interval, backoff(failures)))
                if reporter is not None:
                    reporter.trouble(error)
            else:
                job, failures, trouble, delay = latest, 0, None, poll_interval
                if on_event is not None:
                    for event in events:
                        yield Notify(on_event, event)
                if reporter is not None:
                    reporter.update(job, events)
                if job.is_final:
                    return _conclude(job)
            if deadline is not None:
                delay = min(delay, deadline - time.monotonic())
                if delay <= 0:
                    state = f"is still {job.status}" if job else "could not be read"
                    raise WaitTimeoutError(f"{job_id} {state} after {timeout:g} seconds", job) from trouble
            yield Sleep(delay)
    finally:
        if reporter is not None:
            reporter.close()


def _conclude(job: J) -> J:
    if job.status == JobStatus.FAILED:
        raise JobFailedError((job.error.message if job.error else None) or f"{job.id} failed", job)
    if job.status == JobStatus.CANCELLED:
        raise JobCancelledError(f"{job.id} was cancelled", job)
    return job


def until_ready(context: Context, timeout: float, poll_interval: float) -> Flow[Ready]:
    """Ask until every part of the service is ready; a server that is not up yet is waited for."""
    deadline = time.monotonic() + timeout
    failures = 0
    while True:
        trouble: TunewrightError | None = None
        reason = ""
        try:
            state = yield from fetch(context.capped(left(deadline)), endpoints.ready())
            failures = 0
            if state.ready:
                return state
            reason = state.waiting_for or "the service says no more"
        except TunewrightError as error:
            if not worth_waiting(error, failures, context.max_retries):
                raise
            failures += 1
            trouble, reason = error, str(error)
        delay = min(poll_interval, deadline - time.monotonic())
        if delay <= 0:
            raise WaitTimeoutError(f"not ready after {timeout:g} seconds: {reason}") from trouble
        yield Sleep(delay)


def left(deadline: float | None) -> float | None:
    """Seconds that a request may still take; None without a deadline."""
    return None if deadline is None else max(deadline - time.monotonic(), LAST_REQUEST_SECONDS)


def worth_waiting(error: TunewrightError, failures: int, max_retries: int) -> bool:
    """Whether what failed so may work again, after `failures` in a row."""
    return is_outage(error) or (is_retryable(error) and failures < max_retries)


def wanted(error: Any) -> float:
    """What a server's Retry-After asks for, in seconds."""
    return (error.retry_after or 0.0) if isinstance(error, APIStatusError) else 0.0
