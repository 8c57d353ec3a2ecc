"""What jobs of all kinds share: the methods of `client.jobs`, `client.exports`, `client.cleanings`,
`client.evaluations`, `client.syntheses` and `client.batches`, and of their records."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

from pydantic import PrivateAttr

from .._core import endpoints
from .._core.call import Call
from .._core.inputs import job_body
from .._core.pages import PageData
from .._core.progress import ProgressReporter
from .._core.retry import backoff
from .._core.waiting import Wait, ended_job, requested_delay
from .._errors import TunewrightError, WaitTimeoutError
from ..types import JobEvent, WorkRecord
from .callbacks import AsyncCallback, notify
from .http import AsyncHTTP, AsyncResource
from .pager import AsyncPager
from .streams import AsyncEventStream, AsyncStream

EVENTS_PER_PAGE = 100


class AsyncBoundWork(WorkRecord):
    """A job of any kind as it was when it was read, with methods that ask its client."""

    _jobs: AsyncWorkResource[Any] | None = PrivateAttr(default=None)

    def model_post_init(self, context: Any, /) -> None:
        """pydantic calls this with the validation context, which is the AsyncWorkResource that read the record."""
        if isinstance(context, AsyncWorkResource):
            self._jobs = context

    @property
    def _resource(self) -> AsyncWorkResource[Self]:
        if self._jobs is None:
            raise TunewrightError(
                f"this {type(self).__name__} did not come from a client: use the client's methods with its id"
            )
        return self._jobs

    async def refresh(self) -> Self:
        """The present state of the job."""
        return await self._resource.retrieve(self.id)

    async def cancel(self) -> Self:
        """See `client.jobs.cancel`, which the other kinds have too, as they have all of the following."""
        return await self._resource.cancel(self.id)

    def events(self, after: str | None = None, limit: int | None = None) -> AsyncPager[JobEvent]:
        """See `client.jobs.events`."""
        return self._resource.events(self.id, after, limit)

    def stream_events(
        self, after: str | None = None, reconnect_timeout: float = 60.0
    ) -> AsyncStream[JobEvent]:
        """See `client.jobs.stream_events`."""
        return self._resource.stream_events(self.id, after, reconnect_timeout)

    async def logs(self, tail: int | None = None) -> str:
        """See `client.jobs.logs`."""
        return await self._resource.logs(self.id, tail)

    async def wait(
        self,
        *,
        timeout: float | None = None,
        poll_interval: float = 2.0,
        progress: bool = False,
        on_event: AsyncCallback[JobEvent] | None = None,
    ) -> Self:
        """See `client.jobs.wait`."""
        return await self._resource.wait(
            self.id, timeout=timeout, poll_interval=poll_interval, progress=progress, on_event=on_event
        )


class AsyncBoundJob(AsyncBoundWork):
    """A job of a kind that can be paused."""

    async def pause(self) -> Self:
        """See `client.jobs.pause`."""
        return await self._pausable.pause(self.id)

    async def resume(self) -> Self:
        """See `client.jobs.resume`."""
        return await self._pausable.resume(self.id)

    @property
    def _pausable(self) -> AsyncJobResource[Self]:
        resource = self._resource
        assert isinstance(resource, AsyncJobResource)
        return resource


W = TypeVar("W", bound=AsyncBoundWork)
J = TypeVar("J", bound=AsyncBoundJob)


class AsyncWorkResource(AsyncResource, Generic[W]):
    """The methods that jobs of all kinds share. `job_id` is the id of a job, an export, a cleaning, an evaluation, a
    synthesis or a batch."""

    _path: ClassVar[str]
    _record: type[W]

    def list(
        self,
        after: str | None = None,
        limit: int | None = None,
        *,
        metadata: Mapping[str, str] | None = None,
    ) -> AsyncPager[W]:
        """All of them, or those that have these pairs of metadata, newest first; `limit` is the size of a page."""
        return self._http.page(endpoints.list_jobs(self._path, self._parse, after, limit, metadata))

    async def retrieve(self, job_id: str) -> W:
        """The present state of one. Raises NotFoundError."""
        return await self._http.fetch(endpoints.retrieve_job(self._path, self._parse, job_id))

    async def cancel(self, job_id: str) -> W:
        """Stop one for good. Raises BadRequestError for one that has ended."""
        return await self._http.fetch(endpoints.act_on_job(self._path, self._parse, job_id, "cancel"))

    def events(self, job_id: str, after: str | None = None, limit: int | None = None) -> AsyncPager[JobEvent]:
        """The events of one, newest first. `after` is the id of the event before the first older one."""
        return self._http.page(endpoints.list_events(self._path, job_id, after, limit))

    def stream_events(
        self, job_id: str, after: str | None = None, reconnect_timeout: float = 60.0
    ) -> AsyncStream[JobEvent]:
        """The events of one as they happen, oldest first, from the first one or from the one after the id `after`.
        The stream ends when the job does.

        A broken connection is replaced, and the stream continues after the last event. Raises the last failure when
        no connection works for `reconnect_timeout` seconds.
        """
        return AsyncEventStream(self._http, self._path, job_id, after, reconnect_timeout)

    async def logs(self, job_id: str, tail: int | None = None) -> str:
        """The output of its process; with `tail`, only so many last lines."""
        return await self._http.fetch(endpoints.job_logs(self._path, job_id, tail))

    async def wait(
        self,
        job_id: str,
        *,
        timeout: float | None = None,
        poll_interval: float = 2.0,
        progress: bool = False,
        on_event: AsyncCallback[JobEvent] | None = None,
    ) -> W:
        """Wait until one has succeeded, and return it. Times are in seconds.

        - timeout: None waits without a limit, also for a server that does not answer
        - poll_interval: the time between two requests
        - progress: show a bar on stderr, or single lines where stderr is no terminal
        - on_event: called with each event once, oldest first, from the first event of the job

        Raises JobFailedError, whose message says why, JobCancelledError, WaitTimeoutError (the job continues in the
        server), NotFoundError. A restart of the server is no error. A paused job is waited for until it is resumed
        or cancelled.
        """
        wait = Wait(timeout, self._http.settings.max_retries)
        call = endpoints.retrieve_job(self._path, self._parse, job_id)
        new_events = AsyncNewEvents(self._path, job_id, from_the_first=on_event is not None)
        reporter = ProgressReporter() if progress else None
        job: W | None = None
        try:
            while True:
                http = self._http.once(wait.request_seconds())
                delay = poll_interval
                events: list[JobEvent] = []
                try:
                    latest = await http.fetch(call)
                    if on_event is not None or reporter is not None:
                        events = await new_events.read(http)
                except TunewrightError as error:
                    if not wait.tolerates(error):
                        raise
                    delay = max(requested_delay(error), min(poll_interval, backoff(wait.failures)))
                    if reporter is not None:
                        reporter.server_unavailable(error)
                else:
                    wait.succeeded()
                    job = latest
                    if on_event is not None:
                        for event in events:
                            await notify(on_event, event)
                    if reporter is not None:
                        reporter.update(job, events)
                    if job.is_final:
                        return ended_job(job)
                pause = wait.pause(delay)
                if pause is None:
                    state = f"is still {job.status}" if job else "could not be read"
                    message = f"{job_id} {state} after {timeout:g} seconds"
                    unread = self._record(id=job_id, status="unknown")
                    raise WaitTimeoutError(message, job or unread) from wait.last_error
                await asyncio.sleep(pause)
        finally:
            if reporter is not None:
                reporter.close()

    async def _create(
        self, files: Mapping[str, str | Path | None], idempotency_key: str | None, fields: Mapping[str, Any]
    ) -> W:
        """Upload the `files` that are paths, then create the job. `files` and `fields` have the names of the body.

        The keys of the uploads are made of the job's key, so that a repetition with this key does nothing twice.
        """
        key = idempotency_key or str(uuid.uuid4())
        body = dict(fields)
        for name, file in files.items():
            body[name] = await self._uploaded(name, file, key) if isinstance(file, Path) else file
        return await self._http.fetch(endpoints.create_job(self._path, self._parse, job_body(body), key))

    async def _uploaded(self, name: str, file: Path, key: str) -> str:
        """The id of a local file, which is uploaded as the parameter `name` of the request with this key."""
        upload = endpoints.upload_file(file, "fine-tune", None, f"{key}-{name.replace('_', '-')}")
        return (await self._http.fetch(upload)).id

    def _parse(self, data: Any) -> W:
        return self._record.model_validate(data, context=self)


class AsyncJobResource(AsyncWorkResource[J]):
    """The methods of those that can be paused."""

    async def pause(self, job_id: str) -> J:
        """Let one save its state and free its device, to be resumed later. It is `pausing` until then."""
        return await self._http.fetch(endpoints.act_on_job(self._path, self._parse, job_id, "pause"))

    async def resume(self, job_id: str) -> J:
        """Continue a paused one from its saved state."""
        return await self._http.fetch(endpoints.act_on_job(self._path, self._parse, job_id, "resume"))


class AsyncNewEvents:
    """Finds the events that are new since the last request, in a list that starts with the newest."""

    def __init__(self, path: str, job_id: str, from_the_first: bool) -> None:
        """`from_the_first`: read back to the first event of the job; otherwise only the newest page."""
        self._call = endpoints.list_events(path, job_id, None, EVENTS_PER_PAGE)
        self._from_the_first = from_the_first
        self._seen: set[str] = set()

    async def read(self, http: AsyncHTTP) -> list[JobEvent]:
        """The new events, oldest first. If it raises, the next call gives these events again."""
        new: list[JobEvent] = []
        call: Call[PageData[JobEvent]] | None = self._call
        while call is not None:
            page = await http.fetch(call)
            unseen = [event for event in page.data if event.id not in self._seen]
            new += unseen
            call = page.next_call if self._from_the_first and len(unseen) == len(page.data) else None
        self._seen.update(event.id for event in new)
        return new[::-1]
