"""What jobs of every kind have: the methods of `client.jobs` and `client.exports`, and those of a job that
knows its client."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from pydantic import PrivateAttr

from .._core import endpoints, streams, wait
from .._core.create import create_job
from .._core.progress import ProgressReporter
from .._errors import TunewrightError
from ..types import JobEvent, WorkRecord
from .driver import AsyncStream
from .pages import AsyncPager

if TYPE_CHECKING:
    from .client import AsyncTunewright


class AsyncBoundRecord(WorkRecord):
    """A job, of whatever kind, as it was when it was read; its methods ask its client."""

    _work: AsyncWork[Any] | None = PrivateAttr(default=None)

    @property
    def _api(self) -> AsyncWork[Self]:
        if self._work is None:
            raise TunewrightError(
                f"this {type(self).__name__} did not come from a client: use the client's methods with its id"
            )
        return self._work

    async def refresh(self) -> Self:
        """As it is now."""
        return await self._api.retrieve(self.id)

    async def cancel(self) -> Self:
        """See `cancel` of `client.jobs` and `client.exports`; the others are there too."""
        return await self._api.cancel(self.id)

    async def pause(self) -> Self:
        """See `client.jobs.pause`."""
        return await self._api.pause(self.id)

    async def resume(self) -> Self:
        """See `client.jobs.resume`."""
        return await self._api.resume(self.id)

    def events(self, after: str | None = None, limit: int | None = None) -> AsyncPager[JobEvent]:
        """See `client.jobs.events`."""
        return self._api.events(self.id, after, limit)

    def stream_events(
        self, after: str | None = None, reconnect_timeout: float = 60.0
    ) -> AsyncStream[JobEvent]:
        """See `client.jobs.stream_events`."""
        return self._api.stream_events(self.id, after, reconnect_timeout)

    async def logs(self, tail: int | None = None) -> str:
        """See `client.jobs.logs`."""
        return await self._api.logs(self.id, tail)

    async def wait(
        self,
        *,
        timeout: float | None = None,
        poll_interval: float = 2.0,
        progress: bool = False,
        on_event: wait.OnEvent | None = None,
    ) -> Self:
        """See `client.jobs.wait`."""
        return await self._api.wait(
            self.id, timeout=timeout, poll_interval=poll_interval, progress=progress, on_event=on_event
        )


R = TypeVar("R", bound=AsyncBoundRecord)


class AsyncWork(Generic[R]):
    """The jobs of one kind. An export is a job too: `job_id` is its id."""

    _path: ClassVar[str]
    _record: type[R]

    def __init__(self, client: AsyncTunewright) -> None:
        self._client = client

    def list(self, after: str | None = None, limit: int | None = None) -> AsyncPager[R]:
        """All of them, newest first; `limit` is the size of a page."""
        return self._client._page(endpoints.list_jobs(self._path, self._make, after, limit))

    async def retrieve(self, job_id: str) -> R:
        """One as it is now. Raises NotFoundError."""
        return await self._client._fetch(endpoints.retrieve_job(self._path, self._make, job_id))

    async def cancel(self, job_id: str) -> R:
        """Stop it for good. Raises BadRequestError for one that has ended."""
        return await self._act(job_id, "cancel")

    async def pause(self, job_id: str) -> R:
        """Have it save what is done and free its device, to be resumed; it is `pausing` until that is so."""
        return await self._act(job_id, "pause")

    async def resume(self, job_id: str) -> R:
        """Let a paused one go on from what is done."""
        return await self._act(job_id, "resume")

    def events(self, job_id: str, after: str | None = None, limit: int | None = None) -> AsyncPager[JobEvent]:
        """What happened to it, newest first; `after` goes on to older events."""
        return self._client._page(endpoints.list_events(self._path, job_id, after, limit))

    def stream_events(
        self, job_id: str, after: str | None = None, reconnect_timeout: float = 60.0
    ) -> AsyncStream[JobEvent]:
        """Its events as they happen, oldest first, from its first one or from the one after the id `after`;
        ends when the job does.

        A broken connection is made anew and goes on after the last event. Raises the failure when that does
        not work for `reconnect_timeout` seconds.
        """
        return self._client._stream(
            streams.job_events(self._client._context, self._path, job_id, after, reconnect_timeout)
        )

    async def logs(self, job_id: str, tail: int | None = None) -> str:
        """What its process wrote; with `tail`, the last lines."""
        return await self._client._fetch(endpoints.job_logs(self._path, job_id, tail))

    async def wait(
        self,
        job_id: str,
        *,
        timeout: float | None = None,
        poll_interval: float = 2.0,
        progress: bool = False,
        on_event: wait.OnEvent | None = None,
    ) -> R:
        """Wait until it has succeeded, and return it.

        - timeout: seconds; None waits for as long as it takes, also for a server that is away
        - poll_interval: seconds between two looks
        - progress: show a bar on stderr, or a line now and then where stderr is no terminal
        - on_event: called with each of its events once, oldest first, from the first one

        Raises JobFailedError, whose message says why, JobCancelledError, WaitTimeoutError (it goes on in the
        server), NotFoundError. A restart of the server meanwhile is no error. What is paused is waited for
        until it is resumed or cancelled.
        """
        return await self._client._run(
            wait.job_end(
                self._client._context,
                self._path,
                self._make,
                job_id,
                timeout=timeout,
                poll_interval=poll_interval,
                on_event=on_event,
                reporter=ProgressReporter() if progress else None,
            )
        )

    async def _create(
        self, files: Mapping[str, str | Path | None], idempotency_key: str | None, **fields: Any
    ) -> R:
        return await self._client._run(
            create_job(
                self._client._context,
                self._path,
                self._make,
                files=files,
                idempotency_key=idempotency_key,
                **fields,
            )
        )

    async def _act(self, job_id: str, action: str) -> R:
        return await self._client._fetch(endpoints.act_on_job(self._path, self._make, job_id, action))

    def _make(self, data: Any) -> R:
        record = self._record.model_validate(data)
        record._work = self
        return record
